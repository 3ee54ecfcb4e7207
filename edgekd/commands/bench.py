"""`edgekd bench`: an artifact measured on this machine, alone or beside another one.

docs/measuring.md has the protocol: cold start, latency of the engine alone and from camera to detections in turns,
throughput with several streams, a sustained run with its time line, energy, cost.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.core import statistics
from edgekd.core.benchmark import MEASURED, STAND_IN, Candidate, Timing, benchmark_interleaved, compare, why_no_rate
from edgekd.core.benchmark import summarize as stats_of
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.machine_state import read_moment, read_setting
from edgekd.core.power import Meter
from edgekd.core.power.energy import measure_energy
from edgekd.core.power.find import find_meter
from edgekd.core.power.nvml import NvidiaGpu, find_gpu
from edgekd.core.power.recorder import Joules, Recorder
from edgekd.core.progress import SILENT, Progress
from edgekd.data.frames import FrameSource, load_frames, raw_frames
from edgekd.evaluation.cost import Cost, Prices, cost_of
from edgekd.evaluation.latency import camera, synthetic_frames
from edgekd.evaluation.throughput import between, run_streams
from edgekd.hardware.target import Target
from edgekd.runtimes.types import Session

if TYPE_CHECKING:
    from edgekd.deploy.devices import GraphDevice

BLOCK = 10
TURNS = 3
TIMELINE_S = 1.0
BATCHES = 8
CAMERA, ENGINE = "camera", "engine"
OURS, THEIRS = "artifact", "against"


@dataclass(frozen=True)
class BenchJob:
    """What to measure and for how long.

    frames: a folder of images or a video; None: made up, raw, of the input's size. streams: for throughput, 0 for none.
    minutes: of the sustained run, 0 for none. target: what this machine is, or stands in for. root: below which the
    system's own files lie; meter: in place of the one that is found there.
    """

    artifact: Path
    device: GraphDevice
    against: Path | None = None
    frames: Path | None = None
    iterations: int = 200
    seconds: float = 5.0
    streams: int = 2
    minutes: float = 0.0
    target: Target | None = None
    prices: Prices = field(default_factory=Prices)
    head: str | None = None
    trust_checkpoint: bool = False
    root: Path = Path("/")
    meter: Meter | None = None
    rest: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Measured:
    """document: as docs/json.md has it; timings: every sample, by side (`artifact`, `against`) and state."""

    document: dict[str, Any]
    timings: dict[tuple[str, str], Timing]

    @property
    def basis(self) -> str:
        """`measured`, or `stand-in` where another machine than the target ran it."""
        return str(self.document["basis"])

    @property
    def p50_ms(self) -> float:
        """Half of the frames take no longer, from camera to detections."""
        return float(self.document["total_ms"]["p50"])

    @property
    def p99_ms(self) -> float:
        """99 of 100 frames take no longer, from camera to detections."""
        return float(self.document["total_ms"]["p99"])

    @property
    def fps(self) -> float | None:
        """Frames a second, one after the other; None where the run was too short or too noisy (`refused`)."""
        fps: float | None = self.document["fps"]
        return fps

    @property
    def refused(self) -> Sequence[str]:
        """What is not told, and why."""
        reasons: Sequence[str] = self.document["refused"]
        return reasons


@dataclass(frozen=True)
class Side:
    """One of the artifacts, loaded: its graph, and what it took to load it and to infer for the first time."""

    graph: Path
    spec: DetectorSpec
    session: Session
    load_ms: float
    first_ms: float
    batches: Sequence[np.ndarray]


def run(job: BenchJob, progress: Progress = SILENT) -> Measured:
    """Measure. Raises SpecError, DataError, DeviceError."""
    with ExitStack() as stack:
        opened = {name: _open(stack, job, path) for name, path in _artifacts(job).items()}
        source = load_frames(job.frames) if job.frames else _made_up(opened[OURS][1])
        gpu = _gpu(job)
        before = _moment(job, gpu)
        sides = {name: _cold(stack, job, graph, spec, source) for name, (graph, spec) in opened.items()}
        timings = _latency(job, sides, source, progress)
        throughputs = _throughputs(job, sides, source, progress) if job.streams else {}
        sustained = _sustained(job, sides[OURS], source, gpu, progress) if job.minutes else None
        energies, no_energy = _energy(job, sides, source, progress)
    conditions = {**read_setting(job.root).as_json(), "before": before, "after": _moment(job, gpu)}
    told = {name: _side_json(job, name, sides, timings, throughputs, energies) for name in sides}
    ours, theirs = told[OURS], told.get(THEIRS)
    ours["refused"] += [f"energy: {no_energy}"] if no_energy else []
    if theirs is not None:
        theirs = {"artifact": str(job.against), **theirs, **_compared(job, ours, theirs, timings)}
    document = {
        "host": job.device.facts().as_json(),
        "frames": source.as_json(),
        "conditions": conditions,
        **ours,
        "sustained": sustained,
        "against": theirs,
    }
    return Measured(document, timings)


def _artifacts(job: BenchJob) -> dict[str, Path]:
    return {OURS: job.artifact, **({THEIRS: job.against} if job.against else {})}


def _open(stack: ExitStack, job: BenchJob, path: Path) -> tuple[Path, DetectorSpec]:
    from edgekd.deploy.artifact import opened

    return stack.enter_context(opened(path, job.head, (), job.trust_checkpoint))


def _made_up(spec: DetectorSpec) -> FrameSource:
    return raw_frames(synthetic_frames(spec), "made up: noise in the size of the input")


def _cold(stack: ExitStack, job: BenchJob, graph: Path, spec: DetectorSpec, source: FrameSource) -> Side:
    """Load a graph and run it once."""
    batches = [letterbox(frame, spec.preprocess)[0] for frame in source.frames(BATCHES)]
    clock = job.device.clock
    begin = clock()
    session = stack.enter_context(job.device.load(graph))
    loaded = clock()
    session.run(batches[0])
    return Side(graph, spec, session, 1000 * (loaded - begin), 1000 * (clock() - loaded), batches)


def _candidates(side: Side, source: FrameSource, session: Session | None = None) -> dict[str, Candidate]:
    """Both states of a side. They share the frames; the engine alone is given batches that were made of them before."""
    prepared = itertools.cycle(side.batches)
    session = session or side.session
    return {
        CAMERA: camera(session, side.spec, source.opener() if source.opener else None),
        ENGINE: Candidate(session, lambda frame: (next(prepared), None), lambda output, context: None),
    }


def _latency(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> dict[tuple[str, str], Timing]:
    """Both states of every side, in turns."""
    progress.note("bench: latency ...")
    lanes = {
        f"{name} {state}": candidate
        for name, side in sides.items()
        for state, candidate in _candidates(side, source).items()
    }
    found = benchmark_interleaved(
        lanes,
        source.items,
        block=BLOCK,
        min_iterations=job.iterations,
        min_seconds=job.seconds,
        clock=job.device.clock,
        basis=_basis(job),
    )
    return {(name.split()[0], name.split()[1]): timing for name, timing in found.items()}


def _basis(job: BenchJob) -> str:
    """Whether this machine is what is meant: it is itself, and a target only where it says that it is one."""
    from edgekd.agent.device import read_device

    if job.target is None or job.target.kind == "cpu":
        return MEASURED
    return MEASURED if read_device(job.root).fits(job.target.compatible) else STAND_IN


def _throughputs(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Camera to detections in several streams at once, each side in its turn."""
    progress.note(f"bench: throughput of {job.streams} streams ...")
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    with ExitStack() as stack:
        lanes = {
            name: [
                _candidates(side, source, stack.enter_context(session))[CAMERA]
                for session in job.device.load_streams(side.graph, job.streams)
            ]
            for name, side in sides.items()
        }
        for _ in range(TURNS):
            for name, candidates in lanes.items():
                gaps[name].append(between(run_streams(candidates, source.items, max(job.seconds, 0.1) / TURNS)))
    return {name: throughput_json(np.concatenate(found), job.streams) for name, found in gaps.items()}


def throughput_json(gaps_ms: np.ndarray, streams: int) -> dict[str, Any]:
    """Throughput, by the times from one frame done to the next; `refused` where it cannot be told."""
    if not len(gaps_ms):
        return {"streams": streams, "frames": 0, "fps": None, "interval": None, "refused": "no frame was done"}
    refused = why_no_rate(gaps_ms, np.cumsum(gaps_ms) / 1000)
    mean = statistics.mean_interval(gaps_ms)
    return {
        "streams": streams,
        "frames": len(gaps_ms),
        "fps": None if refused else 1000 / float(gaps_ms.mean()),
        "interval": None if refused else [1000 / mean.high, 1000 / mean.low],
        "refused": refused,
    }


def _moment(job: BenchJob, gpu: NvidiaGpu | None) -> dict[str, float | None]:
    """Clocks and temperature now; of the GPU that runs the network, where NVIDIA's driver tells them."""
    now = asdict(read_moment(job.root))
    return now if gpu is None else {**now, "gpu_mhz": gpu.clock_mhz, "temperature_c": gpu.temperature_c}


def _sustained(
    job: BenchJob, side: Side, source: FrameSource, gpu: NvidiaGpu | None, progress: Progress
) -> dict[str, Any]:
    """Camera to detections for minutes on end, with a line of what the machine did for every second."""
    progress.note(f"bench: sustained run of {job.minutes:g} minutes ...")
    clock, meter = job.device.clock, _meter(job)
    joules = Joules(meter, clock) if meter else None
    lane = {"": _candidates(side, source)[CAMERA]}
    warm_up = _one_frame(lane[""], source)
    for _ in range(BLOCK):
        warm_up()
    began = clock()
    with ExitStack() as stack:
        recorder = stack.enter_context(Recorder(lambda: _moment(job, gpu), clock, TIMELINE_S))
        if joules:
            stack.enter_context(joules.recorder)
        limits: dict[str, Any] = {"min_seconds": 60 * job.minutes, "warmup": 0}
        timing = benchmark_interleaved(lane, source.items, block=1, clock=clock, basis=_basis(job), **limits)[""]
    return _sustained_json(job.minutes, timing, began, recorder, joules)


def _sustained_json(
    minutes: float, timing: Timing, began: float, recorder: Recorder[dict[str, float | None]], joules: Joules | None
) -> dict[str, Any]:
    told = timing.summary()
    settled = timing.starts_s >= (told["slow_down"]["at_s"] if told["slow_down"] else 0.0)
    refused = why_no_rate(timing.total_ms[settled], timing.starts_s[settled])
    kept = ("iterations", "fps", "refused", "total_ms", "slow_down", "outliers")
    rate = 1000 / float(timing.total_ms[settled].mean())
    return {
        "minutes": minutes,
        **{name: told[name] for name in kept},
        "settled_fps": None if refused else rate,
        "timeline": list(_timeline(timing, began, recorder, joules)),
    }


def _timeline(
    timing: Timing, began: float, recorder: Recorder[dict[str, float | None]], joules: Joules | None
) -> Iterator[dict[str, float | None]]:
    """A line for every second: what was read at its end, the power and the median latency in it."""
    last = began
    for moment, reading in zip(recorder.times_s, recorder.readings, strict=True):
        inside = (timing.starts_s >= last - began) & (timing.starts_s < moment - began)
        spent = joules.at(moment) - joules.at(last) if joules and moment > last else None
        watts = None if spent is None else spent / (moment - last)
        p50_ms = float(np.median(timing.total_ms[inside])) if inside.any() else None
        yield {"at_s": moment - began, **reading, "watts": watts, "p50_ms": p50_ms}
        last = moment


def _on_gpu(job: BenchJob) -> bool:
    return any(name in job.device.facts().engine for name in ("cuda", "tensorrt"))


def _gpu(job: BenchJob) -> NvidiaGpu | None:
    return find_gpu() if _on_gpu(job) else None


def _meter(job: BenchJob) -> Meter | None:
    if job.meter is not None:
        return job.meter
    power = job.target.power if job.target and _basis(job) == MEASURED else None
    rails = power.rails.value if power and power.rails else ()
    return find_meter(
        job.root, gpu=_on_gpu(job), rails=rails, total=power.total.value if power and power.total else None
    )


def _energy(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Energy of a frame of each side; nothing, and why, where it cannot be read."""
    meter = _meter(job)
    if meter is None:
        return {}, "no sensor here that may be read: rails of a Jetson, NVIDIA's driver, or RAPL (which is root's)"
    progress.note(f"bench: energy, {meter.covers} ...")
    works = {name: _one_frame(_candidates(side, source)[CAMERA], source) for name, side in sides.items()}
    try:
        found = measure_energy(meter, works, job.seconds, job.device.clock, job.rest)
    except OSError as error:
        return {}, str(error)
    return {name: energy.as_json() for name, energy in found.items()}, None


def _one_frame(candidate: Candidate, source: FrameSource) -> Callable[[], object]:
    items = itertools.cycle(source.items)
    return lambda: candidate.process(next(items))


def _side_json(
    job: BenchJob,
    name: str,
    sides: Mapping[str, Side],
    timings: Mapping[tuple[str, str], Timing],
    throughputs: Mapping[str, dict[str, Any]],
    energies: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """All that is told of one artifact."""
    told, alone, side = timings[name, CAMERA].summary(), timings[name, ENGINE], sides[name]
    throughput, energy = throughputs.get(name), energies.get(name)
    refused = told.pop("refused")
    refused += [f"engine_fps: {alone.refused}"] if alone.refused else []
    refused += [f"throughput: {throughput['refused']}"] if throughput and throughput["refused"] else []
    return {
        "basis": told.pop("basis"),
        "iterations": told.pop("iterations"),
        "fps": told.pop("fps"),
        "engine_fps": alone.fps,
        "refused": refused,
        **told,
        "engine_ms": asdict(stats_of(alone.total_ms)),
        "cold_start": {"load_ms": side.load_ms, "first_ms": side.first_ms},
        "throughput": throughput and {key: value for key, value in throughput.items() if key != "refused"},
        "energy": energy,
        "cost": _cost_json(job.prices, told["total_ms"]["mean"], throughput, energy) if job.prices.given else None,
    }


def _cost_json(
    prices: Prices, mean_ms: float, throughput: dict[str, Any] | None, energy: dict[str, Any] | None
) -> dict[str, Any]:
    """Of a million frames, at the throughput where that was measured, else one after the other."""
    fps = throughput["fps"] if throughput else 1000 / mean_ms
    found: Cost = cost_of(prices, energy["gross_mj"] if energy else None, fps)
    return {"currency": prices.currency, **asdict(found)}


def _compared(
    job: BenchJob, ours: dict[str, Any], theirs: dict[str, Any], timings: Mapping[tuple[str, str], Timing]
) -> dict[str, Any]:
    """How ARTIFACT compares with the other one; above 1, it is the faster one."""
    found = {
        state: verdict_json(compare(timings[THEIRS, state], timings[OURS, state], BLOCK)) for state in (CAMERA, ENGINE)
    }
    both = [each["cost"]["total"] if each["cost"] else None for each in (theirs, ours)]
    change = both[1] / both[0] - 1 if both[0] and both[1] is not None else None
    return {"times_as_fast": found[CAMERA], "engine_times_as_fast": found[ENGINE], "cost_change": change}


def verdict_json(found: statistics.Comparison) -> dict[str, Any]:
    """A comparison of times: other by ours."""
    verdict = "cannot tell" if not found.differs else "faster" if found.ratio > 1 else "slower"
    return {
        "ratio": found.ratio,
        "interval": [found.interval.low, found.interval.high],
        "p_value": found.p_value,
        "rounds": found.rounds,
        "verdict": verdict,
    }

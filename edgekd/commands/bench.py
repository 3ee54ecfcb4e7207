"""`edgekd bench`: an artifact measured on this machine, alone or compared with another one.

docs/measuring.md has the protocol: cold start, latency of the engine alone and from camera to detections, interleaved,
throughput with several streams, a sustained run with its time line, energy, cost.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from edgekd.agent.state.device import read_device
from edgekd.commands.arguments import path_or_none, target_or_none
from edgekd.commands.options import Artifact, Head, TimedOn, Trust
from edgekd.commands.parameter import Option
from edgekd.commands.results import UntypedResult
from edgekd.core import statistics
from edgekd.core.benchmark import MEASURED, STAND_IN, Candidate, Timing, benchmark_interleaved, compare, rate_refusal
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
from edgekd.deploy.artifact import opened
from edgekd.deploy.devices import GraphDevice
from edgekd.deploy.devices.local import local_device
from edgekd.evaluation.cost import CostPerMillion, Prices, cost_of
from edgekd.evaluation.latency import camera, synthetic_frames
from edgekd.evaluation.report.bench_files import require_place, write_csv, write_page
from edgekd.evaluation.throughput import between, run_streams
from edgekd.graph.runtimes.types import Session
from edgekd.hardware.target import Target

BLOCK = 10
"""Frames of one artifact before it is the other's turn."""
TURNS = 3
"""Turns of each artifact in the measurement of throughput."""
TIMELINE_S = 1.0
"""Seconds between readings in a sustained run."""
BATCHES = 8
"""Prepared batches that the engine alone is timed on."""
CAMERA, ENGINE = "camera", "engine"
OURS, THEIRS = "artifact", "against"


@dataclass(frozen=True)
class BenchJob:
    """A measurement.

    frames: a folder of images or a video; None for synthetic raw frames of the input's size. streams: for throughput, 0
    for none. minutes: of the sustained run, 0 for none. target: the device that this machine is, or stands in for.
    root: the folder of the system's files; meter: replaces the one that is found there; rest: sleeps.
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
class Measured(UntypedResult):
    """The result of `bench`. timings: every sample, by side (`artifact`, `against`) and state (`camera`, `engine`)."""

    timings: dict[tuple[str, str], Timing]

    @property
    def basis(self) -> str:
        """`measured`, or `stand-in` where another machine than the target ran it."""
        return str(self.document["basis"])

    @property
    def p50_ms(self) -> float:
        """Median milliseconds of a frame, from camera to detections."""
        return float(self.document["total_ms"]["p50"])

    @property
    def p99_ms(self) -> float:
        """99th percentile of the milliseconds of a frame, from camera to detections."""
        return float(self.document["total_ms"]["p99"])

    @property
    def fps(self) -> float | None:
        """Frames a second, one after the other; None where the run was too short or too noisy (`refused`)."""
        fps: float | None = self.document["fps"]
        return fps

    @property
    def refused(self) -> Sequence[str]:
        """Rates that are not reported, and why."""
        return [*self.document["refused"]]


@dataclass(frozen=True)
class Side:
    """A loaded artifact, with the times of loading and of the first inference."""

    graph: Path
    spec: DetectorSpec
    session: Session
    load_ms: float
    first_ms: float
    batches: Sequence[np.ndarray]


def run(job: BenchJob, progress: Progress = SILENT) -> Measured:
    """Measure. Raises SpecError, DataError, DeviceError."""
    with ExitStack() as stack:
        artifacts = {OURS: job.artifact, **({THEIRS: job.against} if job.against else {})}
        graphs = {
            name: stack.enter_context(opened(path, job.head, (), job.trust_checkpoint))
            for name, path in artifacts.items()
        }
        noise = raw_frames(synthetic_frames(graphs[OURS][1]), "made up: noise in the size of the input")
        source = load_frames(job.frames) if job.frames else noise
        gpu = find_gpu() if _on_gpu(job) else None
        before = _moment(job, gpu)
        sides = {name: _cold(stack, job, graph, spec, source) for name, (graph, spec) in graphs.items()}
        timings = _latency(job, sides, source, progress)
        throughputs = _throughputs(job, sides, source, progress) if job.streams else {}
        sustained = _sustained(job, sides[OURS], source, gpu, progress) if job.minutes else None
        energies, no_energy = _energy(job, sides, source, progress)
    conditions = {**read_setting(job.root).as_json(), "before": before, "after": _moment(job, gpu)}
    documents = {name: _side_json(job, name, sides, timings, throughputs, energies) for name in sides}
    ours, theirs = documents[OURS], documents.get(THEIRS)
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
    """Return both states of a side: on the same frames; for the engine alone they are prepared before."""
    prepared = itertools.cycle(side.batches)
    session = session or side.session
    return {
        CAMERA: camera(session, side.spec, source.opener() if source.opener else None),
        ENGINE: Candidate(session, lambda frame: (next(prepared), None), lambda output, context: None),
    }


def _latency(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> dict[tuple[str, str], Timing]:
    """Time both states of every side, interleaved."""
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
    """Return `measured` without a target, or where this machine says that it is the target; else `stand-in`."""
    if job.target is None or job.target.kind == "cpu":
        return MEASURED
    return MEASURED if read_device(job.root).fits(job.target.compatible) else STAND_IN


def _throughputs(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Time several streams at once from camera to detections, the sides interleaved."""
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
    """Return the throughput, by the times between finished frames; `refused` where that is too uncertain."""
    if not len(gaps_ms):
        return {"streams": streams, "frames": 0, "fps": None, "interval": None, "refused": "no frame was done"}
    refused = rate_refusal(gaps_ms, np.cumsum(gaps_ms) / 1000)
    mean = statistics.mean_interval(gaps_ms)
    return {
        "streams": streams,
        "frames": len(gaps_ms),
        "fps": None if refused else 1000 / float(gaps_ms.mean()),
        "interval": None if refused else [1000 / mean.high, 1000 / mean.low],
        "refused": refused,
    }


def _moment(job: BenchJob, gpu: NvidiaGpu | None) -> dict[str, float | None]:
    """Read clocks and temperature; those of the GPU that runs the network, where NVIDIA's driver has them."""
    now = asdict(read_moment(job.root))
    return now if gpu is None else {**now, "gpu_mhz": gpu.clock_mhz, "temperature_c": gpu.temperature_c}


def _sustained(
    job: BenchJob, side: Side, source: FrameSource, gpu: NvidiaGpu | None, progress: Progress
) -> dict[str, Any]:
    """Time camera to detections for minutes, with the state of the machine every second."""
    progress.note(f"bench: sustained run of {job.minutes:g} minutes ...")
    clock, meter = job.device.clock, _meter(job)
    joules = Joules(meter, clock) if meter else None
    lane = {"": _candidates(side, source)[CAMERA]}
    for warm_up in [_one_frame(lane[""], source)] * BLOCK:
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
    summary = timing.summary()
    settled = timing.starts_s >= (summary["slow_down"]["at_s"] if summary["slow_down"] else 0.0)
    refused = rate_refusal(timing.total_ms[settled], timing.starts_s[settled])
    kept = ("iterations", "fps", "refused", "total_ms", "slow_down", "outliers")
    rate = 1000 / float(timing.total_ms[settled].mean())
    return {
        "minutes": minutes,
        **{name: summary[name] for name in kept},
        "settled_fps": None if refused else rate,
        "timeline": list(_timeline(timing, began, recorder, joules)),
    }


def _timeline(
    timing: Timing, began: float, recorder: Recorder[dict[str, float | None]], joules: Joules | None
) -> Iterator[dict[str, float | None]]:
    """Yield for every second the readings at its end, and the power and median latency in it."""
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


def _meter(job: BenchJob) -> Meter | None:
    if job.meter is not None:
        return job.meter
    power = job.target.power if job.target and _basis(job) == MEASURED else None
    rails = power.rails.value if power and power.rails else ()
    total = power.total.value if power and power.total else None
    return find_meter(job.root, gpu=_on_gpu(job), rails=rails, total=total)


def _energy(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Measure the energy of a frame of each side; where it cannot be read return nothing, and the reason."""
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
    """Return the document of one artifact."""
    summary, alone, side = timings[name, CAMERA].summary(), timings[name, ENGINE], sides[name]
    throughput, energy = throughputs.get(name), energies.get(name)
    refused = summary.pop("refused")
    refused += [f"engine_fps: {alone.refused}"] if alone.refused else []
    refused += [f"throughput: {throughput['refused']}"] if throughput and throughput["refused"] else []
    return {
        "basis": summary.pop("basis"),
        "iterations": summary.pop("iterations"),
        "fps": summary.pop("fps"),
        "engine_fps": alone.fps,
        "refused": refused,
        **summary,
        "engine_ms": asdict(stats_of(alone.total_ms)),
        "cold_start": {"load_ms": side.load_ms, "first_ms": side.first_ms},
        "throughput": throughput and {key: value for key, value in throughput.items() if key != "refused"},
        "energy": energy,
        "cost": _cost_json(job.prices, summary["total_ms"]["mean"], throughput, energy) if job.prices.given else None,
    }


def _cost_json(
    prices: Prices, mean_ms: float, throughput: dict[str, Any] | None, energy: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the cost of a million frames, at the throughput where that was measured, else one after the other."""
    fps = throughput["fps"] if throughput else 1000 / mean_ms
    found: CostPerMillion = cost_of(prices, energy["gross_mj"] if energy else None, fps)
    return {"currency": prices.currency, **asdict(found)}


def _compared(
    job: BenchJob, ours: dict[str, Any], theirs: dict[str, Any], timings: Mapping[tuple[str, str], Timing]
) -> dict[str, Any]:
    """Compare ARTIFACT with the other one; a ratio above 1 means that it is faster."""
    found = {
        state: verdict_json(compare(timings[THEIRS, state], timings[OURS, state], BLOCK)) for state in (CAMERA, ENGINE)
    }
    both = [each["cost"]["total"] if each["cost"] else None for each in (theirs, ours)]
    change = both[1] / both[0] - 1 if both[0] and both[1] is not None else None
    return {"times_as_fast": found[CAMERA], "engine_times_as_fast": found[ENGINE], "cost_change": change}


def verdict_json(found: statistics.Comparison) -> dict[str, Any]:
    """Return a comparison of times, other by ours, as plain types for JSON."""
    verdict = "cannot tell" if not found.differs else "faster" if found.ratio > 1 else "slower"
    return {
        "ratio": found.ratio,
        "interval": [found.interval.low, found.interval.high],
        "p_value": found.p_value,
        "rounds": found.rounds,
        "verdict": verdict,
    }


def bench(
    artifact: Artifact,
    *,
    device: TimedOn = "local",
    against: Annotated[str | Path | None, Option("Another artifact, measured in turns with it.")] = None,
    frames: Annotated[str | Path | None, Option("Folder of images, or a video, to decode. Default: noise.")] = None,
    iterations: Annotated[int, Option("At least this many frames ...", minimum=1)] = 200,
    seconds: Annotated[float, Option("... and at least this long, of each part.", minimum=0)] = 5.0,
    streams: Annotated[int, Option("Streams at once, for throughput; 0: none.", minimum=0, maximum=64)] = 2,
    minutes: Annotated[float, Option("Also a sustained run of this length.", minimum=0)] = 0.0,
    target: Annotated[
        str | Path | Target | None, Option("What this machine is, or stands in for: `edgekd targets`.")
    ] = None,
    electricity_price: Annotated[float | None, Option("Of a kWh, for cost.", minimum=0)] = None,
    instance_price: Annotated[float | None, Option("Of this machine for an hour, for cost.", minimum=0)] = None,
    currency: Annotated[str | None, Option("What the prices are in.")] = None,
    csv: Annotated[str | Path | None, Option("Write every sample there.")] = None,
    report: Annotated[str | Path | None, Option("Write a page with charts there (.html).")] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Measured:
    """Time an artifact here, engine alone and from camera to detections: percentiles, throughput, energy, cost.

    Times are milliseconds, energies millijoules a frame. A rate that a run was too short or too noisy for is None, with
    the reason in `refused`. Raises SpecError, DataError or DeviceError. The command: `edgekd bench`. The protocol, with
    its sources: docs/measuring.md.
    """
    table, page = path_or_none(csv), path_or_none(report)
    require_place(table, page)
    job = BenchJob(
        artifact=Path(artifact),
        device=local_device(device),
        against=path_or_none(against),
        frames=path_or_none(frames),
        iterations=iterations,
        seconds=seconds,
        streams=streams,
        minutes=minutes,
        target=target_or_none(target),
        prices=Prices(electricity_price, instance_price, currency),
        head=head,
        trust_checkpoint=trust_checkpoint,
    )
    measured = run(job, progress)
    if table:
        write_csv(table, measured.timings)
    if page:
        write_page(page, job.artifact.name, measured.document, measured.timings)
    return measured

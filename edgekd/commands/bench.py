"""`edgekd bench`: an artifact measured on this machine, alone or compared with another one.

docs/guides/benchmark.md has the protocol: cold start; latency of the engine alone and from camera to detections,
interleaved; throughput with several streams; a sustained run with its time line; energy; cost.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from edgekd.agent.state.device import read_device
from edgekd.commands.arguments import path_or_none, target_or_none
from edgekd.commands.options import Artifact, Head, TimedOn, Trust
from edgekd.commands.parameter import Option
from edgekd.core import statistics
from edgekd.core.benchmark import (
    MEASURED,
    STAND_IN,
    Basis,
    FramePipeline,
    Timing,
    benchmark_interleaved,
    compare,
    rate_refusal,
    summarize,
    summarize_run,
)
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.machine_state import Moment, read_moment, read_setting
from edgekd.core.power import Meter
from edgekd.core.power.energy import Energy, measure_energy
from edgekd.core.power.find import find_meter
from edgekd.core.power.nvml import NvidiaGpu, find_gpu
from edgekd.core.power.recorder import Joules, Recorder
from edgekd.core.progress import SILENT, Progress
from edgekd.data.frames import FrameSource, load_frames, raw_frames
from edgekd.deploy.artifact import opened
from edgekd.deploy.devices.local import LocalDevice, local_device
from edgekd.deploy.devices.null import NullDevice
from edgekd.evaluation.bench_result import (
    ArtifactResult,
    BenchResult,
    ColdStart,
    Conditions,
    OtherArtifact,
    SpeedUp,
    SustainedRun,
    Throughput,
    TimelinePoint,
)
from edgekd.evaluation.cost import Prices, cost_of
from edgekd.evaluation.latency import camera, synthetic_frames
from edgekd.evaluation.report.bench_files import require_place, write_csv, write_page
from edgekd.evaluation.throughput import between, run_streams
from edgekd.graph.runtimes.types import Session
from edgekd.hardware.target import Target

BLOCK = 10
"""Number of consecutive frames of one artifact in interleaved measurements of latency."""
TURNS = 3
"""Number of turns of each artifact in the measurement of throughput."""
TIMELINE_S = 1.0
"""Seconds between readings in a sustained run."""
BATCHES = 8
"""Number of prepared batches on which the engine alone is timed."""
CAMERA, ENGINE = "camera", "engine"
OURS, THEIRS = "artifact", "against"


@dataclass(frozen=True)
class BenchJob:
    """A measurement.

    frames: a folder of images or a video; None for synthetic raw frames of the input's size. iterations, seconds:
    minimum of each part. streams: parallel streams for throughput, 0 for none. minutes: length of the sustained run, 0
    for none. batch: frames in a run of the engine alone, at most as many as a graph takes. target: the device that this
    machine is, or stands in for. root: the folder of the system's files; meter: used instead of the one found there;
    rest: sleeps for seconds.
    """

    artifact: Path
    device: LocalDevice | NullDevice
    against: Path | None = None
    frames: Path | None = None
    iterations: int = 200
    seconds: float = 5.0
    streams: int = 2
    minutes: float = 0.0
    batch: int = 1
    target: Target | None = None
    prices: Prices = field(default_factory=Prices)
    head: str | None = None
    trust_checkpoint: bool = False
    root: Path = Path("/")
    meter: Meter | None = None
    rest: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Side:
    """A loaded artifact. batches: inputs for timing the engine alone, each of `batch` frames."""

    graph: Path
    spec: DetectorSpec
    session: Session
    cold_start: ColdStart
    batches: Sequence[np.ndarray]
    batch: int


def run(job: BenchJob, progress: Progress = SILENT) -> BenchResult:
    """Run a measurement. Raises SpecError, DataError, DeviceError."""
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
    conditions = Conditions(read_setting(job.root), before, _moment(job, gpu))
    ours = _result(job, sides[OURS], timings, OURS, throughputs.get(OURS), energies.get(OURS))
    if no_energy:
        ours = replace(ours, refused=(*ours.refused, f"energy: {no_energy}"))
    against = None
    if job.against:
        theirs = _result(job, sides[THEIRS], timings, THEIRS, throughputs.get(THEIRS), energies.get(THEIRS))
        against = _compared(job.against, ours, theirs, timings)
    return BenchResult(job.device.facts(), source.facts, conditions, ours, sustained, against, timings)


def _cold(stack: ExitStack, job: BenchJob, graph: Path, spec: DetectorSpec, source: FrameSource) -> Side:
    """Load a graph and run it once, and time both."""
    inputs = [letterbox(frame, spec.preprocess)[0] for frame in source.frames(BATCHES)]
    batch = min(job.batch, spec.batch)
    batches = [np.concatenate(list(itertools.islice(itertools.cycle(inputs), at, at + batch))) for at in range(BATCHES)]
    clock = job.device.clock
    begin = clock()
    session = stack.enter_context(job.device.load(graph))
    loaded = clock()
    session.run(inputs[0])
    return Side(graph, spec, session, ColdStart(1000 * (loaded - begin), 1000 * (clock() - loaded)), batches, batch)


def _candidates(side: Side, source: FrameSource, session: Session | None = None) -> dict[str, FramePipeline]:
    """Return both pipelines of a side: from camera to detections, and the engine alone on prepared batches."""
    prepared = itertools.cycle(side.batches)
    session = session or side.session
    return {
        CAMERA: camera(session, side.spec, source.make_decoder() if source.make_decoder else None),
        ENGINE: FramePipeline(session, lambda frame: (next(prepared), None), lambda output, context: None),
    }


def _latency(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> dict[tuple[str, str], Timing]:
    """Time both pipelines of every side, interleaved."""
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


def _basis(job: BenchJob) -> Basis:
    """Return `measured` if there is no target, it is a CPU, or this machine identifies as it; else `stand-in`."""
    if job.target is None or job.target.kind == "cpu":
        return MEASURED
    return MEASURED if read_device(job.root).fits(job.target.compatible) else STAND_IN


def _throughputs(
    job: BenchJob, sides: Mapping[str, Side], source: FrameSource, progress: Progress
) -> dict[str, Throughput]:
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
    return {name: throughput(np.concatenate(found), job.streams) for name, found in gaps.items()}


def throughput(gaps_ms: np.ndarray, streams: int) -> Throughput:
    """Return the throughput from the milliseconds between finished frames; without a rate if it is too uncertain."""
    if not len(gaps_ms):
        return Throughput(streams, 0, None, None, "no frame was done")
    if refused := rate_refusal(gaps_ms, np.cumsum(gaps_ms) / 1000):
        return Throughput(streams, len(gaps_ms), None, None, refused)
    mean = statistics.mean_interval(gaps_ms)
    rates = statistics.Interval(1000 / mean.high, 1000 / mean.low)
    return Throughput(streams, len(gaps_ms), 1000 / float(gaps_ms.mean()), rates, None)


def _moment(job: BenchJob, gpu: NvidiaGpu | None) -> Moment:
    """Read clocks and temperature; those of the GPU, from NVIDIA's driver, if it runs the network."""
    now = read_moment(job.root)
    return now if gpu is None else replace(now, gpu_mhz=gpu.clock_mhz, temperature_c=gpu.temperature_c)


def _sustained(
    job: BenchJob, side: Side, source: FrameSource, gpu: NvidiaGpu | None, progress: Progress
) -> SustainedRun:
    """Time the pipeline from camera to detections for minutes, and record the state of the machine every second."""
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
    run = summarize_run(timing.total_ms, timing.starts_s)
    settled = timing.starts_s >= (run.slow_down.at_s if run.slow_down else 0.0)
    refused = rate_refusal(timing.total_ms[settled], timing.starts_s[settled])
    return SustainedRun(
        minutes=job.minutes,
        **vars(run),
        total_ms=summarize(timing.total_ms),
        settled_fps=None if refused else 1000 / float(timing.total_ms[settled].mean()),
        timeline=tuple(_timeline(timing, began, recorder, joules)),
    )


def _timeline(
    timing: Timing, began: float, recorder: Recorder[Moment], joules: Joules | None
) -> Iterator[TimelinePoint]:
    """Yield the readings at the end of every second, and the power in W and median latency in ms within it."""
    last = began
    for moment, reading in zip(recorder.times_s, recorder.readings, strict=True):
        inside = (timing.starts_s >= last - began) & (timing.starts_s < moment - began)
        spent = joules.at(moment) - joules.at(last) if joules and moment > last else None
        watts = None if spent is None else spent / (moment - last)
        p50_ms = float(np.median(timing.total_ms[inside])) if inside.any() else None
        yield TimelinePoint(moment - began, **vars(reading), watts=watts, p50_ms=p50_ms)
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
) -> tuple[dict[str, Energy], str | None]:
    """Return the energy of a frame of each side and None, or nothing and the reason why it cannot be measured."""
    meter = _meter(job)
    if meter is None:
        return {}, "no sensor here that may be read: rails of a Jetson, NVIDIA's driver, or RAPL (which is root's)"
    progress.note(f"bench: energy, {meter.covers} ...")
    works = {name: _one_frame(_candidates(side, source)[CAMERA], source) for name, side in sides.items()}
    try:
        return measure_energy(meter, works, job.seconds, job.device.clock, job.rest), None
    except OSError as error:
        return {}, str(error)


def _one_frame(candidate: FramePipeline, source: FrameSource) -> Callable[[], object]:
    items = itertools.cycle(source.items)
    return lambda: candidate.process(next(items))


def _result(
    job: BenchJob,
    side: Side,
    timings: Mapping[tuple[str, str], Timing],
    name: str,
    throughput: Throughput | None,
    energy: Energy | None,
) -> ArtifactResult:
    """Return the measurements of one artifact."""
    summary, alone = timings[name, CAMERA].summary(), timings[name, ENGINE]
    refused = (
        *summary.refused,
        *([f"engine_fps: {alone.refused}"] if alone.refused else []),
        *([f"throughput: {throughput.refused}"] if throughput and throughput.refused else []),
    )
    fps = throughput.fps if throughput else 1000 / summary.total_ms.mean
    return ArtifactResult(
        **{**vars(summary), "refused": refused},
        batch=side.batch,
        engine_fps=None if alone.fps is None else alone.fps * side.batch,
        engine_ms=summarize(alone.total_ms / side.batch),
        cold_start=side.cold_start,
        throughput=throughput,
        energy=energy,
        cost=cost_of(job.prices, energy.gross_mj if energy else None, fps) if job.prices.given else None,
    )


def _compared(
    path: Path, ours: ArtifactResult, theirs: ArtifactResult, timings: Mapping[tuple[str, str], Timing]
) -> OtherArtifact:
    """Compare the artifact with the other one; path: of the other one."""
    camera_times, engine_times = (
        speed_up(
            compare(
                timings[THEIRS, state].of_frames(theirs.batch if state == ENGINE else 1),
                timings[OURS, state].of_frames(ours.batch if state == ENGINE else 1),
                BLOCK,
            )
        )
        for state in (CAMERA, ENGINE)
    )
    before, after = (each.cost.total if each.cost else None for each in (theirs, ours))
    change = after / before - 1 if before and after is not None else None
    return OtherArtifact(str(path), theirs, camera_times, engine_times, change)


def speed_up(found: statistics.Comparison) -> SpeedUp:
    """Return a comparison of times, the other's divided by ours, with its verdict."""
    faster: Literal["faster", "slower"] = "faster" if found.ratio > 1 else "slower"
    return SpeedUp(**vars(found), verdict=faster if found.differs else "cannot tell")


def bench(
    artifact: Artifact,
    *,
    device: TimedOn = "local",
    against: Annotated[
        str | Path | None, Option("Another artifact, measured in turns with ARTIFACT.", group="Input")
    ] = None,
    frames: Annotated[
        str | Path | None, Option("Folder of images, or a video, to decode. Default: noise.", group="Input")
    ] = None,
    iterations: Annotated[int, Option("At least this many frames ...", minimum=1)] = 200,
    seconds: Annotated[float, Option("... and at least this long, of each part.", minimum=0)] = 5.0,
    streams: Annotated[int, Option("Streams at once, for throughput; 0: none.", minimum=0, maximum=64)] = 2,
    batch: Annotated[int, Option("Frames of a run of the engine alone, if a graph takes so many.", minimum=1)] = 1,
    minutes: Annotated[float, Option("Also a sustained run of this length.", minimum=0)] = 0.0,
    target: Annotated[
        str | Path | Target | None, Option("Target that this machine is, or stands in for: `edgekd targets`.")
    ] = None,
    electricity_price: Annotated[float | None, Option("Price of a kWh, for costs.", minimum=0)] = None,
    instance_price: Annotated[float | None, Option("Price of an hour of this machine, for costs.", minimum=0)] = None,
    currency: Annotated[str | None, Option("Currency of the prices.")] = None,
    csv: Annotated[str | Path | None, Option("File to which every sample is written (.csv).", group="Output")] = None,
    report: Annotated[str | Path | None, Option("Page with charts to write (.html).", group="Output")] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> BenchResult:
    """Time an artifact here, engine alone and from camera to detections: percentiles, throughput, energy, cost.

    Times are milliseconds, energies millijoules per frame. If a run is too short or too noisy for a rate, the rate is
    None and the reason is in `refused`. Raises SpecError, DataError or DeviceError. The command: `edgekd bench`. The
    protocol, with its sources: docs/guides/benchmark.md.
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
        batch=batch,
        target=target_or_none(target),
        prices=Prices(electricity_price, instance_price, currency),
        head=head,
        trust_checkpoint=trust_checkpoint,
    )
    measured = run(job, progress)
    if table:
        write_csv(table, measured.timings)
    if page:
        write_page(page, job.artifact.name, measured)
    return measured

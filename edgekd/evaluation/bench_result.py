"""The result of `edgekd bench`, as docs/reference/json.md describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgekd.core.benchmark import Basis, Stats, Timing
from edgekd.core.documents import INLINE, INTERNAL, Result
from edgekd.core.host_facts import HostFacts
from edgekd.core.machine_state import Moment, Setting
from edgekd.core.power.energy import Energy
from edgekd.core.statistics import Comparison, Interval, Outliers, SlowDown
from edgekd.data.frames import FrameFacts
from edgekd.evaluation.cost import CostPerMillion


@dataclass(frozen=True)
class Conditions:
    """State of the machine, which edgekd reads and never changes.

    Args:
        before, after: Before and after the run.
    """

    setting: Setting = field(metadata=INLINE)
    before: Moment
    after: Moment


@dataclass(frozen=True)
class ColdStart:
    """Start in a process that has the runtime loaded.

    Args:
        load_ms: Loading of the graph.
        first_ms: The first inference.
    """

    load_ms: float
    first_ms: float


@dataclass(frozen=True)
class Throughput:
    """Camera to detections in several streams at once.

    Args:
        streams: Number of streams.
        frames: Frames that were finished.
        fps: Frames per second of all streams together; null where `refused` has the reason.
        interval: Its 95 % interval.
    """

    streams: int
    frames: int
    fps: float | None
    interval: Interval | None
    refused: str | None = field(metadata=INTERNAL)


@dataclass(frozen=True)
class ArtifactResult:
    """The measurements of one artifact.

    Args:
        basis: `measured` on the machine in `host`, as itself or as the target; `stand-in` for another target.
        iterations: Frames that were timed.
        fps: Frames per second, one after the other, all parts included; null where `refused` has the reason.
        batch: Frames per run of the engine alone.
        engine_ms: The engine alone, for a frame: the time of a run divided by `batch`.
        engine_fps: Frames per second of the engine alone; null where `refused` has the reason.
        refused: Figures that are not reported, each with its reason and remedy.
        slow_down: A lasting slow-down; null where there was none.
        decode_ms: Decoding of compressed frames; null where frames are raw.
        throughput: Throughput of several streams; null without `--streams`.
        energy: Energy of a frame, camera to detections, one after the other; null where `refused` has the reason.
        cost: Cost of a million frames; null without prices.
    """

    basis: Basis
    iterations: int
    fps: float | None
    batch: int
    engine_fps: float | None
    refused: tuple[str, ...]
    slow_down: SlowDown | None
    outliers: Outliers
    decode_ms: Stats | None
    preprocess_ms: Stats
    inference_ms: Stats
    postprocess_ms: Stats
    total_ms: Stats
    engine_ms: Stats
    cold_start: ColdStart
    throughput: Throughput | None
    energy: Energy | None
    cost: CostPerMillion | None


@dataclass(frozen=True)
class TimelinePoint:
    """One second of a sustained run; null where a value cannot be read.

    Args:
        at_s: End of this second, in seconds from the beginning.
        cpu_mhz, gpu_mhz: Clock at its end.
        temperature_c: Temperature of the hottest zone at its end.
        watts: Mean power in it.
        p50_ms: Median of the frames in it.
    """

    at_s: float
    cpu_mhz: float | None
    gpu_mhz: float | None
    temperature_c: float | None
    watts: float | None
    p50_ms: float | None


@dataclass(frozen=True)
class SustainedRun:
    """Camera to detections, measured for minutes without a pause.

    Args:
        minutes: Length of the run.
        iterations: Frames that were timed.
        fps: Frames per second, one after the other, all parts included; null where `refused` has the reason.
        refused: Figures that are not reported, each with its reason and remedy.
        slow_down: A lasting slow-down; null where there was none.
        settled_fps: Frames per second after a slow-down, if there was one; null where they are not steady.
        timeline: A point for every second.
    """

    minutes: float
    iterations: int
    fps: float | None
    refused: tuple[str, ...]
    total_ms: Stats
    slow_down: SlowDown | None
    outliers: Outliers
    settled_fps: float | None
    timeline: tuple[TimelinePoint, ...]


@dataclass(frozen=True)
class SpeedUp(Comparison):
    """Time of the other artifact divided by that of the artifact: above 1, the artifact is faster.

    Args:
        verdict: `cannot tell` where the difference is not significant.
    """

    verdict: Literal["faster", "slower", "cannot tell"]


@dataclass(frozen=True)
class OtherArtifact:
    """The artifact of `--against`, measured interleaved with the first.

    Args:
        artifact: Path of the artifact.
        times_as_fast: Comparison from camera to detections.
        engine_times_as_fast: Comparison of the engines alone.
        cost_change: Relative change of the cost from it to the first; null where one is not known.
    """

    artifact: str
    result: ArtifactResult = field(metadata=INLINE)
    times_as_fast: SpeedUp
    engine_times_as_fast: SpeedUp
    cost_change: float | None


@dataclass(frozen=True)
class BenchResult(Result):
    """An artifact measured, engine alone and from camera to detections.

    Args:
        sustained: The sustained run; null without `--minutes`.
        against: The other artifact; null without `--against`.
        timings: Every sample, by side (`artifact`, `against`) and state (`camera`, `engine`).
    """

    host: HostFacts
    frames: FrameFacts
    conditions: Conditions
    result: ArtifactResult = field(metadata=INLINE)
    sustained: SustainedRun | None
    against: OtherArtifact | None
    timings: Mapping[tuple[str, str], Timing] = field(metadata=INTERNAL)

    @property
    def basis(self) -> Basis:
        """`measured`, or `stand-in` where another machine than the target ran it."""
        return self.result.basis

    @property
    def p50_ms(self) -> float:
        """Median milliseconds of a frame, from camera to detections."""
        return self.result.total_ms.p50

    @property
    def p99_ms(self) -> float:
        """99th percentile of the milliseconds of a frame, from camera to detections."""
        return self.result.total_ms.p99

    @property
    def fps(self) -> float | None:
        """Frames a second, one after the other; None where the run was too short or too noisy (`refused`)."""
        return self.result.fps

    @property
    def refused(self) -> tuple[str, ...]:
        """Figures that are not reported, each with its reason."""
        return self.result.refused

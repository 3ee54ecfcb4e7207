"""Latency of a detector on a device: warm-up, then a minimum of frames and of seconds, with every sample kept.

Each frame is timed in up to four parts: decode, preprocess, inference and postprocess. Reading files is not part of
any.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from edgekd.core import statistics
from edgekd.core.errors import SpecError
from edgekd.core.statistics import Outliers, SlowDown

if TYPE_CHECKING:
    Clock = Callable[[], float]

Basis = Literal["measured", "stand-in"]
MEASURED: Basis = "measured"
STAND_IN: Basis = "stand-in"
MIN_FRAMES = 50
"""Frames of a run for which frames per second are reported."""
MIN_SECONDS = 2.0
"""Seconds of such a run."""
MAX_NOISE = 0.05
"""Relative uncertainty of its mean, and relative slow-down during it."""
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


class Runs(Protocol):
    """Anything that computes an output from a batch, such as an engine's session."""

    def run(self, batch: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class FramePipeline:
    """A candidate to measure.

    preprocess: frame -> (batch float32 [1, 3, h, w], context for postprocess).
    postprocess: (output, context) -> detections.
    decode: compressed frame -> frame; None where frames are not compressed.
    """

    session: Runs
    preprocess: Callable[[Any], tuple[np.ndarray, Any]]
    postprocess: Callable[[np.ndarray, Any], object]
    decode: Callable[[Any], Any] | None = None

    def process(self, frame: Any) -> object:
        """Process one frame up to its detections, untimed."""
        batch, context = self.preprocess(frame if self.decode is None else self.decode(frame))
        return self.postprocess(self.session.run(batch), context)


@dataclass(frozen=True)
class Stats:
    """A summary of samples, in their unit. Percentiles interpolate linearly between samples.

    Args:
        p50, p90, p99: Percentile.
        p999: 99.9th percentile; null where the run is too short for it.
        mean: Mean.
        min: Least.
        intervals: 95 % intervals of `p50`, `p90`, `p99`, `p999` and `mean`; null where the run is too short.
    """

    p50: float
    p90: float
    p99: float
    p999: float | None
    mean: float
    min: float
    intervals: Mapping[str, list[float] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """A summary of a run.

    Args:
        iterations: Number of runs that were timed.
        fps: Runs a second, one after the other; null where `refused` has the reason.
        refused: Why a rate is not reported.
        slow_down: Null where the run did not become slower.
    """

    iterations: int
    fps: float | None
    refused: list[str]
    slow_down: SlowDown | None
    outliers: Outliers


@dataclass(frozen=True)
class TimingSummary(RunSummary):
    """A summary of the times of a graph.

    Args:
        basis: `measured`, or `stand-in` for another machine than the target.
        decode_ms: Null where frames were not compressed.
    """

    basis: Basis
    decode_ms: Stats | None
    preprocess_ms: Stats
    inference_ms: Stats
    postprocess_ms: Stats
    total_ms: Stats


@dataclass(frozen=True, eq=False)
class Timing:
    """Samples of one benchmark: float64 [n] milliseconds for each part, in the order of the frames.

    starts_s: start of each frame, in seconds from the first; decode_ms: None where frames are not compressed.
    basis: `measured` when the device is the target, `stand-in` when another machine stood in for it.
    """

    starts_s: np.ndarray
    decode_ms: np.ndarray | None
    preprocess_ms: np.ndarray
    inference_ms: np.ndarray
    postprocess_ms: np.ndarray
    total_ms: np.ndarray
    basis: Basis

    def of_frames(self, batch: int) -> Timing:
        """Return the milliseconds of one frame where each sample was of a run of `batch` frames."""
        parts = ("preprocess_ms", "inference_ms", "postprocess_ms", "total_ms")
        return self if batch == 1 else replace(self, **{name: getattr(self, name) / batch for name in parts})

    @property
    def fps(self) -> float | None:
        """Frames per second of sequential frames with all parts; None where `refused` has the reason."""
        return None if self.refused else 1000.0 / float(self.total_ms.mean())

    @cached_property
    def refused(self) -> str | None:
        """Reason why frames per second are not reported, with the remedy; None where they are."""
        return rate_refusal(self.total_ms, self.starts_s)

    def summary(self) -> TimingSummary:
        """Return a summary of all parts."""
        return TimingSummary(
            **vars(summarize_run(self.total_ms, self.starts_s)),
            basis=self.basis,
            decode_ms=None if self.decode_ms is None else summarize(self.decode_ms),
            preprocess_ms=summarize(self.preprocess_ms),
            inference_ms=summarize(self.inference_ms),
            postprocess_ms=summarize(self.postprocess_ms),
            total_ms=summarize(self.total_ms),
        )


def summarize(samples: np.ndarray) -> Stats:
    """Return the statistics of `samples` float64 [n], n >= 1, in the order of measurement."""
    values = dict(zip(PERCENTILES, np.percentile(samples, tuple(PERCENTILES.values())).tolist()))  # noqa: B905
    percentiles, mean = statistics.intervals(samples, tuple(PERCENTILES.values()))
    intervals = dict(zip((*PERCENTILES, "mean"), (*percentiles, mean)))  # noqa: B905
    return Stats(
        p50=values["p50"],
        p90=values["p90"],
        p99=values["p99"],
        p999=values["p999"] if intervals["p999"] else None,
        mean=float(samples.mean()),
        min=float(samples.min()),
        intervals={name: [of.low, of.high] if of else None for name, of in intervals.items()},
    )


def summarize_run(samples_ms: np.ndarray, starts_s: np.ndarray | None = None) -> RunSummary:
    """Summarize a run of float64 [n] milliseconds; starts_s: None for runs without a gap between them."""
    if starts_s is None:
        starts_s = (np.cumsum(samples_ms) - samples_ms) / 1000
    slow = statistics.slow_down(samples_ms, starts_s)
    refusal = _rate_refusal(samples_ms, slow)
    return RunSummary(
        len(samples_ms),
        None if refusal else 1000.0 / float(samples_ms.mean()),
        [f"fps: {refusal}"] if refusal else [],
        slow,
        statistics.outliers(samples_ms),
    )


def rate_refusal(samples_ms: np.ndarray, starts_s: np.ndarray) -> str | None:
    """Return why no rate is reported of frames that took float64 [n] milliseconds; None where it is."""
    return _rate_refusal(samples_ms, statistics.slow_down(samples_ms, starts_s))


def _rate_refusal(samples_ms: np.ndarray, slow: SlowDown | None) -> str | None:
    count, seconds = len(samples_ms), float(samples_ms.sum()) / 1000
    if count < MIN_FRAMES or seconds < MIN_SECONDS * (1 - 1e-6):  # sums of floats
        return f"{count} frames in {seconds:.3g} s are too few; measure at least {MIN_FRAMES} and {MIN_SECONDS:g} s"
    if slow and slow.ratio > 1 + MAX_NOISE:
        return (
            f"frames took {slow.ratio:.2f} times as long after {slow.at_s:.0f} s; stop what else runs here, "
            "let it reach its temperature first, or lock the clocks"
        )
    noise = statistics.mean_interval(samples_ms).half / float(samples_ms.mean())
    if noise > MAX_NOISE:
        return (
            f"mean uncertain by {noise:.0%}; stop what else runs here, lock the clocks, or measure "
            f"{min(math.ceil((noise / MAX_NOISE) ** 2), 1000)} times as long"
        )
    return None


def compare(first: Timing, second: Timing, block: int) -> statistics.Comparison:
    """Return the ratio of `first` to `second`, by the medians of interleaved blocks of `block` frames."""
    rounds = min(len(first.total_ms), len(second.total_ms)) // block
    both = (each.total_ms[: rounds * block].reshape(rounds, block) for each in (first, second))
    return statistics.compare(*(np.median(each, axis=1) for each in both))


def timing_of(stamps_s: np.ndarray, basis: Basis, decoded: bool = False) -> Timing:
    """Return the timing in `stamps_s` float64 [n, 5]: of each frame its start, and the end of each of its four parts.

    decoded: whether frames are compressed.
    """
    parts_ms = np.diff(stamps_s, axis=1) * 1000.0
    total_ms = (stamps_s[:, 4] - stamps_s[:, 0]) * 1000.0
    starts_s = stamps_s[:, 0] - stamps_s[0, 0]
    decode_ms = parts_ms[:, 0] if decoded else None
    return Timing(starts_s, decode_ms, parts_ms[:, 1], parts_ms[:, 2], parts_ms[:, 3], total_ms, basis)


def benchmark_interleaved(
    candidates: Mapping[str, FramePipeline],
    frames: Sequence[Any],
    *,
    block: int = 10,
    min_iterations: int = 50,
    min_seconds: float = 2.0,
    warmup: int = 10,
    clock: Clock = time.perf_counter,
    basis: Basis = STAND_IN,
) -> dict[str, Timing]:
    """Measure several candidates interleaved, so that other load and temperature affect all of them alike.

    Blocks have `block` frames; every other round is in reverse order. All candidates get each frame equally often, and
    each has at least `min_iterations` frames and `min_seconds`; the `warmup` frames before them do not count. Raises
    SpecError without frames, DeviceError from a session.
    """
    if not candidates or not len(frames) or min_iterations < 1 or block < 1:
        raise SpecError(
            "nothing to measure",
            expected="a candidate, a frame and at least one iteration",
            found=f"{len(candidates)} candidates, {len(frames)} frames, {min_iterations} iterations, blocks of {block}",
        )
    lanes = {name: _Lane(candidate, frames, clock) for name, candidate in candidates.items()}
    order = list(lanes.values())
    # Another candidate's block leaves the caches cold: one uncounted frame warms them.
    settle = 1 if len(order) > 1 else 0
    for lane in order:
        lane.measure(warmup, keep=False)
    with _no_garbage_collection():
        while not all(lane.has(min_iterations, min_seconds) for lane in order):
            for lane in order:
                lane.measure(settle, keep=False)
                lane.measure(block, keep=True)
            order.reverse()
    return {name: timing_of(lane.stamps, basis, candidates[name].decode is not None) for name, lane in lanes.items()}


class _Lane:
    """One candidate, its position in the frames, and its stamps in seconds: five for each frame."""

    def __init__(self, candidate: FramePipeline, frames: Sequence[Any], clock: Clock) -> None:
        self._stamps = array("d")
        self._seconds = 0.0
        self._candidate = candidate
        self._frames = itertools.cycle(frames)
        self._clock = clock

    @property
    def stamps(self) -> np.ndarray:
        """float64 [n, 5]: start, decoded, preprocessed, inferred, end."""
        return np.array(self._stamps).reshape(-1, 5)

    def has(self, iterations: int, seconds: float) -> bool:
        return len(self._stamps) >= 5 * iterations and self._seconds >= seconds

    def measure(self, count: int, *, keep: bool) -> None:
        clock, preprocess, postprocess = self._clock, self._candidate.preprocess, self._candidate.postprocess
        run, decode = self._candidate.session.run, self._candidate.decode
        for frame in itertools.islice(self._frames, count):
            start = decoded = clock()
            if decode is not None:
                frame = decode(frame)
                decoded = clock()
            batch, context = preprocess(frame)
            preprocessed = clock()
            output = run(batch)
            inferred = clock()
            postprocess(output, context)
            end = clock()
            if keep:
                self._stamps.extend((start, decoded, preprocessed, inferred, end))
                self._seconds += end - start


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from running inside a timed frame."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""Latency of a detector on a device: warm-up, then enough frames and enough seconds, every sample kept.

Each frame is timed in three parts: preprocess (frame to batch), inference (the engine) and postprocess (output to
detections). Reading frames from disk is not part of any of them.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgekd.errors import SpecError

if TYPE_CHECKING:
    Clock = Callable[[], float]

MEASURED, STAND_IN = "measured", "stand-in"


class Runs(Protocol):
    """What is measured: anything that turns a batch into an output, such as an engine's session."""

    def run(self, batch: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Candidate:
    """One thing to measure.

    preprocess: frame -> (batch float32 [1, 3, h, w], whatever postprocess needs to know about that frame).
    postprocess: (output, what preprocess said) -> detections.
    """

    session: Runs
    preprocess: Callable[[Any], tuple[np.ndarray, Any]]
    postprocess: Callable[[np.ndarray, Any], object]


@dataclass(frozen=True)
class Stats:
    """A summary of samples, in their unit. Percentiles interpolate linearly between samples."""

    p50: float
    p90: float
    p99: float
    mean: float
    min: float


@dataclass(frozen=True, eq=False)
class Timing:
    """What one benchmark saw: float64 [n] milliseconds for each part, in the order of the frames.

    basis: `measured` when the device is the target, `stand-in` when another machine stood in for it.
    """

    preprocess_ms: np.ndarray
    inference_ms: np.ndarray
    postprocess_ms: np.ndarray
    total_ms: np.ndarray
    basis: str

    @property
    def fps(self) -> float:
        """Frames per second, one after the other, all parts included."""
        return 1000.0 / float(self.total_ms.mean())

    @property
    def engine_fps(self) -> float:
        """Frames per second of the engine alone."""
        return 1000.0 / float(self.inference_ms.mean())

    def summary(self) -> dict[str, Any]:
        """Everything but the samples, ready for JSON."""
        parts = {
            "preprocess_ms": self.preprocess_ms,
            "inference_ms": self.inference_ms,
            "postprocess_ms": self.postprocess_ms,
            "total_ms": self.total_ms,
        }
        return {
            "basis": self.basis,
            "iterations": len(self.total_ms),
            "fps": self.fps,
            "engine_fps": self.engine_fps,
            **{name: asdict(summarize(samples)) for name, samples in parts.items()},
        }


def summarize(samples: np.ndarray) -> Stats:
    """The statistics of `samples` float64 [n], n >= 1."""
    p50, p90, p99 = np.percentile(samples, (50, 90, 99)).tolist()
    return Stats(p50=p50, p90=p90, p99=p99, mean=float(samples.mean()), min=float(samples.min()))


def timing_of(stamps_s: np.ndarray, basis: str) -> Timing:
    """The timing in `stamps_s` float64 [n, 4]: each frame's start, end of preprocess, of inference, of postprocess."""
    parts_ms = np.diff(stamps_s, axis=1) * 1000.0
    total_ms = (stamps_s[:, 3] - stamps_s[:, 0]) * 1000.0
    return Timing(parts_ms[:, 0], parts_ms[:, 1], parts_ms[:, 2], total_ms, basis)


def benchmark(
    session: Runs,
    preprocess: Callable[[Any], tuple[np.ndarray, Any]],
    postprocess: Callable[[np.ndarray, Any], object],
    frames: Sequence[Any],
    *,
    min_iterations: int = 50,
    min_seconds: float = 2.0,
    warmup: int = 10,
    clock: Clock = time.perf_counter,
    basis: str = STAND_IN,
) -> Timing:
    """Measure one candidate on `frames`, repeated as often as needed.

    Stops after at least `min_iterations` frames that took at least `min_seconds` together; `warmup` frames before them
    are not counted. Raises SpecError when there is nothing to measure, DeviceError from the session.
    """
    only = Candidate(session, preprocess, postprocess)
    return benchmark_interleaved(
        {"": only},
        frames,
        block=1,
        min_iterations=min_iterations,
        min_seconds=min_seconds,
        warmup=warmup,
        clock=clock,
        basis=basis,
    )[""]


def benchmark_interleaved(
    candidates: Mapping[str, Candidate],
    frames: Sequence[Any],
    *,
    block: int = 10,
    min_iterations: int = 50,
    min_seconds: float = 2.0,
    warmup: int = 10,
    clock: Clock = time.perf_counter,
    basis: str = STAND_IN,
) -> dict[str, Timing]:
    """Measure several candidates in one run, taking turns, so that a busy spell or a warm CPU meets them all alike.

    Each turn is `block` frames; every other round goes in reverse order. All candidates see the frames
    equally often. Minimums, warm-up and errors as in `benchmark`, for each candidate.
    """
    if not candidates or not len(frames) or min_iterations < 1 or block < 1:
        raise SpecError(
            "nothing to measure",
            expected="a candidate, a frame and at least one iteration",
            found=f"{len(candidates)} candidates, {len(frames)} frames, {min_iterations} iterations, blocks of {block}",
        )
    lanes = {name: _Lane(candidate, frames, clock) for name, candidate in candidates.items()}
    order = list(lanes.values())
    # After another candidate's turn caches are cold for the next one: one uncounted frame brings them back.
    settle = 1 if len(order) > 1 else 0
    for lane in order:
        lane.measure(warmup, keep=False)
    with _no_garbage_collection():
        while not all(lane.has(min_iterations, min_seconds) for lane in order):
            for lane in order:
                lane.measure(settle, keep=False)
                lane.measure(block, keep=True)
            order.reverse()
    return {name: timing_of(np.array(lane.stamps), basis) for name, lane in lanes.items()}


class _Lane:
    """One candidate, where it is in the frames, and its stamps: seconds at start, preprocessed, inferred, end."""

    def __init__(self, candidate: Candidate, frames: Sequence[Any], clock: Clock) -> None:
        self.stamps: list[tuple[float, float, float, float]] = []
        self._seconds = 0.0
        self._candidate = candidate
        self._frames = itertools.cycle(frames)
        self._clock = clock

    def has(self, iterations: int, seconds: float) -> bool:
        return len(self.stamps) >= iterations and self._seconds >= seconds

    def measure(self, count: int, *, keep: bool) -> None:
        clock, preprocess, postprocess = self._clock, self._candidate.preprocess, self._candidate.postprocess
        run = self._candidate.session.run
        for frame in itertools.islice(self._frames, count):
            start = clock()
            batch, context = preprocess(frame)
            preprocessed = clock()
            output = run(batch)
            inferred = clock()
            postprocess(output, context)
            end = clock()
            if keep:
                self.stamps.append((start, preprocessed, inferred, end))
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

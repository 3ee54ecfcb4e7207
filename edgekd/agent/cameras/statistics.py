"""Counts and latencies of cameras and stages, in memory that does not grow with time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgekd.core.documents import INLINE

State = Literal["opening", "running", "stalled", "retrying", "ended", "failed"]
OPENING: State = "opening"
RUNNING: State = "running"
STALLED: State = "stalled"
RETRYING: State = "retrying"
ENDED: State = "ended"
FAILED: State = "failed"

_LEAST_MS = 0.01  # upper edge of the first bin
_RATIO = 1.01  # of the edges of a bin: the error of a percentile
_BINS = 1700  # up to 200 seconds


@dataclass(frozen=True)
class Latency:
    """Latency in milliseconds since the start, from the capture of a frame to its detections; up to 1 % too high.

    Args:
        p50, p95, p99: Percentile.
        max: The longest.
    """

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class FrameCounts:
    """Frames of one camera since the start.

    Args:
        captured: Frames that were read.
        detected: Frames with detections.
        dropped: Frames that a newer one replaced, or that were left at the end.
        rejected: Frames that are no picture of three 8-bit channels.
    """

    captured: int
    detected: int
    dropped: int
    rejected: int

    @property
    def pending(self) -> int:
        """Number of frames on their way."""
        return self.captured - self.detected - self.dropped - self.rejected


@dataclass(frozen=True)
class CameraStatus:
    """Status of one camera.

    Args:
        name: Name of the camera.
        state: `opening`; `running`; `stalled`: it has not delivered for too long; `retrying`: it failed, and is opened
            again after a delay; `ended`: a file came to its end; `failed`: a file cannot be read.
        problem: The last problem, which may be over; null without one.
        attempts: Number of times that it was opened.
        latency_ms: Null before the first detections.
        drift: Distance of recent frames from the model's record; null where that is not known.
    """

    name: str
    state: State
    problem: str | None
    attempts: int
    frames: FrameCounts = field(metadata=INLINE)
    latency_ms: Latency | None
    drift: float | None


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of the stages, each summed over its threads.

    Args:
        preprocess_s, engine_s, postprocess_s: Work.
        starved_s: The engine waited although a frame was there, which was being preprocessed.
        blocked_s: The engine waited for postprocessing.
    """

    preprocess_s: float
    engine_s: float
    postprocess_s: float
    starved_s: float
    blocked_s: float


@dataclass(frozen=True)
class ServiceStatus:
    """Status of the service.

    Args:
        seconds: Since the cameras were opened.
        model: Identity of the bundle in use.
        cameras: The cameras, in the order of their sources.
        stages: Where the time goes.
    """

    seconds: float
    model: str
    cameras: list[CameraStatus]
    stages: StageSeconds


class LatencyHistogram:
    """Counts of latencies in logarithmic bins: percentiles of any number of frames in a few kilobytes."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._max_ms = 0.0

    def add(self, ms: float) -> None:
        """Count a latency."""
        bin_ = math.ceil(math.log(max(ms, _LEAST_MS) / _LEAST_MS) / math.log(_RATIO))
        self._counts[min(bin_, _BINS - 1)] += 1
        self._max_ms = max(self._max_ms, ms)

    def summary(self) -> Latency | None:
        """Return the percentiles, each the upper edge of its bin; None without latencies."""
        cumulative = np.cumsum(self._counts)
        if not cumulative[-1]:
            return None
        bins = np.searchsorted(cumulative, np.array([0.50, 0.95, 0.99]) * cumulative[-1])
        edges = np.minimum(_LEAST_MS * _RATIO ** bins.astype(np.float64), self._max_ms)
        p50, p95, p99 = edges.tolist()
        return Latency(p50, p95, p99, self._max_ms)

"""Number of cameras that an engine serves at a frame rate, measured with synthetic cameras."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.cameras.service import CameraService
from edgekd.agent.cameras.sources import CameraSource, synthetic_frames
from edgekd.agent.cameras.statistics import Latency

if TYPE_CHECKING:
    from edgekd.agent.cameras.pipeline import ModelProvider
    from edgekd.agent.serving import Model

FRAME_SIZE = (1920, 1080)
"""Width and height of the frames in pixels."""
SECONDS = 5.0
"""Seconds of a run."""
MIN_DETECTED = 0.97
"""Minimum share of the frames of each camera that has to be detected; a few are on their way at the end."""


@dataclass(frozen=True)
class CapacityRun:
    """A run with so many cameras.

    Args:
        cameras: Number of cameras.
        holds: True where nearly all frames of each camera were detected.
        fps: Frames a second with detections, of the camera with the fewest.
        dropped: Dropped frames of all cameras.
        latency_ms: Of the camera with the highest p99; null where none was detected.
    """

    cameras: int
    holds: bool
    fps: float
    dropped: int
    latency_ms: Latency | None


@dataclass(frozen=True)
class CameraCapacity:
    """Number of cameras that can be served.

    Args:
        fps: Frames a second of each camera.
        limit: Number of cameras up to which was measured.
        largest: The largest number that holds the rate; 0 for none.
        runs: The runs, in their order.
    """

    fps: float
    limit: int
    largest: int
    runs: list[CapacityRun]


class OpenModel:
    """A model that stays the same, for a service."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def close(self) -> None:
        """Release the model."""
        self.model.session.close()


def measure_capacity(open_model: Callable[[], ModelProvider], fps: float, limit: int) -> CameraCapacity:
    """Find the largest number of synthetic cameras, up to `limit`, of which nearly all frames are detected.

    open_model: called for each run. Raises DeviceError, HashError.
    """
    runs: list[CapacityRun] = []

    def holds(cameras: int) -> bool:
        runs.append(_run(open_model, fps, cameras))
        return runs[-1].holds

    return CameraCapacity(fps, limit, largest_that_holds(limit, holds), runs)


def largest_that_holds(limit: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number from 1 to `limit` for which `holds` is true, 0 for none: by doubling, then halving.

    holds: true up to some number, and false beyond.
    """
    low, high = 0, 1
    while holds(high):
        if high == limit:
            return limit
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _run(open_model: Callable[[], ModelProvider], fps: float, cameras: int) -> CapacityRun:
    read = partial(synthetic_frames, *FRAME_SIZE, fps)
    sources = [CameraSource(str(number), read, max_fps=float("inf")) for number in range(cameras)]
    status = CameraService(sources, open_model, lambda result: None).run(SECONDS)
    detected = min(each.frames.detected for each in status.cameras)
    latencies = [each.latency_ms for each in status.cameras if each.latency_ms]
    return CapacityRun(
        cameras=cameras,
        holds=detected >= MIN_DETECTED * fps * SECONDS,
        fps=detected / SECONDS,
        dropped=sum(each.frames.dropped for each in status.cameras),
        latency_ms=max(latencies, key=lambda each: each.p99, default=None),
    )

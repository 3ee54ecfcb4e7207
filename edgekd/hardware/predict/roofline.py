"""Layers under the roof of a device: what they compute for each byte they move, and how fast that goes. Pure.

The roof is the least of the dense peak and of what memory can feed at that many operations a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.hardware.predict.device import BYTES, Device
from edgekd.hardware.predict.work import Work


@dataclass(frozen=True)
class Point:
    """A layer with arithmetic. intensity: operations a byte; rate: operations a second; us: its microseconds."""

    name: str
    kind: str
    intensity: float
    rate: float
    us: float


@dataclass(frozen=True)
class Roofline:
    """A device's roof, in operations and bytes a second, and the layers under it, in order.

    other_us: microseconds of layers without arithmetic, which have no place under it.
    """

    peak: float
    bandwidth: float
    points: tuple[Point, ...]
    other_us: float

    @property
    def ridge(self) -> float:
        """Operations a byte from which arithmetic is the limit, and no longer memory."""
        return self.peak / self.bandwidth

    def roof(self, intensity: float) -> float:
        """Operations a second that a layer of that intensity could reach."""
        return min(self.peak, self.bandwidth * intensity)


def roofline(works: Sequence[Work], us: Sequence[float], device: Device) -> Roofline:
    """The layers of a network with their times, on a device; a multiply-add is two operations."""
    points, other = [], 0.0
    for work, took in zip(works, us, strict=True):
        operations, moved = 2 * work.multiply_adds, (work.read + work.written + work.weights) * BYTES[device.precision]
        if operations and moved and took > 0:
            points.append(Point(work.name, work.kind, operations / moved, operations / took * 1e6, took))
        else:
            other += took
    return Roofline(device.peak, device.bandwidth, tuple(points), other)

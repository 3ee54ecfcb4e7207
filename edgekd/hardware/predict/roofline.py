"""Roofline: operations per byte and per second of the layers on a device. Pure.

The roof is the lower of the dense peak and of memory bandwidth times operations per byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.hardware.predict.device import BYTES, GpuFigures
from edgekd.hardware.predict.dla import DlaFigures
from edgekd.hardware.predict.work import Work


@dataclass(frozen=True)
class RooflinePoint:
    """A layer with arithmetic. intensity: Operations per byte; rate: operations per second; us: its microseconds."""

    name: str
    kind: str
    intensity: float
    rate: float
    us: float


@dataclass(frozen=True)
class Roofline:
    """The peak operations and bytes per second of a device, and its layers in order.

    other_us: microseconds of layers without arithmetic, which have no point.
    """

    peak: float
    bandwidth: float
    points: tuple[RooflinePoint, ...]
    other_us: float

    @property
    def ridge(self) -> float:
        """Operations per byte above which layers are limited by arithmetic, not by memory."""
        return self.peak / self.bandwidth

    @property
    def total_us(self) -> float:
        """Microseconds of all layers."""
        return sum(point.us for point in self.points) + self.other_us

    @property
    def memory_bound_us(self) -> float:
        """Microseconds of memory-bound layers."""
        return sum(point.us for point in self.points if point.intensity < self.ridge)

    def roof(self, intensity: float) -> float:
        """Return the largest operations per second of a layer with `intensity` operations per byte."""
        return min(self.peak, self.bandwidth * intensity)


def roofline(works: Sequence[Work], us: Sequence[float], device: GpuFigures | DlaFigures) -> Roofline:
    """Return the roofline of layers with their times on a device; a multiply-add is two operations."""
    points, other = [], 0.0
    for work, layer_us in zip(works, us, strict=True):
        operations, moved = 2 * work.multiply_adds, (work.read + work.written + work.weights) * BYTES[device.precision]
        if operations and moved and layer_us > 0:
            points.append(
                RooflinePoint(work.name, work.kind, operations / moved, operations / layer_us * 1e6, layer_us)
            )
        else:
            other += layer_us
    return Roofline(device.peak, device.bandwidth, tuple(points), other)

"""The numbers behind the charts that `templates/charts.html` draws: scales, bins, and lines with gaps. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from edgekd.evaluation.report.text import known
from edgekd.evaluation.report.types import FrameLatency

BINS = 60
"""Number of bins of a latency histogram."""


@dataclass(frozen=True)
class Axis:
    """A scale from its first tick to its last; values beyond are drawn at its ends. log: logarithmic scale."""

    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Return the position of a value on the axis, 0 to 1."""
        low, here, high = (math.log10(each) if self.log else each for each in (self.ticks[0], value, self.ticks[-1]))
        return min(max((here - low) / (high - low), 0.0), 1.0)

    def across(self, value: float) -> str:
        """Return the position of a value from the left, as CSS percentage."""
        return f"{100 * self.share(value):.2f}%"

    def width(self, left: float, right: float, factor: float = 1.0) -> str:
        """Return the distance between two values times `factor`, as CSS percentage."""
        return f"{100 * factor * (self.share(right) - self.share(left)):.2f}%"

    def down(self, value: float, bottom: float, top: float = 12) -> float:
        """Return the position of a value from the top of a chart in pixels, on an axis from `bottom` up to `top`."""
        return round(bottom - (bottom - top) * self.share(value), 1)

    def curve(
        self, values: Sequence[float | None], bottom: float, top: float, at: Sequence[float] | None = None
    ) -> list[list[tuple[float, float]]]:
        """Return a line as segments without gaps, of points: x from 0 to 1, and y from the top in pixels.

        at: x coordinates of the values, from 0; evenly spaced by default.
        """
        at = range(len(values)) if at is None else at
        end = max(at[-1], 1e-9)
        stretches = groupby(zip(at, values, strict=True), key=lambda pair: known(pair[1]))
        return [
            [(x / end, self.down(value, bottom, top)) for x, value in stretch if known(value)]
            for has_values, stretch in stretches
            if has_values
        ]

    def histogram(self, samples: Sequence[float]) -> Iterator[tuple[float, float, float]]:
        """Yield both edges of BINS bins, and their height as a share of the highest."""
        counts, edges = np.histogram(samples, bins=BINS, range=(self.ticks[0], self.ticks[-1]))
        for count, (left, right) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True):
            yield left, right, count / max(counts.max(), 1)


def linear_axis(values: Iterable[float | None], about: int = 5) -> Axis:
    """Return an axis that holds the values, with roughly `about` ticks."""
    numbers = [value for value in values if value is not None]
    return Axis(nice_ticks(min(numbers), max(numbers), about))


def log_axis(values: Sequence[float]) -> Axis:
    """Return an axis of powers of ten that enclose the values."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    return Axis(tuple(10.0**power for power in range(first, max(last, first + 1) + 1)), log=True)


def latency_axis(latencies: Sequence[FrameLatency]) -> Axis:
    """Return the scale of a latency chart, in ms.

    It ends a little after the slowest p99: rare outliers would squeeze everything else.
    """
    lows = [min(row.samples_ms, default=row.p50_ms) for row in latencies]
    return linear_axis([min(lows), 1.05 * max(row.p99_ms for row in latencies)])


def nice_ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Return round numbers that enclose [low, high], in steps of 1, 2 or 5 times a power of ten, roughly `about`.

    A narrower range is widened to a thousandth of its magnitude, or of 1.
    """
    high = max(high, low + 1e-3 * max(abs(low), 1.0))
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def bars(values: Sequence[float | None], height: int) -> str:
    """Return an SVG path with a bar for each value, one unit wide, the highest as high as the chart."""
    top = max([1e-12, *(value for value in values if known(value))])
    return "".join(
        f"M{at}.12 {height}v{-height * min(max(value, 0.0) / top, 1.0):.1f}h.76V{height}z"
        for at, value in enumerate(values)
        if known(value)
    )

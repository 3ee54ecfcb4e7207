"""Inline SVG charts that keep their text size at every width.

Positions across are percentages and positions down are pixels, with no viewBox: a chart takes the width of its box, and
labels stay as large on a phone as on a desk. "Before" and "after" differ in shape as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np

from edgekd.evaluation.report.markup import Html, tag
from edgekd.evaluation.report.text import known, milliseconds
from edgekd.evaluation.report.types import Latency
from edgekd.hardware.predict.roofline import Roofline

T = TypeVar("T")

STRIP_HEIGHT = 20
SCATTER_HEIGHT = 280
TIME_LINE_HEIGHT, ROOFLINE_HEIGHT = 110, 320
BINS = 60
ROW_HEIGHT, ROW_GAP, HISTOGRAM_HEIGHT, AXIS_HEIGHT = 124, 18, 52, 24


def nice_ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Round numbers that enclose [low, high], in steps of 1, 2 or 5 times a power of ten, roughly `about` of them.

    A range too narrow to tell apart on a page is widened to a thousandth of its place.
    """
    high = max(high, low + 1e-3 * max(abs(low), 1.0))
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def change_axis(ticks: Sequence[float]) -> Html:
    """The scale above a column of `change_strip`s."""
    labels = (_text(f"{tick:.2g}", _place(tick, ticks), 14, "middle") for tick in ticks)
    return tag("svg", *labels, class_="strip axis", height=STRIP_HEIGHT, aria_hidden="true")


def change_strip(before: float | None, after: float | None, ticks: Sequence[float]) -> Html:
    """One row of a dumbbell plot: a ring before, a diamond after, a line between. The numbers stand beside it."""
    middle = STRIP_HEIGHT / 2
    parts = [_line(_place(tick, ticks), 0, _place(tick, ticks), STRIP_HEIGHT, "grid") for tick in ticks]
    if known(before) and known(after):
        parts.append(_line(_place(before, ticks), middle, _place(after, ticks), middle, "link"))
    if known(before):
        parts.append(tag("circle", cx=_place(before, ticks), cy=middle, r=6, class_="before"))
    if known(after):
        diamond = tag("path", d="M0-5 5 0 0 5-5 0z")
        parts.append(tag("svg", diamond, x=_place(after, ticks), y=middle, overflow="visible", class_="after"))
    return tag("svg", *parts, class_="strip", height=STRIP_HEIGHT, aria_hidden="true")


def size_strip(before: int | None, after: int | None, largest: int) -> Html:
    """One row of a bar chart: an outlined bar before, a filled, thinner bar after."""
    scale = (0.0, float(max(largest, 1)))
    bars = []
    if before is not None:
        bars.append(tag("rect", x=0, y=3, width=_place(before, scale), height=14, rx=2, class_="before"))
    if after is not None:
        bars.append(tag("rect", x=0, y=6, width=_place(after, scale), height=8, rx=1, class_="after"))
    return tag("svg", *bars, class_="strip", height=STRIP_HEIGHT, aria_hidden="true")


def legend(shape: str) -> Html:
    """What the two marks of a chart mean; `shape` is "dumbbell" or "bars"."""
    if shape == "dumbbell":
        marks = (tag("circle", cx=8, cy=8, r=6, class_="before"), tag("path", d="M8 3l5 5-5 5-5-5z", class_="after"))
    else:
        bar = {"x": 1, "width": 14, "rx": 2}
        marks = (tag("rect", y=2, height=12, class_="before", **bar), tag("rect", y=4, height=8, class_="after", **bar))
    keys = (
        tag("span", tag("svg", mark, class_="key", width=16, height=16, aria_hidden="true"), f" {word}")
        for mark, word in zip(marks, ("before", "after"), strict=True)
    )
    return tag("p", *keys, class_="legend")


def latency_ticks(latencies: Sequence[Latency]) -> tuple[float, ...]:
    """The scale of `latency_chart`, in ms.

    It ends a little after the slowest p99: rare outliers would squeeze everything else.
    """
    lows = [min(row.samples_ms, default=row.p50_ms) for row in latencies]
    return nice_ticks(min(lows), 1.05 * max(row.p99_ms for row in latencies))


def latency_chart(latencies: Sequence[Latency], ticks: Sequence[float]) -> Html:
    """Histograms of the total latency, one under the other on one scale, with p50, p90 and p99 marked."""
    plots_end = len(latencies) * (ROW_HEIGHT + ROW_GAP)
    height = plots_end + AXIS_HEIGHT
    grid = (_line(_place(tick, ticks), 0, _place(tick, ticks), plots_end, "grid") for tick in ticks)
    numbers = (_text(f"{tick:g}", _place(tick, ticks), plots_end + 18, "middle", "tick") for tick in ticks)
    rows = (
        part for index, row in enumerate(latencies) for part in _latency_row(row, index * (ROW_HEIGHT + ROW_GAP), ticks)
    )
    said = "; ".join(f"{row.label} on {row.engine}: median {milliseconds(row.p50_ms)}" for row in latencies)
    title = tag("title", f"Latency of each frame in milliseconds. {said}.")
    return tag("svg", title, *grid, *rows, *numbers, class_="latency", role="img", height=height)


def _latency_row(row: Latency, top: float, ticks: Sequence[float]) -> list[Html]:
    base = top + ROW_HEIGHT
    parts = [_text(f"{row.label} · {row.basis}", "0%", top + 16, "start", f"name {row.label}")]
    counts, edges = np.histogram(row.samples_ms, bins=BINS, range=(ticks[0], ticks[-1]))
    for share, (left, right) in zip(counts / max(counts.max(), 1), pairwise(edges), strict=True):
        if share:
            height = max(HISTOGRAM_HEIGHT * float(share), 1.0)
            width = f"{100 * (right - left) / (ticks[-1] - ticks[0]):.2f}%"
            x = _place(left, ticks)
            parts.append(
                tag("rect", x=x, y=f"{base - height:.1f}", width=width, height=f"{height:.1f}", class_=row.label)
            )
    parts.append(_line("0%", base, "100%", base, "base"))
    for index, (name, value) in enumerate((("p50", row.p50_ms), ("p90", row.p90_ms), ("p99", row.p99_ms))):
        label_y = top + 34 + 14 * index
        x = _place(value, ticks)
        parts.append(_line(x, label_y - 10, x, base, "mark"))
        anchor = ("start", "4") if value - ticks[0] < 0.75 * (ticks[-1] - ticks[0]) else ("end", "-4")
        parts.append(_text(f"{name} {milliseconds(value)}", x, label_y, anchor[0], "quantile", dx=anchor[1]))
    return parts


def time_line(at_s: Sequence[float], values: Sequence[float | None], unit: str) -> Html:
    """One value over a run, in seconds from its start, as a line that is broken where there is none."""
    shown = [value for value in values if known(value)]
    ticks = nice_ticks(min(shown), max(shown), 3)
    end = max(at_s[-1], 1e-9)
    grid = [_line("0%", _down(tick, ticks), "100%", _down(tick, ticks), "grid") for tick in ticks]
    labels = [_text(f"{tick:g}", "0%", _down(tick, ticks) - 3, "start", "tick") for tick in ticks]
    points = [
        None if not known(value) else f"{1000 * at / end:.1f},{_down(value, ticks):.1f}"
        for at, value in zip(at_s, values, strict=True)
    ]
    # Stretched to the width of the box, but for the width of the line.
    drawn = tag(
        "svg",
        *(
            tag("polyline", points=" ".join(run), fill="none", vector_effect="non-scaling-stroke")
            for run in runs(points)
        ),
        class_="line",
        viewBox=f"0 0 1000 {TIME_LINE_HEIGHT}",
        preserveAspectRatio="none",
        width="100%",
        height=TIME_LINE_HEIGHT,
    )
    times = [
        _text(f"{end * at / 4:.0f} s", f"{25 * at}%", TIME_LINE_HEIGHT + 18, _anchor(at), "tick") for at in range(5)
    ]
    title = tag("title", f"From {shown[0]:.4g} to {shown[-1]:.4g} {unit} in {end:.0f} seconds.")
    return tag("svg", title, *grid, drawn, *labels, *times, class_="latency", role="img", height=TIME_LINE_HEIGHT + 24)


def roofline_chart(roof: Roofline) -> Html:
    """Layers under the roof of a device, both axes in powers of ten; the area of a circle is its layer's time."""
    across = _powers([point.intensity for point in roof.points] + [roof.ridge])
    down = _powers([point.rate for point in roof.points] + [roof.peak])
    longest = max(point.us for point in roof.points)
    level = partial(_level, ticks=down, height=ROOFLINE_HEIGHT)
    grid = [_line(_place(at, across), 0, _place(at, across), ROOFLINE_HEIGHT, "grid") for at in across]
    grid += [_line("0%", level(at), "100%", level(at), "grid") for at in down]
    names = [_text(f"{10**at:g}", _place(at, across), ROOFLINE_HEIGHT + 18, "middle", "tick") for at in across[1:-1]]
    names += [_text(f"{10 ** (at - 9):g} G operations/s", "0%", level(at) - 3, "start", "tick") for at in down]
    names.append(_text("operations a byte", "100%", ROOFLINE_HEIGHT + 18, "end", "tick"))
    corners = [10 ** across[0], roof.ridge, 10 ** across[-1]]
    spots = [(_place(math.log10(x), across), level(math.log10(roof.roof(x)))) for x in corners]
    lines = [_line(left[0], left[1], right[0], right[1], "base") for left, right in pairwise(spots)]
    layers = [
        tag(
            "circle",
            tag("title", f"{point.name}: {point.us:.1f} µs, {point.rate / 1e9:.3g} G operations/s"),
            cx=_place(math.log10(point.intensity), across),
            cy=f"{level(math.log10(point.rate)):.1f}",
            r=f"{2 + 8 * math.sqrt(point.us / longest):.1f}",
            class_="layer",
        )
        for point in roof.points
    ]
    title = tag("title", f"{len(layers)} layers under a roof of {roof.peak / 1e12:.3g} T operations/s.")
    height = ROOFLINE_HEIGHT + AXIS_HEIGHT
    return tag("svg", title, *grid, *lines, *layers, *names, class_="latency", role="img", height=height)


@dataclass(frozen=True)
class Spot:
    """A point of a `scatter`. label: what it is, said when pointed at; kind: `tried`, `front` or `winner`."""

    x: float
    y: float
    label: str
    kind: str


def scatter(spots: Sequence[Spot], x_unit: str, y_unit: str, limits: tuple[float | None, float | None]) -> Html:
    """Spots over two axes, and a dashed line at each limit: x must be below the first, y above the second."""
    shown = sorted(spots, key=lambda spot: ("tried", "front", "winner").index(spot.kind))
    across = nice_ticks(*_span([spot.x for spot in spots] + [v for v in limits[:1] if v is not None]))
    down = nice_ticks(*_span([spot.y for spot in spots] + [v for v in limits[1:] if v is not None]))
    level = partial(_level, ticks=down, height=SCATTER_HEIGHT)
    grid = [_line(_place(at, across), 12, _place(at, across), SCATTER_HEIGHT, "grid") for at in across]
    grid += [_line("0%", level(at), "100%", level(at), "grid") for at in down]
    names = [_text(f"{at:g}", _place(at, across), SCATTER_HEIGHT + 18, "middle", "tick") for at in across[1:-1]]
    names += [_text(f"{at:g}", "0%", level(at) - 3, "start", "tick") for at in down[1:]]
    names.append(_text(x_unit, "100%", SCATTER_HEIGHT + 18, "end", "tick"))
    names.append(_text(y_unit, "0%", level(down[0]) - 3, "start", "tick"))
    lines = []
    if limits[0] is not None:
        lines.append(_line(_place(limits[0], across), 12, _place(limits[0], across), SCATTER_HEIGHT, "limit"))
    if limits[1] is not None:
        lines.append(_line("0%", level(limits[1]), "100%", level(limits[1]), "limit"))
    marks = [_spot(spot, _place(spot.x, across), level(spot.y)) for spot in shown]
    title = tag("title", f"{len(spots)} points: {y_unit} over {x_unit}.")
    return tag(
        "svg", title, *grid, *lines, *marks, *names, class_="latency", role="img", height=SCATTER_HEIGHT + AXIS_HEIGHT
    )


def _spot(spot: Spot, x: str, y: float) -> Html:
    if spot.kind == "winner":
        diamond = tag("path", tag("title", spot.label), d="M0-8 8 0 0 8-8 0z")
        return tag("svg", diamond, x=x, y=f"{y:.1f}", overflow="visible", class_="spot winner")
    return tag("circle", tag("title", spot.label), cx=x, cy=f"{y:.1f}", r=5, class_=f"spot {spot.kind}")


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _powers(values: Sequence[float]) -> list[float]:
    """Powers of ten, as logarithms, that enclose the values."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    return [float(power) for power in range(first, max(last, first + 1) + 1)]


def runs(points: Sequence[T | None]) -> list[list[T]]:
    """Stretches without a gap."""
    found: list[list[T]] = [[]]
    for point in points:
        if point is None:
            found.append([])
        else:
            found[-1].append(point)
    return [run for run in found if run]


def _anchor(at: int) -> str:
    return {0: "start", 4: "end"}.get(at, "middle")


def _down(value: float, ticks: Sequence[float]) -> float:
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return 12 + (TIME_LINE_HEIGHT - 16) * (1 - share)


def _level(value: float, ticks: Sequence[float], height: int) -> float:
    """Pixels from the top of a chart whose plot ends at a height."""
    return 12 + (height - 12) * (1 - _share(value, ticks))


def _place(value: float, ticks: Sequence[float]) -> str:
    return f"{100 * _share(value, ticks):.2f}%"


def _share(value: float, ticks: Sequence[float]) -> float:
    """Where a value is on an axis, 0 to 1; what is beyond its ends is at them."""
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return min(max(share, 0.0), 1.0)


def _line(x1: str, y1: float, x2: str, y2: float, class_: str) -> Html:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _text(text: str, x: str, y: float, anchor: str, class_: str | None = None, dx: str | None = None) -> Html:
    return tag("text", text, x=x, y=y, dx=dx, text_anchor=anchor, class_=class_)

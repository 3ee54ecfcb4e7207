"""More inline SVG: values by layer, by epoch, and in bins. As in `charts`, letters have one size at every width."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.evaluation.report.charts import nice_ticks, runs
from edgekd.evaluation.report.markup import Html, tag
from edgekd.evaluation.report.text import known

BAND, LINE, BARS = 54, 110, 130
INSET = 18
"""Percent of a curve's width that its scale takes."""


def band(values: Sequence[float | None], said: str) -> Html:
    """A bar for each of many things in a row, none where there is no value; `said` is for those who do not see it."""
    top = max([1e-12, *(value for value in values if known(value))])
    bars = "".join(
        f"M{at}.12 {BAND}v{-BAND * min(max(value, 0.0) / top, 1.0):.1f}h.76V{BAND}z"
        for at, value in enumerate(values)
        if known(value)
    )
    return tag(
        "svg",
        tag("title", said),
        tag("path", d=bars),
        class_="band",
        viewBox=f"0 0 {max(len(values), 1)} {BAND}",
        preserveAspectRatio="none",
        width="100%",
        height=BAND,
        role="img",
    )


def epoch_line(name: str, values: Sequence[float | None]) -> Html:
    """One value over epochs, as a line that is broken where there is none; a lone epoch is a dot."""
    shown = [value for value in values if known(value)]
    ticks = nice_ticks(min(shown), max(shown), 3)
    last = max(len(values) - 1, 1)
    spots = [None if not known(v) else (at / last, _down(v, ticks)) for at, v in enumerate(values)]
    grid = [
        tag("line", x1=f"{INSET}%", x2="100%", y1=_down(t, ticks), y2=_down(t, ticks), class_="grid") for t in ticks
    ]
    labels = [tag("text", f"{t:g}", x="0%", y=_down(t, ticks) + 4, class_="tick") for t in ticks]
    lines = [
        tag(
            "polyline",
            points=" ".join(f"{1000 * x:.1f},{y:.1f}" for x, y in run),
            fill="none",
            vector_effect="non-scaling-stroke",
        )
        for run in runs(spots)
        if len(run) > 1
    ]
    drawn = tag(
        "svg",
        *lines,
        class_="line",
        viewBox=f"0 0 1000 {LINE}",
        preserveAspectRatio="none",
        x=f"{INSET}%",
        width=f"{100 - INSET}%",
        height=LINE,
    )
    dots = [
        tag("circle", cx=f"{INSET + (100 - INSET) * x:.1f}%", cy=f"{y:.1f}", r=3, class_="spot front")
        for run in runs(spots)
        if len(run) == 1
        for x, y in run
    ]
    ends = [tag("text", "epoch 1", x=f"{INSET}%", y=LINE + 14, class_="tick")]
    if len(values) > 1:
        ends.append(tag("text", str(len(values)), x="100%", y=LINE + 14, text_anchor="end", class_="tick"))
    title = tag("title", f"{name}: {shown[0]:.4g} in the first epoch, {shown[-1]:.4g} in the last.")
    return tag("svg", title, *grid, drawn, *dots, *labels, *ends, class_="latency", role="img", height=LINE + 20)


def histogram(counts: Sequence[int], edges: Sequence[float], said: str) -> Html:
    """Counts between edges, with the edges' range below and a line at zero."""
    most = max([1, *counts])
    span = edges[-1] - edges[0]

    def across(value: float) -> str:
        return f"{100 * (value - edges[0]) / span:.2f}%"

    bars = [
        tag(
            "rect",
            tag("title", f"{left:+.3f} to {right:+.3f}: {count}"),
            x=across(left),
            y=f"{BARS - (BARS - 16) * count / most:.1f}",
            width=f"{100 * (right - left) / span * 0.9:.2f}%",
            height=f"{(BARS - 16) * count / most:.1f}",
            class_="after",
        )
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    ]
    ticks = [-0.5, -0.25, 0.0, 0.25, 0.5]
    labels = [
        tag("text", label, x=across(tick), y=BARS + 15, text_anchor="middle", class_="tick")
        for tick, label in zip(ticks, ("≤ −0.5", "−0.25", "0", "+0.25", "≥ +0.5"), strict=True)
    ]
    zero = tag("line", x1=across(0), x2=across(0), y1=4, y2=BARS, class_="mark")
    base = tag("line", x1="0%", x2="100%", y1=BARS, y2=BARS, class_="base")
    return tag("svg", tag("title", said), *bars, zero, base, *labels, class_="latency", role="img", height=BARS + 22)


def _down(value: float, ticks: Sequence[float]) -> float:
    return round(14 + (LINE - 18) * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0])), 1)

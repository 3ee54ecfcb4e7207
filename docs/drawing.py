"""SVG pictures: badges and the size-accuracy chart of README.md; the card around the diagrams of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log

FONT = "font-family='Helvetica,Arial,sans-serif'"
LETTER_WIDTH = 6.6  # px, mean width of a letter of 11 px in the fonts above
WIDTH, HEIGHT = 720, 376  # px
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 64, 52  # px, margins of the chart
LINE = 15  # px, distance between labels that would overlap
LABEL_WIDTH = 35  # px, width of an edgekd label
SIZES = (1, 2, 4, 8)  # ticks: times smaller than the float file
STEP = 2  # percent, between grid lines


@dataclass(frozen=True)
class Point:
    """A point of the chart. share: of the float mAP, 0 to 1; ours: a graph by edgekd."""

    label: str
    times_smaller: float
    share: float
    ours: bool = False


@dataclass(frozen=True)
class Palette:
    """Colours of a chart."""

    text: str
    faint: str
    ours: str
    peers: str


LIGHT = Palette(text="#24292f", faint="#d8dee4", ours="#0969da", peers="#6e7781")
DARK = Palette(text="#e6edf3", faint="#30363d", ours="#58a6ff", peers="#9198a1")


CARD_STYLE = """\
.card{fill:#fff;stroke:#d8dee4}.box{fill:#f6f8fa;stroke:#6e7781}.served{fill:#ddf4ff;stroke:#0969da}
text{fill:#24292f}.note{fill:#57606a;font-size:11px}.italic{font-style:italic}.region{fill:#0969da;font-weight:bold}
.arrow{fill:none;stroke:#6e7781;stroke-width:1.3}.head{fill:#6e7781}.grid{stroke:#d8dee4}
.int8{fill:#0969da}.coded{fill:#54aeff}.fp4x{fill:#8250df}.float{fill:#bc4c00}.before{fill:#d0d7de}
@media (prefers-color-scheme:dark){
.card{fill:#0d1117;stroke:#30363d}.box{fill:#161b22;stroke:#9198a1}.served{fill:#0c2d6b;stroke:#58a6ff}
text{fill:#e6edf3}.note{fill:#9198a1}.region{fill:#58a6ff}.arrow{stroke:#9198a1}.head{fill:#9198a1}.grid{stroke:#30363d}
.int8{fill:#1f6feb}.coded{fill:#79c0ff}.fp4x{fill:#a371f7}.float{fill:#f0883e}.before{fill:#484f58}}"""
"""Colours by CSS class. A card has its own background, so it is readable in light and dark pages."""


def card(title: str, width: int, height: int, parts: list[str]) -> str:
    """Return a picture for a page: a title, parts in the classes of CARD_STYLE, arrowheads as `url(#head)`."""
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' "
        f"role='img'><title>{escape(title)}</title><style>{CARD_STYLE}</style>",
        "<defs><marker id='head' markerWidth='8' markerHeight='8' refX='6' refY='4' orient='auto'>"
        "<path class='head' d='M0 0 8 4 0 8z'/></marker></defs>",
        f"<rect class='card' x='.5' y='.5' width='{width - 1}' height='{height - 1}' rx='8'/>",
        f"<g {FONT} font-size='12'><text x='16' y='24' font-size='14' font-weight='bold'>{escape(title)}</text>",
        *parts,
        "</g></svg>\n",
    ]
    return "\n".join(lines)


def badge(label: str, value: str) -> str:
    """Return a badge: a label on grey, its value on blue."""
    left, right = (round(len(text) * LETTER_WIDTH + 12) for text in (label, value))
    texts = "".join(
        f"<text x='{x:g}' y='14' text-anchor='middle'>{escape(text)}</text>"
        for x, text in ((left / 2, label), (left + right / 2, value))
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{left + right}' height='20' role='img'>"
        f"<title>{escape(label)}: {escape(value)}</title>"
        f"<rect width='{left + right}' height='20' rx='3' fill='#57606a'/>"
        f"<path d='M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{left}z' fill='#0969da'/>"
        f"<g fill='#fff' {FONT} font-size='11'>{texts}</g></svg>\n"
    )


@dataclass(frozen=True)
class Axes:
    """Axes of the chart: x is times smaller, logarithmic, from 1 to `smallest`; y is percent of the float mAP."""

    smallest: float
    lowest: int
    highest: int

    def x(self, times_smaller: float) -> float:
        """Return the x coordinate of a size in px."""
        return LEFT + (WIDTH - LEFT - RIGHT) * log(times_smaller) / log(self.smallest)

    def y(self, percent: float) -> float:
        """Return the y coordinate of a percentage in px."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.highest - percent) / (self.highest - self.lowest)


def size_chart(title: str, points: list[Point], palette: Palette) -> str:
    """Return the chart of file size (x) and share of the float mAP (y); a line joins the points of edgekd."""
    shares = [100 * point.share for point in points]
    axes = Axes(
        smallest=1.15 * max(point.times_smaller for point in points),
        lowest=STEP * floor(min(shares) / STEP),
        highest=STEP * ceil(max(shares) / STEP),
    )
    placed = [(point, axes.x(point.times_smaller), axes.y(100 * point.share)) for point in points]
    ours = " ".join(f"{left:.1f},{top:.1f}" for point, left, top in placed if point.ours)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>",
        f"<title>{escape(title)}</title><g {FONT} font-size='13' fill='{palette.text}'>",
        f"<text x='{LEFT}' y='24' font-size='15' font-weight='bold'>{escape(title)}</text>",
        f"<text x='{LEFT}' y='44' fill='{palette.ours}' font-weight='bold'>edgekd</text>",
        f"<text x='{LEFT + 60}' y='44' fill='{palette.peers}'>other tools, the best setting of each</text>",
        *grid(axes, palette),
        f"<polyline points='{ours}' fill='none' stroke='{palette.ours}' stroke-width='2'/>",
        *marks(placed, palette),
        "</g></svg>\n",
    ]
    return "\n".join(parts)


def grid(axes: Axes, palette: Palette) -> Iterator[str]:
    """Yield the lines and labels of both axes."""
    for percent in range(axes.lowest, axes.highest + 1, STEP):
        top = axes.y(percent)
        yield f"<path d='M{LEFT} {top:.1f}H{WIDTH - RIGHT}' stroke='{palette.faint}'/>"
        yield f"<text x='{LEFT - 8}' y='{top + 4:.1f}' text-anchor='end'>{percent} %</text>"
    for times in SIZES:
        left = axes.x(times)
        yield f"<path d='M{left:.1f} {TOP}V{HEIGHT - BOTTOM}' stroke='{palette.faint}'/>"
        size = f"1/{times}" if times > 1 else "1"
        yield f"<text x='{left:.1f}' y='{HEIGHT - BOTTOM + 18}' text-anchor='middle'>{size}</text>"
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f"<text x='{middle}' y='{HEIGHT - 10}' text-anchor='middle'>size of the file, of float32's</text>"


def marks(placed: list[tuple[Point, float, float]], palette: Palette) -> Iterator[str]:
    """Yield the points with their labels: edgekd's above the point, others to its left without overlap.

    A label of edgekd is below its point if it would touch the label beside it, and at the end of the line.
    """
    end = max(left for point, left, _ in placed if point.ours)
    below, above = 0.0, list[float]()
    for point, left, top in sorted(placed, key=lambda each: each[2]):
        colour = palette.ours if point.ours else palette.peers
        yield f"<circle cx='{left:.1f}' cy='{top:.1f}' r='5' fill='{colour}'/>"
        if point.ours:
            is_below = left == end or any(abs(left - other) < LABEL_WIDTH for other in above)
            above += [] if is_below else [left]
            place = f"x='{left:.1f}' y='{top + (22 if is_below else -11):.1f}' text-anchor='middle' font-weight='bold'"
        elif left == LEFT:  # the float file
            place = f"x='{left + 10}' y='{top + 16:.1f}'"
        else:
            below = max(top + 4, below + LINE)
            place = f"x='{left - 10:.1f}' y='{below:.1f}' text-anchor='end'"
        yield f"<text {place} fill='{colour}'>{escape(point.label)}</text>"

"""Charts of a network's layers: the formats and errors of a quantization plan, and the channels that pruning leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from math import ceil

from drawing import card

from edgekd.compress.quantization.plan import Plan, PlannedLayer

WIDTH = 380  # px: a phone shows it without scaling
LEFT, RIGHT = 40, 14  # px, margins
PANEL = 110  # px, height of a panel
FIRST, SECOND = 64, 212  # px, top of each panel
CLASSES = {"float16": "float"}
"""Style of a format, where it is not its name."""


def plan_chart(title: str, plan: Plan) -> str:
    """Return a chart of a plan: for each layer in graph order its bits per weight, and its share of the error."""
    total = sum(layer.error for layer in plan.layers)
    bits = [bits_of(layer) for layer in plan.layers]
    shares = [100 * layer.error / total for layer in plan.layers]
    forms = [layer.form for layer in plan.layers]
    size = sum(layer.bytes for layer in plan.layers) / 1e6
    parts = [
        *legend(forms),
        *panel(FIRST, "bits per weight, compressed", ceil(max(bits)), bits, [style(form) for form in forms]),
        *panel(SECOND, "share of the predicted error, %", ceil(max(shares)), shares, [style(form) for form in forms]),
        note(SECOND, f"{len(forms)} layers in graph order, {size:.2f} MB"),
    ]
    return card(title, WIDTH, SECOND + PANEL + 28, parts)


def bits_of(layer: PlannedLayer) -> float:
    """Return the bits that a weight takes in the packed graph."""
    return 8 * layer.bytes / layer.weights


def style(form: str) -> str:
    """Return the class of a format's bars."""
    return CLASSES.get(form, form)


def legend(forms: list[str]) -> Iterator[str]:
    """Yield the formats with their number of layers, in the order of first use."""
    x = LEFT
    for form in dict.fromkeys(forms):
        label = f"{form} ({forms.count(form)})"
        yield f"<rect class='{style(form)}' x='{x}' y='36' width='10' height='10'/>"
        yield f"<text class='note' x='{x + 14}' y='45'>{escape(label)}</text>"
        x += 26 + round(6 * len(label))


def panel(top: int, caption: str, highest: int, values: list[float], styles: list[str]) -> Iterator[str]:
    """Yield a panel of bars from 0 to `highest`, with its caption above."""
    step = (WIDTH - LEFT - RIGHT) / len(values)
    yield f"<text class='note' x='{LEFT}' y='{top - 4}'>{escape(caption)}</text>"
    for value in (0, highest / 2, highest):
        y = top + PANEL * (1 - value / highest)
        yield f"<path class='grid' d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>"
        yield f"<text class='note' x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{value:g}</text>"
    for index, (value, name) in enumerate(zip(values, styles, strict=True)):
        height = PANEL * value / highest
        x, y = LEFT + step * index, top + PANEL - height
        yield f"<rect class='{name}' x='{x:.1f}' y='{y:.1f}' width='{step - 0.8:.1f}' height='{height:.1f}'/>"


def widths_chart(title: str, widths: Mapping[str, tuple[int, int]], multiply_adds: tuple[int, int]) -> str:
    """Return a chart of a pruned network: channels of each unit of layers, before behind after.

    multiply_adds: of a frame, before and after.
    """
    before = [float(width) for width, _ in widths.values()]
    after = [float(width) for _, width in widths.values()]
    highest = ceil(max(before))
    bars = [*panel(FIRST, "channels, before and after", highest, before, ["before"] * len(before))]
    bars += [each for each in panel(FIRST, "", highest, after, ["int8"] * len(after)) if each.startswith("<rect")]
    left = multiply_adds[1] / multiply_adds[0]
    caption = note(FIRST, f"{len(before)} units in graph order, {left:.0%} of the multiply-adds left")
    return card(title, WIDTH, FIRST + PANEL + 28, [*bars, caption])


def note(top: int, content: str) -> str:
    """Return a line of text below a panel."""
    return f"<text class='note' x='{LEFT}' y='{top + PANEL + 16}'>{escape(content)}</text>"

"""Charts of a network's layers: formats and errors of a quantization plan, and channels before and after pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import log10

from drawing import card

from edgekd.compress.quantization.plan import Plan, PlannedLayer

WIDTH = 380  # px: a phone shows it without scaling
LEFT, RIGHT = 58, 14  # px, margins
PANEL = 110  # px, height of a panel
FIRST, SECOND = 64, 212  # px, top of each panel
SHARES = {0: "0.001 %", 1: "0.01 %", 2: "0.1 %", 3: "1 %", 4: "10 %", 5: "100 %"}
MIN_SHARE = 1e-3  # percent: the lowest value of the logarithmic panel
CLASSES = {"float16": "float", "after": "int8"}
"""CSS class of the bars with a label, if it is not the label itself."""


def plan_chart(title: str, plan: Plan) -> str:
    """Return a chart of a plan: for each layer in graph order its bits per weight, and its share of the error."""
    total = sum(layer.error for layer in plan.layers)
    bits = [bits_of(layer) for layer in plan.layers]
    decades = [log10(max(100 * layer.error / total, MIN_SHARE) / MIN_SHARE) for layer in plan.layers]
    forms = [layer.form for layer in plan.layers]
    size = sum(layer.bytes for layer in plan.layers) / 1e6
    parts = [
        *legend({form: f"{form} ({forms.count(form)})" for form in forms}),
        *panel(FIRST, "bits per weight, compressed", {0: "0", 4: "4", 8: "8", 12: "12"}, bits, forms),
        *panel(SECOND, "share of the predicted error", SHARES, decades, forms),
        note(SECOND, f"{len(forms)} layers in graph order, {size:.2f} MB"),
    ]
    return card(title, WIDTH, SECOND + PANEL + 28, parts)


def bits_of(layer: PlannedLayer) -> float:
    """Return the mean number of bits per weight in the packed graph."""
    return 8 * layer.bytes / layer.weights


def style(form: str) -> str:
    """Return the CSS class of a format's bars."""
    return CLASSES.get(form, form)


def legend(labels: Mapping[str, str]) -> Iterator[str]:
    """Yield the legend. labels: text by the label of the bars."""
    x = LEFT
    for name, label in labels.items():
        yield f"<rect class='{style(name)}' x='{x}' y='36' width='10' height='10'/>"
        yield f"<text class='note' x='{x + 14}' y='45'>{escape(label)}</text>"
        x += 26 + round(6 * len(label))


def panel(
    top: int, caption: str, ticks: Mapping[float, str], values: Sequence[float], names: Sequence[str]
) -> Iterator[str]:
    """Yield a panel of bars from 0 to the last tick or the largest value, with its caption above.

    names: label of each bar.
    """
    highest = max(*ticks, *values)
    yield f"<text class='note' x='{LEFT}' y='{top - 4}'>{escape(caption)}</text>"
    for value, label in ticks.items():
        y = top + PANEL * (1 - value / highest)
        yield f"<path class='grid' d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>"
        yield f"<text class='note' x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{escape(label)}</text>"
    yield from bars(top, highest, values, names)


def bars(top: int, highest: float, values: Sequence[float], names: Sequence[str]) -> Iterator[str]:
    """Yield the bars of a panel."""
    step = (WIDTH - LEFT - RIGHT) / len(values)
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        height = PANEL * value / highest
        x, y = LEFT + step * index, top + PANEL - height
        yield f"<rect class='{style(name)}' x='{x:.1f}' y='{y:.1f}' width='{step - 0.8:.1f}' height='{height:.1f}'/>"


def widths_chart(title: str, widths: Mapping[str, tuple[int, int]], multiply_adds: tuple[int, int]) -> str:
    """Return a chart of a pruned network: channels of each unit of layers, those before pruning behind those after.

    multiply_adds: per frame, before and after.
    """
    before, after = zip(*widths.values(), strict=True)
    ticks = {width: str(width) for width in (0, max(before) // 2, max(before))}
    parts = [
        *legend({"before": "before", "after": "after"}),
        *panel(FIRST, "channels", ticks, before, ["before"] * len(before)),
        *bars(FIRST, max(before), after, ["after"] * len(after)),
    ]
    left = multiply_adds[1] / multiply_adds[0]
    caption = note(FIRST, f"{len(before)} units in graph order, {left:.0%} of the multiply-adds left")
    return card(title, WIDTH, FIRST + PANEL + 28, [*parts, caption])


def note(top: int, content: str) -> str:
    """Return a line of text below a panel."""
    return f"<text class='note' x='{LEFT}' y='{top + PANEL + 16}'>{escape(content)}</text>"

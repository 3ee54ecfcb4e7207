"""The sections on detections: what was lost and gained, with pictures; what is confused; how sure the networks are."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from edgekd.evaluation.analysis.counts import SHIFT_BINS, Confusion, Tally
from edgekd.evaluation.analysis.matching import IOU
from edgekd.evaluation.analysis.types import Analysis, ChangeKind, Crop
from edgekd.evaluation.report import curves, text
from edgekd.evaluation.report.markup import Html, details, join, section, table, tag

ROWS = 20
MATRIX = 12
"""Classes that a confusion matrix shows; the others are one."""
NAMES: dict[ChangeKind, tuple[str, str]] = {
    "lost": ("✕", "Lost"),
    "gained": ("✓", "Gained"),
    "alarm": ("△", "New false alarm"),
    "settled": ("▽", "False alarm gone"),
}
REASONS = {
    "unsure": "below the threshold now",
    "misplaced": "with a box that is off",
    "confused": "taken for another class",
    "unseen": "not seen at all",
}


def changes_section(analysis: Analysis | None) -> Html:
    """Objects lost and gained: in words, by size, by class, and in pictures."""
    if analysis is None:
        return Html()
    heads = (
        "Objects",
        "Labelled",
        "Found before",
        "Found after",
        "Lost",
        "Gained",
        "False before",
        "False after",
        "Score",
    )
    sizes = table("Detections by object size", heads, map(_cells, analysis.sizes))
    there = [each for each in analysis.classes if each.objects or each.false_before or each.false_after]
    listed = sorted(there, key=lambda each: (each.gained - each.lost, -each.lost, each.name))
    classes = table("Detections by class", ("Class", *heads[1:]), map(_cells, listed), class_="sortable")
    few = details(f"All {len(listed)} classes", classes) if len(listed) > ROWS else classes
    return section("Objects lost and gained", _lost_in_words(analysis), sizes, few, _gallery(analysis), id_="changes")


def _lost_in_words(analysis: Analysis) -> str:
    total = analysis.total
    words = (
        f"Of {text.count(total.objects)} labelled objects in {text.count(analysis.images)} images "
        f"{text.count(total.kept)} are found before and after, {text.count(total.lost)} were lost, "
        f"{text.count(total.gained)} gained, {text.count(total.missed)} never found. False alarms: "
        f"{text.count(total.false_before)} before, {text.count(total.false_after)} after. "
        f"Both are held to the thresholds that ship, one for each class; an object is found where a box of its class "
        f"overlaps it by {IOU:.0%}. Score is the mean change of score where both find it."
    )
    if not analysis.reasons:
        return words
    parts = [f"{count} {REASONS.get(reason, reason)}" for reason, count in analysis.reasons.items()]
    return f"{words} The lost: {', '.join(parts)}."


def _cells(tally: Tally) -> Sequence[str]:
    counts = (tally.objects, tally.kept + tally.lost, tally.kept + tally.gained, tally.lost, tally.gained)
    return (
        tally.name,
        *map(text.count, (*counts, tally.false_before, tally.false_after)),
        text.difference(tally.shift),
    )


def _gallery(analysis: Analysis) -> Html:
    crops = analysis.crops
    if not crops:
        return tag("p", "Nothing was lost or gained, and no false alarm came or went.", class_="why")
    every = sum(analysis.changes.values())
    shown = (
        f"{len(crops)} of {text.count(every)} changes, the surest of every kind, class and size"
        if len(crops) < every
        else f"All {every} changes"
    )
    key = (
        "White is the label, dashed what the given detector sees there, solid what ships, each at any score. Numbers "
        "are the scores before → after, and the least that counts."
    )
    return join(
        (
            tag("h3", "Pictures of what changed"),
            tag("p", f"{shown}. {key}", class_="why"),
            _filters(crops),
            tag(
                "ul",
                *(Html(f"{_item(crop)}\n") for crop in crops),
                class_="gallery",
                id_="gallery",
                tabindex=0,
                aria_label="Pictures of what changed",
            ),
        )
    )


def _filters(crops: Sequence[Crop]) -> Html:
    """Controls for the script, hidden without it."""
    kinds: dict[str, str] = {crop.kind: NAMES[crop.kind][1] for crop in crops}
    classes = {name: name for name in sorted({crop.class_name for crop in crops})}
    sizes = {name: name for name in ("small", "medium", "large") if any(crop.size == name for crop in crops)}
    selects = (_select("kind", "Change", kinds), _select("class", "Class", classes), _select("size", "Size", sizes))
    boxes = tag("label", tag("input", type="checkbox", name="boxes", checked=""), " Boxes")
    count = tag("output", f"{len(crops)} shown", role="status")
    return tag("form", *selects, boxes, count, class_="filters", hidden="", data_for="gallery")


def _select(name: str, label: str, choices: dict[str, str]) -> Html:
    options = (tag("option", word, value=value) for value, word in {"": "all", **choices}.items())
    select = tag("select", *options, name=name, id_=f"filter-{name}")
    return tag("span", tag("label", f"{label} ", for_=f"filter-{name}"), select)


def _item(crop: Crop) -> Html:
    sign, name = NAMES[crop.kind]
    was, now = (f"{score:.2f}" if score is not None else text.MISSING for score in crop.scores)
    numbers = f"{was} → {now}, needs {crop.threshold:.2f}"
    said = f"{name}: {crop.class_name}, {crop.size}, in {crop.frame}; score {numbers}; {crop.reason}"
    image = tag(
        "img",
        src="data:image/jpeg;base64," + base64.b64encode(crop.jpeg).decode("ascii"),
        alt=said,
        width=crop.width,
        height=crop.height,
        loading="lazy",
        decoding="async",
    )
    caption = tag(
        "figcaption",
        tag("b", tag("span", sign, aria_hidden="true"), f" {name}", class_=crop.kind),
        f" {crop.class_name}, {crop.size}",
        tag("small", numbers),
        tag("small", crop.reason),
        tag("small", crop.frame),
    )
    figure = tag("figure", tag("div", image, _boxes(crop), class_="shot"), caption)
    return tag("li", figure, data_kind=crop.kind, data_class=crop.class_name, data_size=crop.size)


def _boxes(crop: Crop) -> Html:
    """The boxes over a picture: white for the label, a solid line after, a dashed one before, which hides nothing."""
    drawn = []
    for name, box in (("truth", crop.truth), ("after", crop.after), ("before", crop.before)):
        if box is not None:
            x1, y1, x2, y2 = box
            place = {"x": x1, "y": y1, "width": round(max(x2 - x1, 1), 1), "height": round(max(y2 - y1, 1), 1)}
            under = [tag("rect", class_="under", **place)] if name != "before" or crop.after is None else []
            drawn += [*under, tag("rect", class_=name, **place)]
    size = f"0 0 {crop.width} {crop.height}"
    return tag("svg", *drawn, viewBox=size, class_="boxes", aria_hidden="true")


def confusion_section(analysis: Analysis | None) -> Html:
    """What is taken for what, before and after."""
    if analysis is None or not analysis.confusions:
        return Html()
    rows = analysis.confusions[:ROWS]
    heads = ("Labelled as", "Taken for", "Before", "After", "Change")
    cells = (_confusion(row, analysis.class_names) for row in rows)
    which = "What changed most" if len(rows) < len(analysis.confusions) else "Everything"
    why = f"{which}, at the thresholds that ship: labelled objects by what they are taken for, and false alarms."
    matrices = (
        tag("div", tag("h3", word), _matrix(analysis, table_, word), class_="matrix")
        for word, table_ in zip(("Before", "After"), analysis.tables, strict=True)
    )
    listed = table("Confusions, before and after", heads, cells, class_="sortable")
    return section("Confusion", why, listed, details("Confusion matrices", tag("div", *matrices, class_="pair")))


def _confusion(row: Confusion, classes: Sequence[str]) -> Sequence[str]:
    truth = "nothing (false alarm)" if row.truth is None else classes[row.truth]
    taken = "nothing (missed)" if row.taken_for is None else classes[row.taken_for]
    moved = row.after - row.before
    arrow = f"▲{text.NBSP}+{moved}" if moved > 0 else f"▼{text.NBSP}−{-moved}" if moved else "0"
    return truth, taken, text.count(row.before), text.count(row.after), arrow


def _matrix(analysis: Analysis, counts: np.ndarray, word: str) -> Html:
    """The classes that most is confused with, the others together; shaded by the share of the row."""
    classes, every = analysis.class_names, sum(analysis.tables)
    stray = every - np.diag(np.diag(every))
    weight = stray.sum(axis=0)[:-1] + stray.sum(axis=1)[:-1]
    chosen = sorted(np.argsort(-weight, kind="stable")[:MATRIX].tolist())
    rest = [at for at in range(len(classes)) if at not in chosen]
    groups = [[at] for at in chosen] + ([rest] if rest else []) + [[len(classes)]]
    names = [classes[at] for at in chosen] + (["others"] if rest else [])
    heads = ("Labelled ↓ taken for →", *names, "missed")
    rows = []
    for group, name in zip(groups, [*names, "nothing"], strict=True):
        values = [int(counts[np.ix_(group, other)].sum()) for other in groups]
        total = max(sum(values), 1)
        rows.append((name, *(_shaded(value, value / total) for value in values)))
    return table(f"Confusion matrix, {word.lower()}", heads, rows, class_="heat")


def _shaded(value: int, share: float) -> Html:
    return tag("span", text.count(value) if value else "·", style=f"--share:{share:.2f}")


def confidence_section(analysis: Analysis | None) -> Html:
    """How the scores of objects moved that both networks find."""
    if analysis is None or analysis.shift is None:
        return Html()
    shift = analysis.shift
    why = (
        f"Of {text.count(shift.count)} objects that are found before and after, the score moved by "
        f"{shift.mean:+.3f} on average; of half by {shift.p50:+.3f} or less, of one in ten by {shift.p10:+.3f} or less "
        f"and one in ten by {shift.p90:+.3f} or more. What is shifted as a whole is mended by another threshold, which "
        f"the build has chosen after; a wide spread is not."
    ).replace("-", "−")
    said = f"Changes of score: mean {shift.mean:+.3f}, of 8 in 10 from {shift.p10:+.3f} to {shift.p90:+.3f}."
    chart = tag("figure", curves.histogram(shift.bins, SHIFT_BINS.tolist(), said), class_="chart")
    rows = (
        (f"{left:+.3f} to {right:+.3f}".replace("-", "−"), text.count(count))
        for count, left, right in zip(shift.bins, SHIFT_BINS[:-1], SHIFT_BINS[1:], strict=True)
        if count
    )
    numbers = details("Numbers", table("Objects by change of score", ("Change of score", "Objects"), rows))
    return section("Confidence", why, chart, numbers)

"""Layers in the report: the largest ones, charts over all layers, and columns of measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekd.evaluation.analysis.types import LayerAnalysis
from edgekd.evaluation.report import text
from edgekd.evaluation.report.types import LayerRow

CHART_ROWS = 20
"""Maximum number of layers in the chart of sizes; a table has all of them."""


@dataclass(frozen=True)
class Band:
    """A small chart with a bar for each layer. top: value of the highest bar, as text."""

    name: str
    unit: str
    values: Sequence[float | None]
    top: str


def largest(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """Return the layers with most bytes, the largest first."""
    return sorted(rows, key=lambda row: row.largest_bytes, reverse=True)[:CHART_ROWS]


def bands(rows: Sequence[LayerRow], inside: LayerAnalysis | None) -> list[Band]:
    """Return the bands of layers, without those that have no values."""
    if inside is None:
        return []
    after = inside.times[1]
    candidates = [
        _band("Bits a weight", "", [row.bits for row in rows], text.digits),
        _band("Stored bytes", "", [row.bytes_after for row in rows], text.size),
        _band("Time", f"{after.basis}: {after.where}", [after.us.get(row.name) for row in rows], text.microseconds),
        _band("Error", "share of what quantizing costs", [row.error_share for row in rows], text.percent),
    ]
    for each in inside.compared:
        similarity = [each.values.get(row.output) for row in rows]
        unlike = [None if value is None else 1 - value for value in similarity]
        candidates.append(_band(f"Unlike, {each.name}", "1 − CKA", unlike, text.digits))
    return [band for band in candidates if band is not None]


def _band(name: str, unit: str, values: Sequence[float | None], as_text: Callable[[float], str]) -> Band | None:
    known = [value for value in values if text.known(value)]
    return Band(name, unit, values, as_text(max(known))) if known else None


def planned_forms(rows: Sequence[LayerRow]) -> tuple[str, ...]:
    """Return the formats whose errors were measured for a plan."""
    return tuple(dict.fromkeys(form for row in rows for form in row.options))


def seen_heads(rows: Sequence[LayerRow], inside: LayerAnalysis | None) -> tuple[str, ...]:
    """Return the column headings of the measurements for a plan and of the analysis inside the networks."""
    errors = (f"Error as {form}" for form in planned_forms(rows))
    similarities = (f"CKA {each.name}" for each in (inside.compared if inside else ()))
    return ("SNR", *errors, "Time before", "Time after", *similarities)

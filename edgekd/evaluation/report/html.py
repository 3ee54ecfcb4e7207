"""The report of one build as one self-contained HTML page: no network, no external file.

The same report gives the same bytes. Only a page with an analysis has a script; it filters and sorts content that is
visible without it, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.data.long_tail import TAIL
from edgekd.evaluation.analysis.counts import SHIFT_BINS
from edgekd.evaluation.analysis.matching import IOU
from edgekd.evaluation.coco import mean_known
from edgekd.evaluation.report import changes, layers, text
from edgekd.evaluation.report.charts import Axis, latency_axis, nice_ticks
from edgekd.evaluation.report.page import render_page
from edgekd.evaluation.report.search import trial_spots
from edgekd.evaluation.report.types import BeforeAfter, BudgetRow, ClassRow, FrameLatency, Moment, Report, SizeRow

CHART_ROWS = 20
"""Maximum number of classes in a chart; a table has all of them."""


def render(report: Report) -> str:
    """Return the page."""
    before, after = _first(report.latencies, "before"), _first(report.latencies, "after")
    rare = [row for row in report.classes if row.rare]
    return render_page(
        "build.html",
        report=report,
        budget=verdict(report.budget),
        after=after,
        speed=BeforeAfter(before.p50_ms if before else None, after.p50_ms if after else None),
        slower=_slower_samples(report.latencies),
        changed_most=_most_changed(report.classes),
        rare=BeforeAfter(mean_known([row.before for row in rare]), mean_known([row.after for row in rare])),
        accuracy_axis=_accuracy_axis,
        TAIL=TAIL,
        search_spots=trial_spots(report.search),
        counted_classes=changes.counted_classes(report.analysis),
        confusion_matrix=changes.confusion_matrix,
        IOU=IOU,
        SHIFT_BINS=SHIFT_BINS.tolist(),
        largest=layers.largest(report.layers),
        bands=layers.bands(report.layers, report.inside),
        planned_forms=layers.planned_forms(report.layers),
        seen_heads=layers.seen_heads(report.layers, report.inside),
    )


def verdict(budget: Sequence[BudgetRow]) -> tuple[str, str]:
    """Return the state of a budget, "met", "missed" or "open", and a sentence. A single miss decides."""
    missed = [row for row in budget if row.met is False]
    unchecked = [row.name for row in budget if row.met is None]
    if missed:
        return "missed", "Budget missed: " + "; ".join(
            f"{row.name} is {row.value or text.MISSING}, limit {row.limit}" for row in missed
        )
    if not budget:
        return "open", "No budget was set"
    if len(unchecked) == len(budget):
        return "open", "Budget not checked: " + ", ".join(unchecked)
    if unchecked:
        return "open", "Budget met so far; not checked: " + ", ".join(unchecked)
    return "met", "Budget met"


def _first(latencies: Sequence[FrameLatency], label: Moment) -> FrameLatency | None:
    return next((row for row in latencies if row.label == label), None)


def _slower_samples(latencies: Sequence[FrameLatency]) -> int:
    """Return how many samples lie beyond the end of the latency chart."""
    end = latency_axis(latencies).ticks[-1] if latencies else 0.0
    return sum(sample > end for row in latencies for sample in row.samples_ms)


def _most_changed(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """Return at most CHART_ROWS rows, those that changed most, losses first; rows without both numbers last."""

    def difference(row: ClassRow, missing: float) -> float:
        return value if text.known(value := row.change.difference) else missing

    listed = sorted(rows, key=lambda row: -abs(difference(row, 0.0)) if text.known(row.change.difference) else 1.0)
    return sorted(listed[:CHART_ROWS], key=lambda row: difference(row, 2.0))


def _accuracy_axis(rows: Sequence[ClassRow | SizeRow]) -> Axis:
    """Return an axis to the highest accuracy, but to 0.1 at least, so that noise does not fill the chart."""
    return Axis(nice_ticks(0.0, max([0.1, *(v for row in rows for v in (row.before, row.after) if text.known(v))])))

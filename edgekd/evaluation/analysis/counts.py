"""Counts of findings: by class, by size, confusions, and changes of score. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.evaluation.analysis.matching import FalseAlarm, Findings, Object
from edgekd.evaluation.coco import SIZES

SHIFT_BINS = np.round(np.arange(-0.525, 0.55, 0.05), 3)
"""Edges of the histogram of score changes; changes beyond them are in the first and last bin."""


@dataclass(frozen=True)
class DetectionCounts:
    """Objects by outcome, and false alarms.

    Args:
        name: Class or size; `all` for all of them.
        objects: Number of labelled objects.
        kept: Objects that are found before and after.
        lost: Objects that are found before only.
        gained: Objects that are found after only.
        missed: Objects that are never found.
        false_before, false_after: Detections that match no object of their class.
        shift: Mean change of score of objects that both networks detect; null without any.
    """

    name: str
    objects: int
    kept: int
    lost: int
    gained: int
    missed: int
    false_before: int
    false_after: int
    shift: float | None


@dataclass(frozen=True)
class Confusion:
    """Number of objects of class `truth` that are detected as `taken_for`; None is no object, or no detection."""

    truth: int | None
    taken_for: int | None
    before: int
    after: int


@dataclass(frozen=True)
class ScoreShift:
    """Change of score of the `count` objects that both networks detect: mean, percentiles and a histogram."""

    count: int
    mean: float
    p10: float
    p50: float
    p90: float
    bins: tuple[int, ...]


def total(findings: Findings) -> DetectionCounts:
    """Count all objects and false alarms."""
    return _count("all", findings.objects, findings.alarms)


def by_class(findings: Findings, classes: Sequence[str]) -> tuple[DetectionCounts, ...]:
    """Count objects and false alarms of each class, in the order of `classes`."""
    return tuple(
        _count(name, (o for o in findings.objects if o.kind == index), (a for a in findings.alarms if a.kind == index))
        for index, name in enumerate(classes)
    )


def by_size(findings: Findings) -> tuple[DetectionCounts, ...]:
    """Count small, medium and large objects; false alarms by the size of their box."""
    return tuple(
        _count(name, (o for o in findings.objects if o.size == name), (a for a in findings.alarms if a.size == name))
        for name in SIZES
    )


def reasons(findings: Findings) -> dict[str, int]:
    """Count the lost objects by reason."""
    return dict(Counter(each.after.reason for each in findings.objects if each.outcome == "lost").most_common())


def shift_of(objects: Iterable[Object]) -> ScoreShift | None:
    """Return the change of score of objects that both networks detect; None where there is none."""
    changes = _score_changes(objects)
    if not len(changes):
        return None
    inside = np.clip(changes, SHIFT_BINS[0] + 1e-6, SHIFT_BINS[-1] - 1e-6)
    p10, p50, p90 = (float(value) for value in np.percentile(changes, (10, 50, 90)))
    bins = tuple(int(count) for count in np.histogram(inside, SHIFT_BINS)[0])
    return ScoreShift(len(changes), float(changes.mean()), p10, p50, p90, bins)


def confusions(findings: Findings) -> list[Confusion]:
    """Return all confusions, missed objects and false alarms of either network, those that changed most first."""
    before, after = findings.confusion
    last = len(before) - 1
    named = [*range(last), None]
    rows = [
        Confusion(named[truth], named[taken], int(before[truth, taken]), int(after[truth, taken]))
        for truth, taken in np.argwhere(before + after > 0).tolist()
        if truth != taken
    ]
    return sorted(rows, key=lambda row: (-abs(row.after - row.before), -row.after, str(row.truth), str(row.taken_for)))


def _count(name: str, objects: Iterable[Object], alarms: Iterable[FalseAlarm]) -> DetectionCounts:
    objects, alarms = list(objects), list(alarms)
    outcomes = Counter(each.outcome for each in objects)
    changes = _score_changes(objects)
    return DetectionCounts(
        name=name,
        objects=len(objects),
        kept=outcomes["kept"],
        lost=outcomes["lost"],
        gained=outcomes["gained"],
        missed=outcomes["missed"],
        false_before=sum(alarm.before is not None for alarm in alarms),
        false_after=sum(alarm.after is not None for alarm in alarms),
        shift=float(changes.mean()) if len(changes) else None,
    )


def _score_changes(objects: Iterable[Object]) -> np.ndarray:
    """Return the score after less the score before of objects that both networks detect, float64 [n]."""
    pairs = ((each.before, each.after) for each in objects if each.outcome == "kept")
    return np.array([after.score - before.score for before, after in pairs])  # type: ignore[operator]

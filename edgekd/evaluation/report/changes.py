"""Counts of detections as the report shows them: classes by change, and confusion matrices."""

from __future__ import annotations

import numpy as np

from edgekd.evaluation.analysis.counts import DetectionCounts
from edgekd.evaluation.analysis.types import Analysis

MATRIX = 12
"""Number of classes in a confusion matrix; all others are combined."""


def counted_classes(analysis: Analysis | None) -> list[DetectionCounts]:
    """Return the counts of each class that has objects or false alarms, the largest loss first."""
    counts = [c for c in analysis.classes if c.objects or c.false_before or c.false_after] if analysis else []
    return sorted(counts, key=lambda each: (each.gained - each.lost, -each.lost, each.name))


def confusion_matrix(analysis: Analysis, counts: np.ndarray) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return the names and rows of a matrix of the most confused classes, and the others together.

    counts: of one network, as in `matching.Findings`. The last row counts detections without an object, the last column
    missed objects.
    """
    classes, both = analysis.class_names, sum(analysis.tables)
    stray = both - np.diag(np.diag(both))
    weight = stray.sum(axis=0)[:-1] + stray.sum(axis=1)[:-1]
    chosen = sorted(np.argsort(-weight, kind="stable")[:MATRIX].tolist())
    others = [index for index in range(len(classes)) if index not in chosen]
    groups = [[index] for index in chosen] + ([others] if others else []) + [[len(classes)]]
    names = (*(classes[index] for index in chosen), *(("others",) if others else ()))
    return names, [[int(counts[np.ix_(truth, taken_for)].sum()) for taken_for in groups] for truth in groups]

"""Errors of a converted network relative to its source, and their limits. Pure, but for NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.core.detection.decode import candidate_confidence, candidate_rows
from edgekd.core.detection.parity import RelativeError, has_places, nearest, parts
from edgekd.core.detection.types import Head

CONFIDENT = 0.25  # confidence from which a candidate's box is compared by itself
FLOAT32_LIMITS = (1e-3, 1e-3)
"""Largest errors of boxes and of scores if only the order of summation differs."""
FLOAT16_LIMITS = (0.02, 0.05)
"""The same for weights that are rounded to float16."""
MIN_INT8_LIMITS = (0.02, 0.05)
"""Lower bounds of the limits for INT8."""
INT8_FACTOR = 2.5
"""Limits for INT8 relative to the error of INT8 itself: runtimes round halves differently, and differences add up."""
MIN_SCORE_RMS = 1e-4  # scores of a network without detections are smaller


@dataclass(frozen=True)
class Distance:
    """Errors of outputs over all frames.

    Args:
        boxes: Relative error of boxes, weighted by confidence.
        scores: Relative error of scores.
        largest_score: Largest difference of any score.
        largest_box: Largest difference of a coordinate of a box with a confidence above 0.25, in the unit of the
            output; null where there is none.
    """

    boxes: float
    scores: float
    largest_score: float
    largest_box: float | None

    def within(self, limits: tuple[float, float]) -> bool:
        """Return whether boxes and scores are within their limits; False for NaN."""
        return self.boxes <= limits[0] and self.scores <= limits[1]


def distance(outputs: Sequence[np.ndarray], references: Sequence[np.ndarray], head: Head) -> Distance:
    """Return the errors of outputs relative to those of the source for the same frames; infinite for other shapes."""
    if any(output.shape != reference.shape for output, reference in zip(outputs, references, strict=True)):
        return Distance(float("inf"), float("inf"), float("inf"), None)
    errors = {"boxes": RelativeError(), "scores": RelativeError()}
    largest_scores, largest_boxes = [], []
    for output, reference in zip(outputs, references, strict=True):
        rows, expected = _rows(output, reference, head)
        columns_of = parts(expected, head)
        for part, (columns, weights) in columns_of.items():
            errors[part].add(rows[:, columns], expected[:, columns], weights)
        difference, confident = np.abs(rows - expected), candidate_confidence(expected, head) > CONFIDENT
        largest_scores.append(float(difference[:, columns_of["scores"][0]].max()))
        largest_boxes += [float(difference[confident, :4].max())] if confident.any() else []
    return Distance(
        boxes=errors["boxes"].value(),
        scores=errors["scores"].value(min_rms=MIN_SCORE_RMS),
        largest_score=max(largest_scores),
        largest_box=max(largest_boxes, default=None),
    )


def limits(int8: Distance | None, *, narrow: bool) -> tuple[float, float]:
    """Return the largest errors of boxes and scores that a conversion may make.

    int8: errors of the INT8 source relative to the same in floating point, None for a float source; narrow: weights are
    rounded to float16.
    """
    if int8 is None:
        return FLOAT16_LIMITS if narrow else FLOAT32_LIMITS
    boxes, scores = MIN_INT8_LIMITS
    return max(boxes, INT8_FACTOR * int8.boxes), max(scores, INT8_FACTOR * int8.scores)


def _rows(output: np.ndarray, reference: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Return both outputs as candidates float64 [n, f], matched; values that are not finite become large."""
    rows, expected = (
        candidate_rows(np.nan_to_num(each.astype(np.float64), nan=1e9, posinf=1e9, neginf=-1e9), head)
        for each in (output, reference)
    )
    return (rows if has_places(head) else nearest(rows, expected, head)), expected

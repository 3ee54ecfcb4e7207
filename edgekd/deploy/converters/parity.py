"""The error of a converted network against its source, and its limits. Pure, but for NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.core.detection.decode import candidate_confidence, candidate_rows
from edgekd.core.detection.parity import RelativeError, nearest, parts
from edgekd.core.detection.types import Head

SURE = 0.25
"""The confidence of a candidate whose box counts as found."""
FLOAT32, FLOAT16 = (1e-3, 1e-3), (0.02, 0.05)
"""The largest error of boxes and of scores where only the order of sums differs, and where weights are rounded."""
LEAST_OF_INT8 = (0.02, 0.05)
INT8_SHARE = 2.5
"""Factor on the error of INT8 itself: runtimes round halves differently, and each difference spreads further."""
LEAST_SCORE = 1e-4  # root mean square; where a network finds nothing, its scores are smaller


@dataclass(frozen=True)
class Distance:
    """The errors of outputs against those expected, over all frames.

    Args:
        boxes: Relative error of boxes, each weighted by its confidence.
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
        """Return whether boxes and scores are within their limits; NaN is not."""
        return self.boxes <= limits[0] and self.scores <= limits[1]


def distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], head: Head) -> Distance:
    """Return the distance of `found` from `expected`, outputs of the same frames. Other shapes are infinitely far."""
    if any(one.shape != other.shape for one, other in zip(found, expected, strict=True)):
        return Distance(float("inf"), float("inf"), float("inf"), None)
    errors = {"boxes": RelativeError(), "scores": RelativeError()}
    largest_scores, largest_boxes = [], []
    for one, other in zip(found, expected, strict=True):
        got, wanted = _rows(one, other, head)
        columns_of = parts(wanted, head)
        for part, (columns, weights) in columns_of.items():
            errors[part].add(got[:, columns], wanted[:, columns], weights)
        off, sure = np.abs(got - wanted), candidate_confidence(wanted, head) > SURE
        largest_scores.append(float(off[:, columns_of["scores"][0]].max()))
        largest_boxes += [float(off[sure, :4].max())] if sure.any() else []
    return Distance(
        boxes=errors["boxes"].value(),
        scores=errors["scores"].value(min_rms=LEAST_SCORE),
        largest_score=max(largest_scores),
        largest_box=max(largest_boxes, default=None),
    )


def limits(narrow: bool, int8: Distance | None) -> tuple[float, float]:
    """Return the largest errors of boxes and scores that a conversion may make.

    narrow: whether something is rounded to float16; int8: the distance of the INT8 source from the same in floating
    point, where INT8 is carried over.
    """
    allowed = FLOAT16 if narrow else FLOAT32
    if int8 is None:
        return allowed
    boxes, scores = (
        max(least, INT8_SHARE * own) for least, own in zip(LEAST_OF_INT8, (int8.boxes, int8.scores), strict=True)
    )
    return boxes, scores


def _rows(found: np.ndarray, expected: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Return both outputs as candidates float64 [n, f]; what is not finite is far away."""
    got, wanted = (
        candidate_rows(np.nan_to_num(each.astype(np.float64), nan=1e9, posinf=1e9, neginf=-1e9), head)
        for each in (found, expected)
    )
    return (nearest(got, wanted), wanted) if head.kind == "end2end" else (got, wanted)

"""How far a converted network is from its source, and how far it may be. Pure, but for NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.agent.parity import candidates, confidence, nearest, parts
from edgekd.core.detection.types import Head

SURE = 0.25
"""The confidence of a candidate whose box counts as found."""
FLOAT32, FLOAT16 = (1e-3, 1e-3), (0.02, 0.05)
"""The largest error of boxes and of scores where only the order of sums differs, and where weights are rounded."""
LEAST_OF_INT8 = (0.02, 0.05)
INT8_SHARE = 2.5
"""Of what INT8 itself changed: runtimes round halves their own way, and each flip goes through the layers behind."""
_FLOOR = 1e-4  # of a score; where a network finds nothing, all of them are smaller


@dataclass(frozen=True)
class Distance:
    """How far outputs are from those expected, over all frames.

    boxes, scores: root of the squared differences by that of the values; a box counts as much as its confidence.
    largest_score, largest_box: the largest single difference, of any score, and of a coordinate of a sure box, in the
    unit of the output; None where no box is sure.
    """

    boxes: float
    scores: float
    largest_score: float
    largest_box: float | None

    def within(self, limits: tuple[float, float]) -> bool:
        """Return whether boxes and scores are within their limits; NaN is not."""
        return self.boxes <= limits[0] and self.scores <= limits[1]


def distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], head: Head) -> Distance:
    """How far `found` is from `expected`, outputs of the same frames. Shapes that differ are infinitely far."""
    if any(one.shape != other.shape for one, other in zip(found, expected, strict=True)):
        return Distance(float("inf"), float("inf"), float("inf"), None)
    pairs = [_rows(one, other, head) for one, other in zip(found, expected, strict=True)]
    scores = list(_weighed(pairs, head, "scores"))
    sure = [np.abs(got[at, :4] - wanted[at, :4]) for got, wanted in pairs for at in [confidence(wanted, head) > SURE]]
    sizes = [float(each.max()) for each in sure if each.size]
    return Distance(
        boxes=_relative(_weighed(pairs, head, "boxes"), 1e-12),
        scores=_relative(scores, _FLOOR),
        largest_score=max(float(np.abs(off).max()) for off, _ in scores),
        largest_box=max(sizes, default=None),
    )


def limits(narrow: bool, int8: Distance | None) -> tuple[float, float]:
    """The largest errors of boxes and scores that a conversion may make.

    narrow: whether something is rounded to float16; int8: how far the INT8 source is from the same in floating point,
    where INT8 is carried over.
    """
    allowed = FLOAT16 if narrow else FLOAT32
    if int8 is None:
        return allowed
    boxes, scores = (
        max(least, INT8_SHARE * own) for least, own in zip(LEAST_OF_INT8, (int8.boxes, int8.scores), strict=True)
    )
    return boxes, scores


def _rows(found: np.ndarray, expected: np.ndarray, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Both outputs as candidates float64 [n, f]; what is not finite is far away."""
    got, wanted = (
        candidates(np.nan_to_num(each.astype(np.float64), nan=1e9, posinf=1e9, neginf=-1e9), head)
        for each in (found, expected)
    )
    return (nearest(got, wanted), wanted) if head.kind == "end2end" else (got, wanted)


def _weighed(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], head: Head, part: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The differences of the boxes or of the scores of each frame, and the expected values."""
    for got, wanted in pairs:
        at, by = parts(wanted, head)[part]
        yield (got[:, at] - wanted[:, at]) * by, wanted[:, at] * by


def _relative(pairs: Iterable[tuple[np.ndarray, np.ndarray]], floor: float) -> float:
    """Root mean square of the differences by that of the values, at least `floor`, over all frames."""
    off, size, count = 0.0, 0.0, 0
    for difference, value in pairs:
        off, size, count = off + float((difference**2).sum()), size + float((value**2).sum()), count + value.size
    return float(np.sqrt(off / count) / max(np.sqrt(size / count), floor))

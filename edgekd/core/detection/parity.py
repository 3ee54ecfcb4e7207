"""Errors of a network's output against the expected one, by which every parity check judges.

Shared with the device: Python 3.8 and NumPy only.
"""

from __future__ import annotations

import math

import numpy as np

from edgekd.core.detection.decode import candidate_confidence
from edgekd.core.detection.rotated import enclosing
from edgekd.core.detection.types import NO_GRID, Head

_MIN_SIGNAL = 1e-30  # squared, so that an output of zeros has an error too
_MIN_MAGNITUDE = 1e-3  # added to a row's largest value: rows of zeros are measured by this
_MIN_UNION = 1e-12  # square pixels
_MASK_ROWS = 32  # as many candidates as a golden set has of highest confidence


class RelativeError:
    """Root of the squared differences by that of the expected values, over all arrays that were added."""

    def __init__(self) -> None:
        self._noise = self._signal = 0.0
        self._count = 0

    def add(self, found: np.ndarray, expected: np.ndarray, weights: float | np.ndarray = 1.0) -> None:
        """Add arrays of one shape; weights: of their values, broadcast."""
        expected = expected.astype(np.float64)
        self._noise += float(np.square((found - expected) * weights).sum())
        self._signal += float(np.square(expected * weights).sum())
        self._count += expected.size

    def power(self, min_rms: float = 0.0) -> float:
        """Return noise by signal, the square of the error; min_rms: of the expected values, at least."""
        return self._noise / max(self._signal, self._count * min_rms**2, _MIN_SIGNAL)

    def value(self, min_rms: float = 0.0) -> float:
        """Return the error; min_rms: of the expected values, at least."""
        return math.sqrt(self.power(min_rms))


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest magnitude in its row: boxes and scores count alike."""
    if expected.shape != found.shape:
        return float("inf")
    scale = np.abs(expected).max(axis=-1, keepdims=True) + _MIN_MAGNITUDE
    return float((np.abs(expected - found) / scale).max())


def parts(expected: np.ndarray, head: Head) -> dict[str, tuple[slice | np.ndarray, np.ndarray]]:
    """Return the columns of boxes and of scores, and their weights: a box counts as much as its confidence.

    Places of keypoints count as boxes do, and belong to them; how visible they are, the angle of a box, and what makes
    its mask, belong to the scores, which have their magnitude. All coefficients of a mask count as one number, and all
    pixels of prototypes as _MASK_ROWS confident candidates at most.
    """
    weights = np.sqrt(np.clip(candidate_confidence(expected, head), 0, 1))[:, None]
    end = expected.shape[1] - head.extra
    end_of_scores = 5 if head.kind == "end2end" else end
    if not head.extra:
        return {"boxes": (slice(0, 4), weights), "scores": (slice(4, end_of_scores), np.ones(1))}
    boxes, scores = np.arange(4), np.arange(4, end_of_scores)
    columns = np.arange(end, expected.shape[1]).reshape(-1, head.keypoints.dimensions if head.keypoints else 1)
    places = columns[:, :2] if head.keypoints else columns[:, 1:]
    others = np.setdiff1d(columns, places)
    score_weights = np.ones((len(expected), len(scores) + len(others)))
    score_weights[:, len(scores) :] = _mask_weights(expected, weights, head) if head.masks else weights
    return {
        "boxes": (np.concatenate([boxes, places.ravel()]), weights),
        "scores": (np.concatenate([scores, others]), score_weights),
    }


def _mask_weights(expected: np.ndarray, weights: np.ndarray, head: Head) -> np.ndarray:
    """Return the weights [n, 1] of coefficients, or of prototypes in rows that have nothing but them."""
    pixels = ~expected[:, : expected.shape[1] - head.extra].any(axis=1, keepdims=True)
    of_pixels = min(1.0, _MASK_ROWS / max(int(pixels.sum()), 1)) ** 0.5
    return np.asarray(np.where(pixels, of_pixels, weights) / math.sqrt(head.extra))


def has_places(head: Head) -> bool:
    """Return True for candidates that belong to cells of a grid, False for finished detections and queries.

    Those come in the order of scores, in which a small difference makes two of them trade places.
    """
    return head.kind != "end2end" and head.strides != NO_GRID


def nearest(rows: np.ndarray, expected: np.ndarray, head: Head) -> np.ndarray:
    """Return for each expected row of a head without places the most similar row.

    A finished detection is compared with those of its class, by their overlap; the result has zeros where there is
    none. A query is compared by its box, in shares of the largest coordinate, and its scores.
    """
    if head.kind != "end2end":
        scale = np.ones(rows.shape[1])
        scale[:4] = 1 / (np.abs(expected[:, :4]).max() + _MIN_MAGNITUDE)
        queries: np.ndarray = rows[[int((np.abs(rows - wanted) @ scale).argmin()) for wanted in expected]]
        return queries
    matched = np.zeros_like(expected)
    boxes, expected_boxes = (_boxes(each, head) for each in (rows, expected))
    for index, (wanted, box) in enumerate(zip(expected, expected_boxes)):  # noqa: B905 strict is Python 3.10
        overlaps = np.where(rows[:, 5] == wanted[5], _overlap(boxes, box), 0)
        best = int(overlaps.argmax())
        if overlaps[best] > 0:
            matched[index] = rows[best]
    return matched


def _boxes(rows: np.ndarray, head: Head) -> np.ndarray:
    """Return the boxes [n, 4] x1, y1, x2, y2 of finished detections, around rotated ones."""
    if head.rotated:
        return enclosing(np.concatenate([rows[:, :4], rows[:, -1:]], axis=1))
    boxes: np.ndarray = rows[:, :4]
    return boxes


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes [n, 4] and one box, x1, y1, x2, y2."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.clip(sides, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    shares: np.ndarray = common / np.maximum(areas - common, _MIN_UNION)
    return shares

"""Rotated boxes: float [n, 5] centre x, y, width, height, and the angle in radians from the x axis to the width.

Angles turn as the axes of an image do: from right to down.

Shared with the device: Python 3.8 and NumPy only.
"""

from __future__ import annotations

import numpy as np

MAX_ROTATED = 4096
"""Candidates, best first, that suppression considers: each is compared with all better ones."""
_BLOCK = 128  # candidates that are compared at a time: the tables of a block fit into the cache
_EPSILON = 1e-7  # added to denominators and to the argument of a root, as in Ultralytics' `batch_probiou`
_MAX_DISTANCE = 100.0  # Bhattacharyya distance; what is farther overlaps by less than 1e-40


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return the corners [n, 4, 2] of rotated boxes [n, 5], in the order of growing angles."""
    centre, half = boxes[:, None, :2], boxes[:, None, 2:4] / 2
    cos, sin = np.cos(boxes[:, 4:]), np.sin(boxes[:, 4:])
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], boxes.dtype)
    across, along = (half * signs).transpose(2, 0, 1)
    return np.asarray(centre + np.stack([across * cos - along * sin, across * sin + along * cos], axis=2))


def enclosing(boxes: np.ndarray) -> np.ndarray:
    """Return the boxes [n, 4] x1, y1, x2, y2 around rotated boxes [n, 5]."""
    corners = corners_of(boxes)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def prob_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the similarity [n, m], 0 to 1, of rotated boxes [n, 5] and [m, 5], each taken as a normal distribution.

    Source: Llerena et al., "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union", 2021.
    """
    x, y = ((first[:, None, axis] - second[None, :, axis]) for axis in (0, 1))
    one, other = [each[:, None] for each in _covariance(first)], [each[None] for each in _covariance(second)]
    a, b, c = one[0] + other[0], one[1] + other[1], one[2] + other[2]
    determinant = a * b - c * c
    means = ((a * y * y + b * x * x) / 4 - c * x * y / 2) / (determinant + _EPSILON)
    squares = [np.maximum(across * along - both * both, 0) for across, along, both in (one, other)]
    own = np.sqrt(squares[0] * squares[1])
    spreads = np.log(determinant / (4 * own + _EPSILON) + _EPSILON) / 2
    distance = np.clip(means + spreads, _EPSILON, _MAX_DISTANCE)
    return np.asarray(1 - np.sqrt(1 - np.exp(-distance) + _EPSILON))


def suppress_rotated(boxes: np.ndarray, classes: np.ndarray, iou: float, max_boxes: int) -> np.ndarray:
    """Return the indices int64 of the rotated boxes [n, 5] that no better one of their class overlaps by more.

    By `prob_iou`, also with boxes that are themselves suppressed, as in Ultralytics. Best first; of those, the first
    MAX_ROTATED are considered.
    """
    count, kept = min(len(boxes), MAX_ROTATED), np.zeros(0, np.int64)
    for begin in range(0, count, _BLOCK):
        block = np.arange(begin, min(begin + _BLOCK, count))
        better = np.arange(block[-1])
        with np.errstate(all="ignore"):  # of sides near the largest float: such a box overlaps nothing
            overlaps = prob_iou(boxes[better], boxes[block]) > iou
        overlaps &= (classes[better, None] == classes[block]) & (better[:, None] < block)
        kept = np.concatenate([kept, block[~overlaps.any(axis=0)]])
        if len(kept) >= max_boxes:
            break
    return kept[:max_boxes]


def _covariance(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the covariances [n] of boxes as normal distributions: of x, of y, and of both."""
    across, along = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    return across * cos**2 + along * sin**2, across * sin**2 + along * cos**2, (across - along) * cos * sin

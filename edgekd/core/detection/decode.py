"""From the network's output to detections: head decoding and class-aware non-maximum suppression.

Shared with the device: Python 3.8 and NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.core.detection.preprocess import Placement, to_frame
from edgekd.core.detection.types import Detections, DetectorSpec, Head

if TYPE_CHECKING:
    from edgekd.core.bundle import manifest

# Candidates beyond this many, best first, are not looked at: it bounds the time of a frame full of noise.
MAX_CANDIDATES = 30_000


@dataclass(frozen=True)
class Thresholds:
    """What counts as a detection.

    confidence: least score; iou: two boxes of one class that overlap more are one object; max_detections per frame;
    multi_label: whether one box may carry several classes, as COCO scoring wants, or only its best.
    """

    confidence: float = 0.25
    iou: float = 0.7
    max_detections: int = 300
    multi_label: bool = False


SCORING = Thresholds(confidence=0.001, multi_label=True)


def decode(
    output: np.ndarray, spec: DetectorSpec, placement: Placement, thresholds: Thresholds = Thresholds()
) -> Detections:
    """The detections in one frame. `output` is the network's, float32, as `spec.head` describes it."""
    size = (spec.preprocess.height, spec.preprocess.width)
    boxes, scores, classes = _candidates(output[0], spec.head, size, thresholds)
    possible = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    best_first = possible[np.argsort(-scores[possible], kind="stable")[:MAX_CANDIDATES]]
    boxes, scores, classes = boxes[best_first], scores[best_first], classes[best_first]
    if spec.head.nms:
        kept = suppress(boxes, classes, thresholds.iou, thresholds.max_detections)
    else:
        kept = np.arange(min(len(scores), thresholds.max_detections))
    return Detections(to_frame(boxes[kept], placement), scores[kept], classes[kept])


def decode_by_class(
    output: np.ndarray, spec: DetectorSpec, placement: Placement, limits: manifest.Thresholds
) -> Detections:
    """The detections in one frame as a camera has them: by a bundle's thresholds, of which each class has its own."""
    least = Thresholds(min(limits.confidence), limits.iou, limits.max_detections)
    found = decode(output, spec, placement, least)
    return above(found, limits.confidence)


def above(found: Detections, confidence: Sequence[float]) -> Detections:
    """Those detections whose score is above what `confidence` has for their class."""
    return found.only(found.scores > np.asarray(confidence, np.float32)[found.classes])


def suppress(boxes: np.ndarray, classes: np.ndarray, iou: float, most: int) -> np.ndarray:
    """Indices, int64, of the boxes that stay: greedy, best first, only against boxes of the same class.

    boxes float32 [n, 4] x1, y1, x2, y2 and classes int64 [n], both sorted by falling score; at most `most` stay.
    """
    # Columns, each contiguous: three times as fast as rows of boxes when there are many.
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    areas, left = (x2 - x1) * (y2 - y1), np.arange(len(boxes))
    kept: list[int] = []
    while left.size and len(kept) < most:
        kept.append(int(left[0]))
        width = np.maximum(np.minimum(x2[0], x2) - np.maximum(x1[0], x1), 0)
        height = np.maximum(np.minimum(y2[0], y2) - np.maximum(y1[0], y1), 0)
        overlap = width * height
        stays = (overlap <= iou * (areas[0] + areas - overlap)) | (classes != classes[0])
        stays[0] = False
        x1, y1, x2, y2, areas, classes, left = (part[stays] for part in (x1, y1, x2, y2, areas, classes, left))
    return np.array(kept, np.int64)


def _candidates(
    rows: np.ndarray, head: Head, size: tuple[int, int], thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [n, 4] x1, y1, x2, y2 in input pixels, scores [n], classes [n] above the confidence threshold."""
    if head.kind == "end2end":
        sure = rows[rows[:, 4] > thresholds.confidence]
        return sure[:, :4], sure[:, 4], sure[:, 5].astype(np.int64)
    if head.kind == "yolo":
        return _select(rows[:4].T, rows[4:], thresholds)
    centres, strides = _cells(size, head.strides)
    sure = np.flatnonzero(rows[:, 4] > thresholds.confidence)  # no class can score above the objectness
    rows, centres, strides = rows[sure], centres[sure], strides[sure]
    with np.errstate(over="ignore"):  # a box without limits is not finite, and dropped as such
        boxes = np.concatenate([(rows[:, :2] + centres) * strides, np.exp(rows[:, 2:4]) * strides], axis=1)
    return _select(boxes, (rows[:, 5:] * rows[:, 4:5]).T, thresholds)


def _select(boxes: np.ndarray, scores: np.ndarray, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates among boxes [n, 4] cx, cy, w, h with scores [classes, n]."""
    if thresholds.multi_label:
        classes, at = np.nonzero(scores > thresholds.confidence)
    else:
        at = np.flatnonzero(scores.max(axis=0, initial=0) > thresholds.confidence)
        classes = scores[:, at].argmax(axis=0) if at.size else at
    centre, half = boxes[at, :2], boxes[at, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1), scores[classes, at], classes.astype(np.int64)


def _cells(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Grid cell corners float32 [n, 2] x, y in cells, and the stride of each, float32 [n, 1]."""
    grids, steps = [], []
    for stride in strides:
        ys, xs = np.mgrid[: size[0] // stride, : size[1] // stride]
        grids.append(np.stack([xs.ravel(), ys.ravel()], axis=1))
        steps.append(np.full((xs.size, 1), stride))
    return np.concatenate(grids).astype(np.float32), np.concatenate(steps).astype(np.float32)

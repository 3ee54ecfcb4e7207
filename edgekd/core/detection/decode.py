"""Detections from the output of a network: head decoding and class-aware non-maximum suppression.

Shared with the device: Python 3.8 and NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.core.detection.masks import InstanceMasks
from edgekd.core.detection.preprocess import Placement, rotated_to_frame, to_frame
from edgekd.core.detection.rotated import enclosing, suppress_rotated
from edgekd.core.detection.types import Detections, DetectorSpec, Head, Keypoints, Masks

if TYPE_CHECKING:
    from edgekd.core.bundle import manifest

MAX_CANDIDATES = 30_000
"""Candidates, best first, that suppression considers: it bounds the time of a frame full of noise."""

BLOCK = 256
"""Candidates that suppression compares with each other at once: of few frames are more above a usual threshold."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of a detection.

    confidence: minimum score; iou: two boxes of one class that overlap more are one object; max_detections per frame;
    multi_label: whether a box may have several classes, as in COCO scoring, or only its best.
    """

    confidence: float = 0.25
    iou: float = 0.7
    max_detections: int = 300
    multi_label: bool = False


SCORING = Thresholds(confidence=0.001, multi_label=True)


def decode(
    output: np.ndarray, spec: DetectorSpec, placement: Placement, thresholds: Thresholds = Thresholds()
) -> Detections:
    """Decode the detections in one frame. output: of the network, float32, as `spec.head` describes it."""
    size, prototypes = (spec.preprocess.height, spec.preprocess.width), None
    if spec.head.masks:
        output, prototypes = _without_prototypes(output, spec.head.masks)
    boxes, scores, classes, index = _candidates(output[0], spec.head, size, thresholds)
    rows = candidate_rows(output, spec.head)
    extra = rows[index, rows.shape[1] - spec.head.extra :]
    finite = np.flatnonzero(np.isfinite(boxes).all(axis=1) & np.isfinite(extra).all(axis=1))
    best_first = finite[np.argsort(-scores[finite], kind="stable")[:MAX_CANDIDATES]]
    boxes, scores, classes = boxes[best_first], scores[best_first], classes[best_first]
    extra, rotated, keypoints, masks = extra[best_first], None, None, None
    if spec.head.rotated:
        boxes = np.concatenate([boxes, extra[:, -1:]], axis=1)
    kept = _kept(boxes, classes, spec.head, thresholds)
    boxes, extra = boxes[kept], extra[kept]
    if spec.head.rotated:
        boxes, rotated = enclosing(boxes), rotated_to_frame(boxes, placement)
    if spec.head.keypoints:
        keypoints = _keypoints(extra, spec.head.keypoints, placement)
    boxes = to_frame(boxes, placement)
    if prototypes is not None:
        masks = _masks(extra, prototypes, boxes, placement, size)
    return Detections(boxes, scores[kept], classes[kept], keypoints, rotated, masks)


def decode_by_class(
    output: np.ndarray, spec: DetectorSpec, placement: Placement, limits: manifest.DetectionThresholds
) -> Detections:
    """Decode the detections in one frame by a bundle's thresholds, of which each class has its own."""
    lowest = Thresholds(min(limits.confidence), limits.iou, limits.max_detections)
    return above(decode(output, spec, placement, lowest), limits.confidence)


def above(detections: Detections, confidence: Sequence[float]) -> Detections:
    """Return the detections whose score is above the confidence threshold of their class."""
    return detections.only(exceeds(detections, confidence))


def exceeds(detections: Detections, confidence: Sequence[float]) -> np.ndarray:
    """Return whether, bool [n], the score of each detection is above the confidence threshold of its class."""
    mask: np.ndarray = detections.scores > np.asarray(confidence, np.float32)[detections.classes]
    return mask


def candidate_rows(output: np.ndarray, head: Head) -> np.ndarray:
    """Return the output of a head as rows [n, f], one for each candidate: a box of four numbers, then the rest.

    Pixels of prototypes of masks are the last rows.
    """
    rows: np.ndarray = output[0].T if head.kind == "yolo" else output[0]
    return rows


def candidate_confidence(rows: np.ndarray, head: Head) -> np.ndarray:
    """Return the confidence [n], 0 to 1, of candidates [n, f]."""
    if head.kind == "end2end":
        scores: np.ndarray = rows[:, 4]
        return scores
    end = rows.shape[1] - head.extra
    best: np.ndarray = rows[:, 4:end].max(axis=1) if head.kind == "yolo" else rows[:, 4] * rows[:, 5:end].max(axis=1)
    return best


def suppress(boxes: np.ndarray, classes: np.ndarray, iou: float, max_boxes: int) -> np.ndarray:
    """Return the indices int64 of the boxes that greedy non-maximum suppression keeps, each class by itself.

    boxes float32 [n, 4] x1, y1, x2, y2 and classes int64 [n], both in descending order of score.
    """
    kept = np.empty(0, np.int64)
    for start in range(0, len(boxes), BLOCK):
        if len(kept) >= max_boxes:
            break
        block = np.arange(start, min(start + BLOCK, len(boxes)))
        if len(kept):
            block = block[~_duplicates(boxes, classes, kept, block, iou).any(axis=0)]
        duplicates = _duplicates(boxes, classes, block, block, iou)
        stays = np.ones(len(block), bool)
        for row in range(len(block)):
            if stays[row]:
                stays[row + 1 :] &= ~duplicates[row, row + 1 :]
        kept = np.concatenate([kept, block[stays]])
    return kept[:max_boxes]


def _duplicates(
    boxes: np.ndarray, classes: np.ndarray, rows: np.ndarray, columns: np.ndarray, iou: float
) -> np.ndarray:
    """Return bool [rows, columns]: pairs of boxes of one class that overlap more than `iou`. rows, columns: indices."""
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[rows].T)[:, :, None]
    left, top, right, bottom = np.ascontiguousarray(boxes[columns].T)
    width = np.maximum(np.minimum(x2, right) - np.maximum(x1, left), 0)
    height = np.maximum(np.minimum(y2, bottom) - np.maximum(y1, top), 0)
    overlap = width * height
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - overlap
    found: np.ndarray = ~(overlap <= iou * union) & (classes[rows][:, None] == classes[columns])
    return found


def _without_prototypes(output: np.ndarray, masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """Return the output without prototypes, and these, float32 [k, h, w]."""
    count = output.shape[2] - masks.height * masks.width
    pixels = output[0, -masks.coefficients :, count:]
    return output[:, :, :count], pixels.reshape(masks.coefficients, masks.height, masks.width)


def _masks(
    coefficients: np.ndarray, prototypes: np.ndarray, boxes: np.ndarray, placement: Placement, size: tuple[int, int]
) -> InstanceMasks:
    """Return the masks of boxes [n, 4] in pixels of the frame. size: height and width of the input."""
    down, across = prototypes.shape[1] / size[0], prototypes.shape[2] / size[1]  # pixels of a prototype per input pixel
    area = (placement.top * down, placement.left * across, placement.down * down, placement.across * across)
    # Copied, because runtimes may write the next output to the same place.
    return InstanceMasks(coefficients, prototypes.copy(), boxes, (placement.height, placement.width), area)


def _kept(boxes: np.ndarray, classes: np.ndarray, head: Head, thresholds: Thresholds) -> np.ndarray:
    """Return the indices of the boxes, best first, that are detections. boxes: [n, 4], or [n, 5] rotated."""
    if not head.nms:
        return np.arange(min(len(boxes), thresholds.max_detections))
    suppressing = suppress_rotated if head.rotated else suppress
    return suppressing(boxes, classes, thresholds.iou, thresholds.max_detections)


def _candidates(
    rows: np.ndarray, head: Head, size: tuple[int, int], thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the candidates above the confidence threshold.

    boxes [n, 4] in input pixels, x1, y1, x2, y2, or cx, cy, w, h of a rotated box, scores [n], classes [n], and indices
    [n] of their rows.
    """
    if head.kind == "end2end":
        index = np.flatnonzero(rows[:, 4] > thresholds.confidence)
        confident = rows[index]
        return confident[:, :4], confident[:, 4], confident[:, 5].astype(np.int64), index
    if head.kind == "yolo":
        return _select(rows[:4].T, rows[4 : len(rows) - head.extra], thresholds, rotated=head.rotated)
    centres, strides = _cells(size, head.strides)
    index = np.flatnonzero(rows[:, 4] > thresholds.confidence)  # no class can score above the objectness
    rows, centres, strides = rows[index, : rows.shape[1] - head.extra], centres[index], strides[index]
    with np.errstate(over="ignore"):  # an infinite box is dropped later
        boxes = np.concatenate([(rows[:, :2] + centres) * strides, np.exp(rows[:, 2:4]) * strides], axis=1)
    scores = (rows[:, 5:] * rows[:, 4:5]).T
    boxes, scores, classes, selected = _select(boxes, scores, thresholds, rotated=head.rotated)
    return boxes, scores, classes, index[selected]


def _select(
    boxes: np.ndarray, scores: np.ndarray, thresholds: Thresholds, *, rotated: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the candidates among boxes [n, 4] cx, cy, w, h with scores [classes, n], as `_candidates` does."""
    if thresholds.multi_label:
        classes, index = np.nonzero(scores > thresholds.confidence)
    else:
        index = np.flatnonzero(scores.max(axis=0, initial=0) > thresholds.confidence)
        classes = scores[:, index].argmax(axis=0) if index.size else index
    boxes = boxes[index]
    if not rotated:
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)
    return boxes, scores[classes, index], classes.astype(np.int64), index


def _keypoints(extra: np.ndarray, keypoints: Keypoints, placement: Placement) -> np.ndarray:
    """Return the keypoints float32 [n, k, 2 or 3] in columns [n, k * (2 or 3)], in pixels of the frame."""
    points = extra.reshape(-1, len(keypoints.sigmas), keypoints.dimensions)
    return np.concatenate([to_frame(points[:, :, :2], placement), points[:, :, 2:]], axis=2)


def _cells(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of grid cells float32 [n, 2] x, y in cells, and the stride of each, float32 [n, 1]."""
    grids, steps = [], []
    for stride in strides:
        ys, xs = np.mgrid[: size[0] // stride, : size[1] // stride]
        grids.append(np.stack([xs.ravel(), ys.ravel()], axis=1))
        steps.append(np.full((xs.size, 1), stride))
    return np.concatenate(grids).astype(np.float32), np.concatenate(steps).astype(np.float32)

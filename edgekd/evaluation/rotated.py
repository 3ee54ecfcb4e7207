"""Rotated boxes [n, 5] for COCO scoring: their exact overlap, annotations with them, and an evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.core.detection.rotated import corners_of
from edgekd.core.detection.types import Detections
from edgekd.core.errors import DataError
from edgekd.data.labels import Truth

_KEY = "rotated"
"""Key of a rotated box in an annotation."""
_MARGIN = 1e-6  # pixels that one rectangle shrinks and the other grows, so that a common edge counts once
_MIN_AREA = 1e-12  # square pixels


def labelled_boxes(truths: Sequence[tuple[Truth, int, int]]) -> NDArray[np.float64]:
    """Return the smallest rotated boxes [n, 5] around labelled polygons, in pixels. Raises DataError without these."""
    import cv2

    boxes = [np.zeros((0, 5))]
    for truth, width, height in truths:
        if truth.polygons is None:
            expected = "rows of a class and four corners (class x1 y1 x2 y2 x3 y3 x4 y4) alone, in YOLO layout"
            raise DataError("labels without rotated boxes, which the detector gives", expected=expected)
        for outline in truth.polygons:
            centre, size, degrees = cv2.minAreaRect(np.concatenate(outline) * np.array([width, height], np.float32))
            boxes.append(np.array([[*centre, *size, np.deg2rad(degrees)]]))
    return np.concatenate(boxes)


def found_boxes(detections: Sequence[Detections]) -> NDArray[np.float64]:
    """Return the rotated boxes [n, 5] of all detections."""
    return np.concatenate([np.zeros((0, 5)), *(each.rotated for each in detections if each.rotated is not None)])


def with_rotated(annotations: list[dict[str, Any]], boxes: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return COCO annotations with rotated boxes [n, 5], and their areas."""
    areas = boxes[:, 2] * boxes[:, 3]
    rows = zip(annotations, boxes, areas.tolist(), strict=True)
    return [{**each, _KEY: box, "area": area} for each, box, area in rows]


@cache
def rotated_evaluator() -> type[Any]:
    """Return faster-coco-eval's evaluator with the IoU of rotated boxes instead of upright ones."""
    from faster_coco_eval import COCOeval_faster

    class RotatedEvaluator(COCOeval_faster):  # type: ignore[misc]
        def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 names of the base class
            labelled, found = (
                each.loadAnns(each.getAnnIds(imgIds=[imgId], catIds=[catId])) for each in (self.cocoGt, self.cocoDt)
            )
            if not labelled or not found:
                return []
            found = sorted(found, key=lambda each: -each["score"])[: self.params.maxDets[-1]]
            return rotated_iou(*(np.stack([each[_KEY] for each in part]) for part in (found, labelled)))

    return RotatedEvaluator


def intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the areas float64 [n, m] that rotated boxes [n, 5] and [m, 5] share, exact to 1e-6 of their outlines.

    By Green's theorem: the outline of the intersection consists of the parts of the edges of each box that lie in the
    other. Edges that coincide count for the first box only.
    """
    centres = np.concatenate([first[:, :2], second[:, :2]]).astype(np.float64)
    moved = np.concatenate([centres.mean(axis=0) if len(centres) else np.zeros(2), np.zeros(3)])
    one, other = (corners_of(boxes.astype(np.float64) - moved) for boxes in (first, second))
    shared = _inside(one[:, None], other[None], -_MARGIN) + _inside(other[None], one[:, None], _MARGIN)
    return np.asarray(np.maximum(shared, 0))


def rotated_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union float64 [n, m] of rotated boxes [n, 5] and [m, 5]."""
    shared = intersections(first, second)
    areas, others = (boxes[:, 2].astype(np.float64) * boxes[:, 3] for boxes in (first, second))
    return np.asarray(shared / np.maximum(areas[:, None] + others - shared, _MIN_AREA))


def _inside(edges_of: np.ndarray, area: np.ndarray, margin: float) -> np.ndarray:
    """Return the integrals [n, m] of (x dy - y dx) / 2 along the parts of edges that lie at least `margin` inside.

    edges_of, area: corners [n or 1, m or 1, 4, 2] of rectangles.
    """
    start, step = edges_of, np.roll(edges_of, -1, axis=2) - edges_of
    side = np.roll(area, -1, axis=2) - area
    length = np.hypot(side[..., 0], side[..., 1])[:, :, None]
    # [n, m, edges, sides]: how far inside of a side an edge starts, and the change of it along the edge.
    depth = _cross(side[:, :, None], start[:, :, :, None] - area[:, :, None]) - margin * length
    change = _cross(side[:, :, None], step[:, :, :, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -depth / change
    parallel = change == 0
    enters = np.where(change > 0, crossing, np.where(parallel & (depth < 0), 1.0, 0.0)).max(axis=3)
    leaves = np.where(change < 0, crossing, 1.0).min(axis=3)
    share = np.clip(np.minimum(leaves, 1) - np.maximum(enters, 0), 0, None)
    return np.asarray((share * _cross(start, step)).sum(axis=2) / 2)


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.asarray(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0])

"""Scores of rotated boxes: COCO's average precision, with the overlap of rotated rectangles."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgekd.core.detection.rotated import corners_of, enclosing
from edgekd.core.detection.types import Detections, Head
from edgekd.core.errors import DataError
from edgekd.data.labels import Truth
from edgekd.evaluation.coco import score
from edgekd.evaluation.rotated import rotated_iou

WIDTH, HEIGHT = 400, 200
HEAD = Head("yolo", rotated=True)
BOX = np.array([[150, 100, 80, 20, 0.6]], np.float32)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
SIZE = np.array([WIDTH, HEIGHT], np.float32)


def truth(boxes: np.ndarray = BOX, classes: tuple[int, ...] = (0,)) -> tuple[Truth, int, int]:
    polygons = tuple((corners,) for corners in (corners_of(boxes) / SIZE).astype(np.float32))
    around = (enclosing(boxes) / np.tile(SIZE, 2)).astype(np.float32)
    return Truth(around, np.array(classes), np.zeros(len(boxes), bool), polygons=polygons), WIDTH, HEIGHT


def found(boxes: np.ndarray, scores: np.ndarray, classes: tuple[int, ...] = (0,)) -> Detections:
    return Detections(enclosing(boxes), scores.astype(np.float32), np.array(classes), rotated=boxes)


def random_boxes(count: int, side: float = 60.0, seed: int = 0) -> np.ndarray:
    """Random boxes float32 [n, 5] in a square of this side."""
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(0, side, (count, 2)), rng.uniform(2, 40, (count, 2)), rng.uniform(-1, 3, (count, 1))]
    return np.concatenate(parts, axis=1).astype(np.float32)


def test_the_overlap_is_that_of_the_rectangles() -> None:
    """Against OpenCV's intersection of convex polygons, with boxes that are equal, turned, and inside of others."""
    first, second = random_boxes(30), random_boxes(25, seed=1)
    second[:5], second[5:10] = first[:5], first[5:10] + np.array([0, 0, 0, 0, np.pi], np.float32)
    second[10:15] = first[10:15] * np.array([1, 1, 0.5, 0.5, 1], np.float32)
    figures, others = (corners_of(each.astype(np.float64)).astype(np.float32) for each in (first, second))
    shared = np.array([[cv2.intersectConvexConvex(one, other)[0] for other in others] for one in figures])
    areas, others_areas = (each[:, 2].astype(np.float64) * each[:, 3] for each in (first, second))
    expected = shared / (areas[:, None] + others_areas - shared)
    assert (expected > 0.1).sum() > 50
    np.testing.assert_allclose(rotated_iou(first, second), expected, atol=1e-5)
    np.testing.assert_allclose(np.diag(rotated_iou(first, second))[:15], [1] * 10 + [0.25] * 5, atol=1e-5)
    assert rotated_iou(first[:0], second).shape == (0, 25)


def test_a_turned_box_scores_by_its_overlap() -> None:
    turned = BOX + np.array([0, 0, 0, 0, 0.1], np.float32)
    overlap = rotated_iou(turned, BOX).item()
    assert 0.6 < overlap < 0.9
    result = score([found(turned, np.array([0.9]))], [truth()], ("ship",), HEAD)
    assert result.map50_95 == pytest.approx((overlap >= THRESHOLDS).mean())
    assert (result.map50, result.boxes) == (pytest.approx(1), None)
    assert score([found(turned, np.array([0.9]))], [truth()], ("ship",)).map50_95 > result.map50_95


def test_sizes_are_those_of_the_rotated_boxes() -> None:
    """The upright box around this one is large, it is not."""
    thin = np.array([[150, 100, 150, 20, 0.7]], np.float32)
    result = score([found(thin, np.array([0.9]))], [truth(thin)], ("ship",), HEAD)
    assert result.by_size == {"small": None, "medium": pytest.approx(1), "large": None}


def test_the_score_is_that_of_ultralytics_where_both_overlaps_agree() -> None:
    """Ultralytics compares by ProbIoU: equal boxes and far ones are the same to both."""
    metrics, torch = pytest.importorskip("ultralytics.utils.metrics"), pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    detections, truths, rows, labels = [], [], [], []
    for _ in range(12):
        boxes = np.concatenate(
            [rng.uniform(20, 180, (6, 2)), rng.uniform(10, 40, (6, 2)), rng.uniform(0, 1.5, (6, 1))], 1
        )
        boxes = boxes.astype(np.float32)
        moved = boxes + np.where(rng.random((6, 1)) < 0.4, 300, 0.05).astype(np.float32) * np.eye(
            1, 5, dtype=np.float32
        )
        kinds = tuple(rng.integers(0, 2, 6).tolist())
        order = np.argsort(-(scores := rng.random(6)))
        detections.append(found(moved[order], scores[order], tuple(np.array(kinds)[order])))
        truths.append(truth(boxes, kinds))
        similar = metrics.batch_probiou(torch.from_numpy(boxes), torch.from_numpy(moved)).numpy()
        rows += [(similar[index, index] > 0.5, scores[index], kinds[index]) for index in range(6)]
        labels += kinds
    right, confidence, kind = (np.array(column) for column in zip(*rows, strict=True))
    theirs = metrics.ap_per_class(
        np.tile(right[:, None], 10), confidence, kind, np.array(labels), names={0: "a", 1: "b"}
    )
    ours = score(detections, truths, ("a", "b"), HEAD)
    assert 0.2 < ours.map50 < 0.9
    np.testing.assert_allclose([ours.per_class[name].map50 for name in "ab"], theirs[5][:, 0], atol=0.01)


def test_labels_without_corners_are_refused() -> None:
    labels = Truth(np.array([[0, 0, 0.5, 0.5]], np.float32), np.array([0]), np.zeros(1, bool))
    with pytest.raises(DataError, match=r"labels without rotated boxes.*four corners"):
        score([found(BOX, np.array([0.9]))], [(labels, WIDTH, HEIGHT)], ("ship",), HEAD)

"""Scores of keypoints: COCO's average precision, with object keypoint similarity in place of the overlap of boxes."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.core.detection.types import Detections, Head, Keypoints
from edgekd.core.errors import DataError
from edgekd.data.labels import Truth
from edgekd.evaluation.coco import MAX_POSES, BoxScore, score

WIDTH, HEIGHT = 400, 200
KEYPOINTS = Keypoints((0.05, 0.1, 0.02))
HEAD = Head("yolo", keypoints=KEYPOINTS)
BOX = np.array([[100, 50, 180, 150]], np.float32)
PLACES = np.array([[110, 60], [150, 100], [170, 140]], np.float32)
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def truth(*visibility: int, places: np.ndarray = PLACES, classes: int = 0) -> tuple[Truth, int, int]:
    """An image with one object in BOX."""
    keypoints = np.concatenate([places / [WIDTH, HEIGHT], np.array(visibility)[:, None]], axis=1)[None]
    size = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    flags = np.zeros(1, bool)
    return Truth(BOX / size, np.array([classes]), flags, keypoints.astype(np.float32)), WIDTH, HEIGHT


def found(confidence: float, shift: float, box: np.ndarray = BOX) -> Detections:
    """A detection whose keypoints lie `shift` pixels to the right."""
    places = PLACES + np.array([shift, 0], np.float32)
    keypoints = np.concatenate([places, np.full((3, 1), 0.5, np.float32)], axis=1)[None]
    return Detections(box, np.array([confidence], np.float32), np.array([0]), keypoints)


def similarity(shift: float, labelled: tuple[int, ...] = (0, 1, 2)) -> float:
    """OKS by its definition: the mean over labelled keypoints of exp(-d² / (2 area (2 sigma)²))."""
    area = 0.53 * 80 * 100
    terms = [np.exp(-(shift**2) / (2 * area * (2 * KEYPOINTS.sigmas[index]) ** 2)) for index in labelled]
    return float(np.mean(terms))


def average_precision(similarities: list[float], threshold: float) -> float:
    """Of images with one object and one detection each, in descending order of confidence, over 101 recalls."""
    right = np.array(similarities) >= threshold
    recall = np.cumsum(right) / len(right)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    best = [precision[recall >= share - 1e-12].max(initial=0) for share in np.linspace(0, 1, 101)]
    return float(np.mean(best))


def test_the_score_is_the_average_precision_of_oks() -> None:
    shifts = [5.0, 12.0, 1.0, 30.0, 8.0]
    detections = [found(0.9 - 0.1 * index, shift) for index, shift in enumerate(shifts)]
    result = score(detections, [truth(2, 1, 2)] * len(shifts), ("person",), HEAD)
    expected = [average_precision([similarity(shift) for shift in shifts], each) for each in THRESHOLDS]
    assert 0.2 < expected[0] < 1
    assert result.map50_95 == pytest.approx(np.mean(expected))
    assert result.map50 == pytest.approx(expected[0])
    assert result.per_class["person"].map50_95 == result.map50_95
    assert result.by_size == {"small": None, "medium": pytest.approx(result.map50_95), "large": None}
    assert result.boxes == BoxScore(pytest.approx(1), pytest.approx(1))


def test_the_similarity_is_that_of_ultralytics() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("ultralytics.utils.metrics")
    labelled = torch.tensor(np.concatenate([PLACES, [[2], [1], [0]]], axis=1))[None].float()
    other = torch.tensor(found(0.9, 7.0).keypoints)
    theirs = metrics.kpt_iou(labelled, other, torch.tensor([0.53 * 80 * 100]), KEYPOINTS.sigmas)
    ours = similarity(7.0, (0, 1))
    assert float(theirs) == pytest.approx(ours, rel=1e-5)
    result = score([found(0.9, 7.0)], [truth(2, 1, 0)], ("person",), HEAD)
    assert result.map50_95 == pytest.approx((ours >= THRESHOLDS).mean())


def test_keypoints_count_where_boxes_do_not_overlap() -> None:
    """A detection with the right keypoints in a wrong box."""
    result = score([found(0.9, 0.0, BOX + 150)], [truth(2, 2, 2)], ("person",), HEAD)
    assert result.map50_95 == pytest.approx(1)
    assert result.boxes == BoxScore(0.0, 0.0)


def test_an_object_without_labelled_keypoints_is_neither_found_nor_missed() -> None:
    scene = [truth(2, 2, 2), truth(0, 0, 0)]
    result = score([found(0.9, 0.0), found(0.95, 0.0)], scene, ("person",), HEAD)
    assert (result.map50_95, result.per_class["person"].instances) == (pytest.approx(1), 1)
    with pytest.raises(DataError, match="nothing to score against"):
        score([found(0.9, 0.0)], [truth(0, 0, 0)], ("person",), HEAD)


def test_labels_of_other_keypoints_are_refused() -> None:
    with pytest.raises(DataError, match="expected 2 for each object"):
        score([found(0.9, 0.0)], [truth(2, 2, 2)], ("person",), Head("yolo", keypoints=Keypoints((0.1, 0.1))))


def test_the_best_of_each_class_are_scored_and_classes_without_an_object_have_no_score() -> None:
    many = MAX_POSES + 1
    wrong = found(0.9, 300.0)
    crowd = Detections(
        np.concatenate([wrong.boxes] * many + [BOX]),
        np.linspace(0.9, 0.5, many + 1, dtype=np.float32),
        np.array([1] * many + [0]),
        np.concatenate([wrong.keypoints] * many + [found(0.5, 0.0).keypoints]),  # type: ignore[list-item]
    )
    result = score([crowd], [truth(2, 2, 2)], ("person", "dog", "cat"), HEAD)
    assert result.map50_95 == pytest.approx(1)
    assert [result.per_class[name].map50_95 for name in ("dog", "cat")] == [None, None]

"""Rotated boxes: corners, overlaps and suppression."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekd.core.detection import rotated
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.parity import nearest, parts
from edgekd.core.detection.preprocess import Placement
from edgekd.core.detection.rotated import corners_of, enclosing, prob_iou, suppress_rotated
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess

SIDE = 64
HEAD = Head("yolo", rotated=True)


def boxes(count: int, side: float = 60.0, seed: int = 0) -> np.ndarray:
    """Random boxes float32 [n, 5] in a square of this side."""
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(0, side, (count, 2)), rng.uniform(2, 40, (count, 2)), rng.uniform(-1, 3, (count, 1))]
    return np.concatenate(parts, axis=1).astype(np.float32)


def test_corners_follow_the_angle_from_right_to_down() -> None:
    box = np.array([[10.0, 20.0, 8.0, 2.0, math.pi / 2]])
    np.testing.assert_allclose(corners_of(box)[0], [[11, 16], [11, 24], [9, 24], [9, 16]])
    np.testing.assert_allclose(enclosing(box), [[9, 16, 11, 24]])


def test_similarity_and_suppression_are_those_of_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    metrics, nms = pytest.importorskip("ultralytics.utils.metrics"), pytest.importorskip("ultralytics.utils.nms")
    monkeypatch.setattr(rotated, "_BLOCK", 32)
    every, classes = boxes(150, 100), np.random.default_rng(2).integers(0, 2, 150)
    theirs = metrics.batch_probiou(torch.from_numpy(every), torch.from_numpy(every[:40])).numpy()
    np.testing.assert_allclose(prob_iou(every.astype(np.float64), every[:40].astype(np.float64)), theirs, atol=1e-3)
    apart = every + np.array([1e4, 0, 0, 0, 0], np.float32) * classes[:, None].astype(np.float32)
    scores = torch.linspace(1, 0.1, 150)
    kept = nms.TorchNMS.fast_nms(torch.from_numpy(apart), scores, 0.4, iou_func=metrics.batch_probiou).numpy()
    assert 20 < len(kept) < 140
    np.testing.assert_array_equal(suppress_rotated(every, classes, 0.4, 300), kept)
    np.testing.assert_array_equal(suppress_rotated(every, classes, 0.4, 10), kept[:10])


def test_a_suppressed_box_suppresses_others() -> None:
    """Unlike in greedy suppression: the third box overlaps the second alone, which the first one suppresses."""
    row = np.array([[10 + 4 * index, 10, 12, 12, 0.5] for index in range(3)], np.float32)
    similar = prob_iou(row, row)
    assert similar[0, 1] > 0.5 > similar[0, 2]
    assert suppress_rotated(row, np.zeros(3, np.int64), 0.5, 300).tolist() == [0]


@pytest.mark.parametrize("kind", ["yolo", "end2end"])
def test_rotated_boxes_are_in_pixels_of_the_frame(kind: str) -> None:
    box = (24.0, 32.0, 16.0, 8.0)
    rows = [(*box, 0.9, 0.0, 0.5), (25.0, 32.0, 16.0, 8.0, 0.8, 0.0, 0.5), (*box, 0.0, 0.7, math.pi / 2)]
    output = np.array(rows, np.float32).T[None]
    if kind == "end2end":
        rows = [(*box, 0.9, 0.0, 0.5), (*box, 0.7, 1.0, math.pi / 2)]
        output = np.array(rows, np.float32)[None]
    spec = DetectorSpec(("a", "b"), Preprocess(SIDE, SIDE), Head(kind, nms=kind == "yolo", rotated=True))  # type: ignore[arg-type]
    placement = Placement(left=8, top=0, across=32, down=64, width=64, height=128)
    found = decode(output, spec, placement, Thresholds(0.1, 0.5))
    expected = [[32, 64, 32, 16, 0.5], [32, 64, 32, 16, math.pi / 2]]
    np.testing.assert_allclose(found.rotated, expected, rtol=1e-6)
    np.testing.assert_allclose(found.boxes, enclosing(np.array(expected)), rtol=1e-5)
    assert found.rotated is not None
    assert found.only(found.classes == 1).rotated.tolist() == found.rotated[1:].tolist()  # type: ignore[union-attr]


def test_values_that_no_box_has_are_no_detections_or_harmless() -> None:
    rows = [
        (10, 10, 4, 4, 0.9, np.nan),
        (10, 10, np.inf, 4, 0.8, 0),
        (1e30, 0, 1e30, 1e30, 0.7, 1e30),
        (9, 9, 4, 4, 0.6, 0),
    ]
    spec = DetectorSpec(("a",), Preprocess(SIDE, SIDE), HEAD)
    with np.errstate(all="raise"):
        found = decode(np.array(rows, np.float32).T[None], spec, Placement(0, 0, SIDE, SIDE, SIDE, SIDE))
    np.testing.assert_allclose(found.scores, [0.7, 0.6])


def test_the_angle_counts_with_the_scores_in_self_tests() -> None:
    rows = np.array([[10, 10, 4, 4, 0.64, 0.2, 0.5]])
    columns, weights = parts(rows, HEAD)["scores"]
    assert np.arange(7)[columns].tolist() == [4, 5, 6]
    np.testing.assert_allclose(weights, [[1, 1, 0.8]])
    assert np.arange(7)[parts(rows, HEAD)["boxes"][0]].tolist() == [0, 1, 2, 3]


def test_finished_detections_are_matched_by_the_boxes_around_them() -> None:
    head = Head("end2end", nms=False, rotated=True)
    expected = np.array([[10, 10, 8, 4, 0.9, 0, 0.3], [40, 40, 8, 4, 0.8, 0, 0.3]])
    np.testing.assert_array_equal(nearest(expected[::-1], expected, head), expected)

"""Objects of a teacher: where it sees them, each once, with all class scores, and as a batch's predictions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation.anchors import Grid, corners  # noqa: E402
from edgekd.compress.distillation.loss_terms import DetectorFeatures, Predictions  # noqa: E402
from edgekd.compress.distillation.prediction_cache import MAX_OBJECTS, object_record_type  # noqa: E402
from edgekd.compress.distillation.teacher_objects import (  # noqa: E402
    batch_objects,
    distinct_objects,
    predicted_boxes,
)

GRID = Grid(((2, 3), (1, 2)), (8.0, 16.0))


def test_boxes_of_anchors_and_of_queries_are_corners_in_pixels() -> None:
    sides = torch.zeros(1, 4, 8)
    sides[0, :, 4] = torch.tensor([0.5, 0.25, 1.0, 2.0])  # in strides, at the anchor in the middle of the second row
    anchors = {"one2many": Predictions(torch.zeros(1, 2, 8), sides)}
    found = predicted_boxes(DetectorFeatures(GRID, (), (), anchors)).boxes
    assert found[0, :, 4].tolist() == [12 - 4, 12 - 2, 12 + 8, 12 + 16]
    assert found[0, :, 7].tolist() == [24, 8, 24, 8], "the last anchor, of the second level"
    query = Predictions(torch.zeros(1, 2, 1), torch.tensor([0.5, 0.5, 0.5, 0.25]).reshape(1, 4, 1))
    assert predicted_boxes(DetectorFeatures(GRID, (), (), {}, query)).boxes.flatten().tolist() == [6, 6, 18, 10]


def test_an_object_counts_once_and_with_all_its_class_scores() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [1, 0, 10, 10], [50, 50, 60, 60], [80, 0, 90, 9]], np.float32)
    scores = np.array([[1, -3], [2, -2], [-2, 0], [-3.5, -4], [-1, -1.5]], np.float32)
    kept, at = distinct_objects(scores, boxes)
    assert kept.tolist() == [[2, -2], [-2, 0], [-1, -1.5]], "best first; no duplicate, and nothing below 5 %"
    assert at.tolist() == boxes[[1, 2, 4]].tolist()


def test_no_image_has_more_objects_than_a_record_holds() -> None:
    places = np.arange(2.0 * MAX_OBJECTS, dtype=np.float32)[:, None] * 20
    kept, at = distinct_objects(places / 1000, places + np.array([[0, 0, 9, 9]], np.float32))
    assert len(kept) == len(at) == MAX_OBJECTS
    assert kept[0] == (2 * MAX_OBJECTS - 1) * 20 / 1000
    assert [len(each) for each in distinct_objects(places - 1e6, places + np.zeros((1, 4), np.float32))] == [0, 0]


def test_a_batch_has_the_objects_of_each_frame_and_nothing_beside_them() -> None:
    records = np.zeros(3, object_record_type(2))
    records["scores"][2, :2] = [[1, 2], [3, 4]]
    records["scores"][0, 5] = [5, 6]
    numbers = torch.tensor([2 * MAX_OBJECTS, 5, 2 * MAX_OBJECTS + 1])
    boxes, images = torch.rand(3, 4), torch.tensor([0, 2, 2])
    found = batch_objects(records, numbers, boxes, images, 4)
    assert found.scores.shape == (4, 2, 2)
    assert found.scores[0, :, 0].tolist() == [1, 2]
    assert found.scores[2].mT.tolist() == [[5, 6], [3, 4]]
    assert torch.equal(found.boxes[2].mT, boxes[1:])
    empty = torch.tensor([[False, True], [True, True], [False, False], [True, True]])
    assert (found.scores.mT[empty].sigmoid() < 1e-5).all()
    assert (found.boxes.mT[empty] == 0).all()
    assert corners(found.boxes.mT, 8, 8).shape == (4, 2, 4)


def test_a_batch_without_objects_has_one_that_is_certainly_none() -> None:
    records = np.zeros(1, object_record_type(2))
    nothing = torch.zeros(0)
    found = batch_objects(records, nothing.long(), torch.zeros(0, 4), nothing.long(), 2)
    assert found.scores.shape == (2, 2, 1)
    assert (found.scores.sigmoid() < 1e-5).all()

"""Queries of two networks: matched whatever their order, and compared."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation.distill import certainty, query_box_loss  # noqa: E402
from edgekd.compress.distillation.loss_terms import Predictions, at_queries, match_queries  # noqa: E402
from edgekd.compress.distillation.recovery import Target, query_losses, total_loss  # noqa: E402

QUERIES = 12


def predictions(seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, QUERIES, generator=generator)
    return Predictions(scores, torch.rand(2, 4, QUERIES, generator=generator) * 0.4 + 0.3)


def permuted(given: Predictions, order: torch.Tensor) -> Predictions:
    return Predictions(given.scores[:, :, order], given.boxes[:, :, order])


def test_queries_in_another_order_find_each_other() -> None:
    teacher, order = predictions(), torch.randperm(QUERIES, generator=torch.Generator().manual_seed(1))
    student = permuted(teacher, order)
    index = match_queries(student, teacher)
    assert torch.equal(index, order.expand(2, -1))
    found = at_queries(teacher, index)
    assert torch.equal(found.scores, student.scores)
    assert torch.equal(found.boxes, student.boxes)


def test_of_two_queries_with_one_box_the_more_certain_one_gets_the_more_certain_target() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2])[None, :, None].expand(1, -1, 2)
    student = Predictions(torch.tensor([[[-3.0, 2.0]]]), boxes)
    teacher = Predictions(torch.tensor([[[3.0, -2.0]]]), boxes)
    assert match_queries(student, teacher).tolist() == [[1, 0]]


def test_queries_without_an_object_are_background_and_padding_is_matched_with_none() -> None:
    student, teacher = predictions(), permuted(predictions(), torch.tensor([4, 7, 1]))
    teacher.scores[1, :, 2] = -14.0
    index = match_queries(student, teacher)
    assert (index >= 0).sum(1).tolist() == [3, 2]
    assert index[0, [4, 7, 1]].tolist() == [0, 1, 2]
    found = certainty(at_queries(teacher, index).scores)
    assert float(found[index < 0].max()) < 1e-5


def test_without_objects_every_query_is_background() -> None:
    student = predictions()
    nothing = Predictions(torch.full((2, 3, 1), -14.0), torch.zeros(2, 4, 1))
    assert (match_queries(student, nothing) == -1).all()


def test_a_student_that_has_diverged_is_matched_for_its_losses_to_say_so() -> None:
    student, teacher = predictions(), predictions()
    student.boxes[0, 0, 0] = float("nan")
    index = match_queries(student, teacher)
    assert sorted(index[0].tolist()) == list(range(QUERIES))
    assert index[1].tolist() == list(range(QUERIES))


def test_the_distance_of_boxes_is_that_of_detr() -> None:
    from torchvision.ops import box_convert, generalized_box_iou

    ours, theirs = predictions(1).boxes[:1], predictions(2).boxes[:1]
    corners = [box_convert(each[0].T, "cxcywh", "xyxy") for each in (ours, theirs)]
    wanted = 5 * (ours - theirs).abs().sum(1)[0] + 2 * (1 - generalized_box_iou(*corners).diagonal())
    weight = torch.rand(1, QUERIES, generator=torch.Generator().manual_seed(3)) + 1
    found = query_box_loss(ours, theirs, weight)
    assert float(found) == pytest.approx(float((wanted * weight[0]).sum() / weight.sum()), rel=1e-4)


def target(given: Predictions) -> Target:
    anchors = given.scores.amax(1).topk(QUERIES).indices
    return Target(given.scores, anchors, given.boxes.gather(2, anchors[:, None].expand(-1, 4, -1)))


def test_a_student_with_its_teachers_queries_in_another_order_has_nothing_to_learn() -> None:
    order = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(1))
    teacher = {"encoder": predictions(1), "decoder1": predictions(2)}
    student = {name: permuted(each, order) for name, each in teacher.items()}
    targets = {name: target(each) for name, each in teacher.items()}
    losses = query_losses(student, targets)
    assert losses.keys() == {"classes", "boxes"}
    assert float(total_loss(losses)) == pytest.approx(0, abs=1e-4)
    student["encoder"] = predictions(5)
    assert all(float(loss) > 0.1 for loss in query_losses(student, targets).values()), "each layer counts"

"""What is made of what two detectors see: classes paired, objects of a head without anchors given to anchors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation.anchors import Grid  # noqa: E402
from edgekd.compress.distillation.loss_terms import (  # noqa: E402
    ASSIGN_TOPK,
    Aids,
    DetectorFeatures,
    DistillationLosses,
    DistillationTerms,
    Predictions,
    assign_objects,
    shared_classes,
)
from edgekd.compress.steps import Distill, DistillStage, Weights  # noqa: E402
from edgekd.core.errors import SpecError  # noqa: E402

GRID = Grid(((16, 20), (8, 10), (4, 5)), (8, 16, 32))
"""Of a frame of 160 x 128 pixels."""


def found(boxes: list[list[float]], probabilities: list[list[float]]) -> Predictions:
    """One image's boxes, middle and size in pixels, and their classes' logits."""
    shares = torch.tensor([boxes]) / torch.tensor([160.0, 128, 160, 128])
    return Predictions(torch.tensor([probabilities]).logit().mT, shares.mT)


def seen_by(boxes: dict[int, list[float]], classes: int = 2) -> Predictions:
    """A student that sees boxes, corners in pixels, at some anchors, classes with 0.3; next to nothing elsewhere."""
    points, strides = GRID.points()
    sides, scores = torch.full((1, 4, len(strides)), 0.1), torch.full((1, classes, len(strides)), 0.01)
    for at, (left, top, right, bottom) in boxes.items():
        x, y = points[:, at].tolist()
        sides[0, :, at] = torch.tensor([x - left, y - top, right - x, bottom - y]) / strides[at]
        scores[0, :, at] = 0.3
    return Predictions(scores.logit(), sides)


def test_an_object_speaks_where_the_student_sees_its_box_best() -> None:
    middle, beside, outside = 8 * 20 + 10, 320 + 4 * 10 + 5, 0
    exact, near = [52.0, 44, 116, 92], [52.0, 44, 116, 80]
    told = assign_objects(
        found([[84, 68, 64, 48]], [[0.9, 0.1]]), seen_by({middle: near, beside: exact, outside: exact}), GRID
    )
    sure, best = told.scores.sigmoid()[0].max(0)
    assert int(sure.argmax()) == beside
    assert float(sure[beside]) == pytest.approx(0.9, abs=1e-4)
    overlap = 36 / 48
    assert float(sure[middle]) == pytest.approx(0.9 * overlap**6, abs=1e-3)
    assert float(sure[outside]) < 1e-5
    assert int(best[beside]) == 0
    assert float(told.scores[0, 1, beside].sigmoid()) == pytest.approx(0.1, abs=1e-4)
    assert float(sure.sum()) < 2, "background hardly counts"


def test_where_the_student_sees_nothing_an_object_says_little_and_at_few_anchors() -> None:
    told = assign_objects(found([[84, 68, 64, 48]], [[0.9, 0.1]]), seen_by({}), GRID)
    sure = told.scores.sigmoid()[0].amax(0)
    assert int((sure > 1e-4).sum()) <= ASSIGN_TOPK
    assert float(sure.max()) < 0.1, "of a box that overlaps with nothing little is certain"


def test_in_a_one_to_one_branch_an_object_has_a_single_anchor() -> None:
    boxes = [[84, 68, 64, 48], [30, 30, 20, 20]]
    first, better, other = 8 * 20 + 10, 320 + 4 * 10 + 5, 3 * 20 + 3
    student = seen_by({first: [52, 44, 116, 80], better: [52, 44, 116, 92], other: [20, 20, 40, 40]})
    targets = [assign_objects(found(boxes, [[0.9, 0.1], [0.2, 0.8]]), student, GRID, topk) for topk in (1, ASSIGN_TOPK)]
    anchors = [(each.scores.sigmoid()[0].amax(0) > 1e-3).nonzero().flatten().tolist() for each in targets]
    assert anchors[0] == [other, better]
    assert set(anchors[0]) < set(anchors[1])


def test_the_boxes_come_back_from_the_sides() -> None:
    told = assign_objects(found([[80, 60, 66, 50]], [[0.9, 0.1]]), seen_by({7 * 20 + 9: [47, 35, 113, 85]}), GRID)
    points, strides = GRID.points()
    sides = told.boxes[0] * strides
    low, high = points - sides[:2], points + sides[2:]
    spoken = (told.scores.sigmoid()[0].amax(0) > 0.01).nonzero().flatten()
    assert spoken.tolist() == [7 * 20 + 9]
    corners = [*low[:, spoken[0]].tolist(), *high[:, spoken[0]].tolist()]
    assert corners == pytest.approx([47, 35, 113, 85], abs=1e-3)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_object_with_more_to_say_has_the_anchor_whatever_their_order(order: list[int]) -> None:
    objects = found([[80, 60, 66, 50], [81, 61, 50, 66]], [[0.9, 0.1], [0.3, 0.5]])
    student = seen_by({7 * 20 + 9: [47, 35, 113, 85]})
    told = assign_objects(Predictions(objects.scores[..., order], objects.boxes[..., order]), student, GRID)
    _points, strides = GRID.points()
    at = int(told.scores[0].amax(0).argmax())
    assert at == 7 * 20 + 9
    assert float((told.boxes[0, 0, at] + told.boxes[0, 2, at]) * strides[at]) == pytest.approx(66, abs=1e-3)
    assert float(told.scores[0, 0, at].sigmoid()) == pytest.approx(0.9, abs=1e-3)


def test_classes_are_paired_by_name_and_by_what_is_said_to_be_the_same() -> None:
    assert shared_classes(("red", "green"), ("Green", "blue", " red ")) == ((0, 2), (1, 0))
    assert shared_classes(("red", "helmet"), ("hard hat", "red"), ("Hard hat=helmet",)) == ((0, 1), (1, 0))
    many = ("car = vehicle", "truck = vehicle")
    assert shared_classes(("person", "vehicle"), ("truck", "vehicle", "car"), many) == ((1, 0), (1, 1), (1, 2))
    with pytest.raises(SpecError, match="each of theirs once"):
        shared_classes(("red", "helmet"), ("hat",), ("hat = helmet", "hat = red"))
    for wrong in ("hat = helmet", "hard hat = cap", "hard hat"):
        with pytest.raises(SpecError, match="same_classes"):
            shared_classes(("red", "helmet"), ("hard hat", "red"), (wrong,))
    with pytest.raises(SpecError, match="none of the classes"):
        shared_classes(("red",), ("blue",))


def test_of_several_classes_that_mean_one_the_surest_speaks() -> None:
    """A teacher that knows cars, people and trucks, for a student of people and vehicles."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(1, classes, 400, generator=generator) for classes in (3, 2))
    told = torch.stack([teacher[:, 1], teacher[:, [0, 2]].amax(1)], dim=1)
    sides = torch.ones(1, 4, 400)
    grid = Grid(((20, 20),), (8,))

    def said(scores: torch.Tensor, classes: tuple[tuple[int, int], ...]) -> DistillationLosses:
        compare = DistillationTerms(Distill(), classes, Aids([1], [1]))
        maps = (torch.zeros(1, 1, 20, 20),)
        seen = [
            DetectorFeatures(grid, maps, maps, {"one2many": Predictions(each, sides)}) for each in (student, scores)
        ]
        return compare(*seen, DistillStage("classes", 1.0, Weights(classes=1.0)))

    many, one = said(teacher, ((0, 1), (1, 0), (1, 2))), said(told, ((0, 0), (1, 1)))
    assert float(many.losses["classes"]) == pytest.approx(float(one.losses["classes"]))
    assert torch.equal(many.certainty, one.certainty)

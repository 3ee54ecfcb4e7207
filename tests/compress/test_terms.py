"""What is made of what two detectors see: classes paired, boxes of a head without anchors spread over anchors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress import distill  # noqa: E402
from edgekd.compress.anchors import Grid  # noqa: E402
from edgekd.compress.terms import Aids, Comparison, Predictions, Said, Seen, shared_classes, spread  # noqa: E402
from edgekd.errors import SpecError  # noqa: E402
from edgekd.spec import Distill, Weights  # noqa: E402

GRID = Grid(((16, 20), (8, 10), (4, 5)), (8, 16, 32))
"""Of a frame of 160 x 128 pixels."""


def found(boxes: list[list[float]], probabilities: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One image's boxes, middle and size in pixels, and their classes' logits."""
    shares = torch.tensor([boxes]) / torch.tensor([160.0, 128, 160, 128])
    return shares, torch.tensor([probabilities]).logit()


def test_a_box_speaks_where_its_middle_is_and_on_the_level_of_its_size() -> None:
    boxes, scores = found([[84, 68, 64, 48], [100, 60, 150, 100]], [[0.9, 0.1], [0.2, 0.6]])
    told = spread(boxes, scores, GRID)
    sure, best = told.scores.sigmoid()[0].max(0)
    spoken = (sure > 0.01).nonzero().flatten()
    assert set(spoken.tolist()) <= {*range(320), *range(320, 400)}
    assert int(sure[:320].argmax()) == 8 * 20 + 10
    assert float(sure[8 * 20 + 10]) == pytest.approx(0.9, abs=1e-4)
    assert int(sure[320:400].argmax()) == 3 * 10 + 6
    assert int(best[8 * 20 + 10]) == 0
    assert int(best[320 + 36]) == 1
    assert float(sure[400:].max()) < 1e-5
    assert float(sure.sum()) < 20, "background hardly counts"


def test_the_boxes_come_back_from_the_sides() -> None:
    boxes, scores = found([[80, 60, 66, 50]], [[0.9, 0.1]])
    told = spread(boxes, scores, GRID)
    points, strides = GRID.points()
    sides = distill.expected_distances(told.boxes)[0] * strides
    low, high = points - sides[:2], points + sides[2:]
    for at in (told.scores.sigmoid()[0].amax(0) > 0.01).nonzero().flatten():
        corners = [*low[:, at].tolist(), *high[:, at].tolist()]
        assert corners == pytest.approx([47, 35, 113, 85], abs=1e-3)


def test_the_surer_of_two_boxes_gives_the_sides_whatever_their_order() -> None:
    for order in ([0, 1], [1, 0]):
        boxes, scores = found([[80, 60, 66, 50], [81, 61, 50, 66]], [[0.9, 0.1], [0.3, 0.5]])
        told = spread(boxes[:, order], scores[:, order], GRID)
        at = int(told.scores[0].amax(0).argmax())
        _points, strides = GRID.points()
        width = (told.boxes[0, 0, at] + told.boxes[0, 2, at]) * strides[at]
        assert float(width) == pytest.approx(66, abs=1e-3)
        assert float(told.scores[0, 1, at].sigmoid()) > 0.3, "the other one is heard, too"


def test_a_box_smaller_than_a_cell_and_one_on_the_border_still_speak() -> None:
    boxes, scores = found([[3, 3, 2, 2], [159, 127, 4, 4]], [[0.8, 0.1], [0.7, 0.1]])
    sure = spread(boxes, scores, GRID).scores.sigmoid()[0].amax(0)
    assert float(sure[0]) > 0.7
    assert float(sure[319]) > 0.5
    assert int((sure > 0.01).sum()) == 2


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

    def said(scores: torch.Tensor, classes: tuple[tuple[int, int], ...]) -> Said:
        compare = Comparison(Distill(), classes, Aids([1], [1], learn_temperature=False))
        maps = (torch.zeros(1, 1, 20, 20),)
        seen = [Seen(grid, maps, maps, {"one2many": Predictions(each, sides)}) for each in (student, scores)]
        return compare(*seen, Weights(classes=1.0), 0.0)

    many, one = said(teacher, ((0, 1), (1, 0), (1, 2))), said(told, ((0, 0), (1, 1)))
    assert float(many.losses["classes"]) == pytest.approx(float(one.losses["classes"]))
    assert torch.equal(many.sure, one.sure)

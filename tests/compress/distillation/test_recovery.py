"""Recovery: losses that are 0 beside an equal teacher, views that alternate, and a schedule of single updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation.anchors import Grid  # noqa: E402
from edgekd.compress.distillation.distill import expected_distances  # noqa: E402
from edgekd.compress.distillation.loss_terms import DetectorFeatures, Predictions  # noqa: E402
from edgekd.compress.distillation.prediction_cache import BranchShape, record_type  # noqa: E402
from edgekd.compress.distillation.recovery import (  # noqa: E402
    Target,
    epoch_batches,
    feature_loss,
    kept_maps,
    match_channels,
    mean_predictions,
    mirror,
    rate_at,
    read_batch,
    recovery_losses,
    total_loss,
)

CPU = torch.device("cpu")


def predictions(bins: int, anchors: int = 30) -> Predictions:
    generator = torch.Generator().manual_seed(bins)
    boxes = torch.randn(2, 4 * bins, anchors, generator=generator)
    return Predictions(torch.randn(2, 3, anchors, generator=generator), boxes.abs() + 1 if bins == 1 else boxes)


def target(student: Predictions, count: int) -> Target:
    anchors = student.scores.amax(1).topk(count).indices
    return Target(
        student.scores, anchors, student.boxes.gather(2, anchors[:, None].expand(-1, student.boxes.shape[1], -1))
    )


@pytest.mark.parametrize(("bins", "names"), [(1, {"classes", "boxes"}), (16, {"classes", "boxes", "distributions"})])
def test_a_student_that_predicts_as_its_teacher_has_nothing_to_learn(bins: int, names: set[str]) -> None:
    student = predictions(bins)
    losses = recovery_losses(student, target(student, 7))
    assert losses.keys() == names
    assert float(total_loss(losses)) == pytest.approx(0, abs=1e-5)
    other = Predictions(student.scores.flip(2), student.boxes.flip(2))
    assert all(float(loss) > 0.01 for loss in recovery_losses(other, target(student, 7)).values())


def test_boxes_count_at_the_anchors_of_the_teacher_only() -> None:
    student = predictions(16)
    teacher = target(student, 7)
    boxes = student.boxes.clone()
    away = torch.ones(2, 30, dtype=torch.bool).scatter(1, teacher.anchors, False)
    boxes[away[:, None].expand_as(boxes)] += torch.randn(int(away.sum()) * 64)
    assert float(total_loss(recovery_losses(Predictions(student.scores, boxes), teacher))) == pytest.approx(0, abs=1e-5)


def some_maps(channels: int, side: int = 10) -> torch.Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(channels))


def test_channels_that_pruning_has_left_are_found_among_the_teachers() -> None:
    teacher = some_maps(12) * torch.linspace(1, 3, 12)[:, None, None] + 5
    kept = [1, 2, 5, 9, 11]
    student = 0.5 * teacher[:, kept] - 2 + 0.3 * some_maps(5)
    match = match_channels(student, teacher)
    assert match.channels.tolist() == kept
    assert torch.allclose(match.deviations.flatten(), torch.linspace(1, 3, 12)[kept], rtol=0.2)
    assert float(feature_loss([teacher[:, kept]], [teacher], [match])) == 0
    assert float(feature_loss([teacher[:, kept] + 2 * match.deviations], [teacher], [match])) == pytest.approx(4)


def test_maps_with_all_channels_have_them_in_the_teachers_order() -> None:
    teacher = some_maps(6)
    teacher[:, 3] = 0.25  # a channel without variance
    match = match_channels(teacher.flip(1), teacher)
    assert match.channels.tolist() == [*range(6)]
    assert float(match.deviations.min()) > 0.05


def test_a_cache_keeps_about_as_many_places_of_every_map() -> None:
    hidden, neck = (tuple(some_maps(2, side) for side in sides) for sides in ((80, 40, 20), (20, 10, 5)))
    maps = kept_maps(DetectorFeatures(GRID, neck, hidden, {}))
    assert [each.shape[2] for each in maps] == [10, 10, 10, 10, 10, 5]
    assert torch.equal(maps[1], hidden[1][:, :, ::4, ::4])


GRID = Grid(((2, 3), (1, 2)), (8.0, 16.0))
"""Eight anchors: rows of 3 and 2 cells."""


def test_predictions_of_a_mirrored_frame_have_their_cells_and_sides_reversed() -> None:
    scores, boxes = torch.arange(8.0).view(1, 1, 8), torch.arange(64.0).view(1, 8, 8)
    turned = mirror(Predictions(scores, boxes), GRID)
    assert turned.scores[0, 0].tolist() == [2, 1, 0, 5, 4, 3, 7, 6]
    assert turned.boxes[0, :, 0].tolist() == [8 * row + 2 for row in (4, 5, 2, 3, 0, 1, 6, 7)]
    again = mirror(turned, GRID)
    assert torch.equal(again.scores, scores)
    assert torch.equal(again.boxes, boxes)


@pytest.mark.parametrize("bins", [1, 16])
def test_the_mean_of_two_predictions_is_that_of_probabilities_and_sides(bins: int) -> None:
    one = predictions(bins)
    other = Predictions(one.scores + 2, one.boxes + torch.linspace(0, 3, one.boxes.shape[1])[:, None])
    mean = mean_predictions(one, other)
    assert torch.allclose(mean.scores.sigmoid(), (one.scores.sigmoid() + other.scores.sigmoid()) / 2, atol=1e-5)
    sides = [expected_distances(each.boxes) for each in (one, other, mean)]
    assert torch.allclose(sides[2], (sides[0] + sides[1]) / 2, atol=1e-4)
    same = mean_predictions(one, one)
    assert torch.allclose(same.scores, one.scores, atol=1e-3)


def records(count: int) -> Any:
    """Records whose left pixels are the image's index, and whose logits and map are the number of the view."""
    made = np.zeros(count, record_type(2, 4, {"one2many": BranchShape(1, 4, 5, 5)}, [(2, 1, 2)]))
    made["frame"][:, :, 0] = np.arange(count)[:, None, None]
    made["one2many"]["scores"] = np.arange(2)[:, None, None]
    made["one2many"]["anchors"] = 3
    made["maps"]["0"] = np.arange(2)[:, None, None, None]
    return made


def test_a_mirrored_frame_comes_with_the_predictions_of_the_mirror_image() -> None:
    batch = read_batch(records(4), np.array([2, 1, 3]), np.array([False, True, False]), CPU)
    frames, targets = batch.frames, batch.targets
    assert frames.shape == (3, 3, 2, 4)
    assert frames.dtype == torch.float32
    left, right = frames[:, 0, 0, 0] * 255, frames[:, 0, 0, 3] * 255
    assert left.tolist() == pytest.approx([2, 0, 3])
    assert right.tolist() == pytest.approx([0, 1, 0])
    assert targets["one2many"].scores[:, 0, 0].tolist() == [0, 1, 0]
    assert targets["one2many"].anchors.dtype == torch.int64
    (maps,) = batch.maps
    assert maps.shape == (3, 2, 1, 2)
    assert maps[:, 1, 0, 1].tolist() == [0, 1, 0]


def test_an_epoch_has_each_image_once_and_the_next_one_its_other_view() -> None:
    first, second = ([*epoch_batches(10, 4, seed=3, epoch=epoch)] for epoch in (0, 1))
    assert [len(chosen) for chosen, _ in first] == [4, 4, 2]
    views = [
        dict(zip(np.concatenate([chosen for chosen, _ in each]), np.concatenate([m for _, m in each]), strict=True))
        for each in (first, second)
    ]
    assert set(views[0]) == set(range(10))
    assert all(views[0][index] != views[1][index] for index in range(10))
    assert list(views[0]) != list(views[1])
    assert len(set(views[0].values())) == 2


def test_the_learning_rate_rises_in_updates_and_falls_to_nothing() -> None:
    rates = [rate_at(update, 100) for update in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] > 0.99
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.001
    assert 0 < rate_at(0, 1) <= 1

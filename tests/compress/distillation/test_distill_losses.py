"""The losses of distillation: zero for a student that does what its teacher does, blind to what does not matter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation import distill  # noqa: E402

SIZES = ((8, 8), (4, 4), (2, 2))
ANCHORS = sum(height * width for height, width in SIZES)


def maps(seed: int, channels: int = 6, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for size in sizes]


def logits(seed: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(2, rows, ANCHORS, generator=torch.Generator().manual_seed(seed)) * 3


def sides(seed: int) -> torch.Tensor:
    return logits(seed, 4).abs() + 0.1


SURE = logits(9, 1)[:, 0].sigmoid()
SOME_WEIGHT = [torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(3)) for size in SIZES]
ON_MAPS = {
    "pattern": distill.pattern_loss,
    "attention": distill.attention_loss,
    "feature": distill.feature_loss,
    "weighted": partial(distill.feature_loss, weights=SOME_WEIGHT),
    "correlation": distill.correlation_loss,
    "channel": distill.channel_loss,
}
ON_ANCHORS: dict[str, tuple[Callable[..., torch.Tensor], Callable[[int], torch.Tensor]]] = {
    "class": (distill.class_loss, logits),
    "focused class": (partial(distill.class_loss, focus=1.0, temperature=2.0), logits),
    "box": (partial(distill.box_loss, weight=SURE), sides),
    "overlap": (partial(distill.overlap_loss, weight=SURE), sides),
    "distribution": (partial(distill.distribution_loss, weight=SURE), partial(logits, rows=16)),
}


@pytest.mark.parametrize("name", ON_MAPS)
def test_a_loss_on_maps_is_zero_for_the_same_and_pulls_on_another(name: str) -> None:
    loss, teacher = ON_MAPS[name], maps(0)
    assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    student = [each.requires_grad_() for each in maps(1)]
    far = loss(student, teacher)
    far.backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in student)
    nearer = [ours.detach() - 0.05 * len(student) * ours.grad / ours.grad.norm() for ours in student]  # type: ignore[operator]
    assert 0 < float(loss(nearer, teacher)) < float(far.detach())


@pytest.mark.parametrize("name", ON_ANCHORS)
def test_a_loss_on_anchors_is_zero_for_the_same_and_pulls_on_another(name: str) -> None:
    loss, make = ON_ANCHORS[name]
    teacher = make(0)
    assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-5)
    student = make(1).requires_grad_()
    far = loss(student, teacher)
    far.backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    nearer = student.detach() - 0.05 * student.grad / student.grad.norm()
    assert 0 < float(loss(nearer, teacher)) < float(far.detach())


def test_patterns_do_not_depend_on_the_order_number_or_scale_of_channels() -> None:
    teacher, student = maps(0, 6), maps(1, 4)
    wanted = float(distill.pattern_loss(student, teacher))
    order, scale = torch.tensor([3, 1, 0, 2]), torch.tensor([0.5, 2, 3, 10]).view(1, 4, 1, 1)
    assert float(distill.pattern_loss([each[:, order] * scale for each in student], teacher)) == pytest.approx(wanted)
    twice = [torch.cat([each, each], dim=1) for each in teacher]
    assert float(distill.pattern_loss(twice, teacher)) == pytest.approx(0, abs=1e-6)


def test_attention_does_not_depend_on_scale_number_or_sign_of_channels() -> None:
    teacher = maps(0)
    alike = [torch.cat([-3 * each, each], dim=1) for each in teacher]
    assert float(distill.attention_loss(alike, teacher)) == pytest.approx(0, abs=1e-6)
    student = maps(1)
    assert 0 < float(distill.attention_loss(student, teacher)) <= 2


def test_attention_of_another_resolution_is_compared_after_averaging() -> None:
    small = maps(0, sizes=((4, 4),))
    large = [each.repeat_interleave(2, 2).repeat_interleave(2, 3) for each in small]
    assert float(distill.attention_loss(small, large)) == pytest.approx(0, abs=1e-6)
    assert distill.resized(small[0], large[0]).shape == large[0].shape


def test_weighted_features_look_only_where_the_weight_is() -> None:
    teacher = maps(0)
    weights = [torch.zeros(2, 1, *size) for size in SIZES]
    for weight in weights:
        weight[:, :, 0] = 1
    student = [each.clone() for each in teacher]
    for each in student:
        each[:, :, 1:] += 5
    assert float(distill.feature_loss(student, teacher, weights)) == 0
    noisy = [each * 1.1 for each in teacher]
    assert float(distill.feature_loss(noisy, teacher, weights)) == pytest.approx(0.01, rel=1e-4)
    scaled = distill.feature_loss([each * 7 for each in noisy], [each * 7 for each in teacher], weights)
    assert float(scaled) == pytest.approx(0.01, rel=1e-4)


def test_correlation_does_not_depend_on_offset_and_scale_of_a_channel() -> None:
    teacher = maps(0)
    scale, offset = torch.rand(1, 6, 1, 1) + 0.5, torch.randn(1, 6, 1, 1)
    assert float(distill.correlation_loss([each * scale + offset for each in teacher], teacher)) == pytest.approx(
        0, abs=1e-5
    )
    assert float(distill.correlation_loss([-each for each in teacher], teacher)) == pytest.approx(2, rel=1e-4)


def test_channels_do_not_depend_on_an_offset_but_on_where_the_peak_is() -> None:
    teacher = maps(0)
    assert float(distill.channel_loss([each + 3 for each in teacher], teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distill.channel_loss([each.flip(3) for each in teacher], teacher)) > 0.1


def test_focus_turns_to_what_they_disagree_on() -> None:
    teacher = torch.zeros(1, 1, 2)
    student = torch.tensor([[[0.5, 3.0]]], requires_grad=True)
    shares = []
    for focus in (0.0, 1.0):
        (gradient,) = torch.autograd.grad(distill.class_loss(student, teacher, focus), student)
        shares.append(float(gradient[0, 0, 1] / gradient.sum()))
    assert shares[1] > shares[0]


def test_overlap_is_one_minus_giou() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = sides(0), sides(1)
    ours[0, 0, :5], ours[0, 2, :5] = -1.0, 4.0  # boxes that are off their anchors
    corners = [torch.cat([-each[:, :2], each[:, 2:]], dim=1).transpose(1, 2).reshape(-1, 4) for each in (ours, theirs)]
    wanted = torchvision.ops.generalized_box_iou_loss(*corners, reduction="none").reshape(2, ANCHORS)
    found = distill.overlap_loss(ours, theirs, SURE)
    assert float(found) == pytest.approx(float((wanted * SURE).sum() / SURE.sum()), rel=1e-4)


def test_distances_are_the_means_of_their_distributions() -> None:
    sharp = torch.full((1, 4, 8, 3), -100.0)
    sharp[:, :, 5] = 100.0
    assert torch.allclose(distill.expected_distances(sharp.flatten(1, 2)), torch.full((1, 4, 3), 5.0))
    one = torch.randn(1, 4, 3)
    assert distill.expected_distances(one) is one


def test_relations_do_not_depend_on_turning_moving_and_scaling() -> None:
    teacher = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(8, generator=torch.Generator().manual_seed(1))
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)))
    assert float(distill.relation_loss(teacher @ turn * 3 + 1, teacher, weight)) == pytest.approx(0, abs=1e-6)
    student = torch.randn(8, 3, requires_grad=True, generator=torch.Generator().manual_seed(3))
    loss = distill.relation_loss(student, teacher, weight)
    loss.backward()
    assert float(loss.detach()) > 0
    assert student.grad.isfinite().all()


def test_an_object_that_the_teacher_does_not_see_has_no_relations() -> None:
    teacher, student = torch.randn(4, 5), torch.randn(4, 5)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    moved = student.clone()
    moved[3] += 100
    whole = distill.relation_loss(student, teacher, weight)
    assert float(distill.relation_loss(moved, teacher, weight)) == pytest.approx(float(whole), rel=1e-4)
    assert float(distill.relation_loss(student, teacher, torch.zeros(4))) == 0


def test_peaks_are_single_anchors_of_the_surest() -> None:
    sure = torch.zeros(1, ANCHORS)
    sure[0, 8 * 3 + 3], sure[0, 8 * 3 + 4], sure[0, 64 + 5] = 0.9, 0.8, 0.7
    index, values = distill.peaks(sure, SIZES, 3)
    assert index[0, :2].tolist() == [27, 69]
    assert values[0].tolist() == pytest.approx([0.9, 0.7, 0.0])


def test_objects_are_looked_up_where_they_are() -> None:
    level = torch.zeros(1, 2, 4, 4)
    level[0, :, 1, 2] = torch.tensor([3.0, 4.0])
    place = torch.tensor([[[2.5 / 4, 1.5 / 4]]])
    assert torch.allclose(distill.object_vectors([level], place), torch.tensor([[0.6, 0.8]]))

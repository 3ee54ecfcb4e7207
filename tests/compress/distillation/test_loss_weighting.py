"""Weights that adapt: the teacher's share moves, gradients come into balance."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation.anchors import Grid  # noqa: E402
from edgekd.compress.distillation.distill import certainty, disagreement  # noqa: E402
from edgekd.compress.distillation.loss_terms import (  # noqa: E402
    Aids,
    DetectorFeatures,
    DistillationLosses,
    DistillationTerms,
    Predictions,
)
from edgekd.compress.distillation.loss_weighting import (  # noqa: E402
    EMA_DECAY,
    Balance,
    gradient_norm,
    mean_over_objects,
    teacher_shares,
)
from edgekd.compress.steps import Distill, DistillStage, Weights  # noqa: E402

GRID = Grid(((20, 20),), (8.0,))
NEAR, FAR = 45, 250
"""Anchors at which the teacher detects an object, on which the student nearly agrees, and not at all."""


def predictions() -> tuple[Predictions, Predictions]:
    """Student and teacher, of 3 classes, on 400 anchors."""
    teacher = torch.full((1, 3, 400), -8.0)
    teacher[:, 2, [NEAR, FAR]] = 2.0
    student = teacher.clone()
    student[:, 2, NEAR] -= 0.3
    student[:, 2, FAR] -= 5
    sides = torch.full((1, 64, 400), 0.0)
    return Predictions(student, sides + torch.linspace(0, 1, 64)[:, None]), Predictions(teacher, sides)


def shares(reading: str) -> torch.Tensor:
    student, teacher = predictions()
    sure = certainty(teacher.scores)
    return teacher_shares(disagreement(student.scores, teacher.scores), sure, reading)[0]  # type: ignore[arg-type]


def test_alpha_is_of_each_object_and_differs_between_them() -> None:
    agreement, opposite = shares("agreement"), shares("disagreement")
    assert agreement[NEAR] > 0.85
    assert agreement[FAR] < 0.4
    assert opposite[FAR] > 5 * opposite[NEAR] > 0
    assert torch.allclose(agreement + opposite, torch.ones(400))
    assert torch.equal(shares("off"), torch.ones(400))
    assert float(agreement[0]) == pytest.approx(1), "background, on which both agree"


def test_alpha_is_one_half_where_both_disagree_as_much_as_on_average_however_far_that_is() -> None:
    sure = torch.ones(1, 4)
    for size in (1.0, 0.01):
        apart = torch.tensor([[1.0, 3, 2, 2]]) * size
        assert teacher_shares(apart, sure, "agreement")[0].tolist() == pytest.approx([2 / 3, 2 / 5, 1 / 2, 1 / 2])
    assert float(mean_over_objects(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 0.0]]))) == 1


def losses_by(reading: str, *, adaptive: bool) -> tuple[DistillationLosses, torch.Tensor]:
    """The losses, and the lengths of the gradients of their sum at both objects' box sides, [2]."""
    student, teacher = predictions()
    sides = student.boxes.clone().requires_grad_()
    maps = (torch.zeros(1, 1, 20, 20),)
    both = [
        DetectorFeatures(GRID, maps, maps, {"one2many": each}) for each in (Predictions(student.scores, sides), teacher)
    ]
    step = Distill(alpha=reading)  # type: ignore[arg-type]
    terms = DistillationTerms(step, ((0, 0), (1, 1), (2, 2)), Aids([1], [1]))
    losses = terms(*both, DistillStage("all", 1.0, Weights(classes=1.0, boxes=1.0), adaptive=adaptive))
    losses.losses["boxes"].backward()
    assert sides.grad is not None
    return losses, sides.grad[0, :, [NEAR, FAR]].norm(dim=0)


def test_alpha_shifts_the_teacher_between_objects() -> None:
    """A share of all objects together would leave the ratio between them as it is."""
    ratios = {}
    for reading in ("off", "agreement", "disagreement"):
        losses, (near, far) = losses_by(reading, adaptive=True)
        ratios[reading] = float(far / near)
        assert float(losses.share) == pytest.approx(1) if reading == "off" else 0.3 < float(losses.share) < 0.7
    assert ratios["off"] == pytest.approx(1, rel=1e-3)
    assert ratios["agreement"] < 0.5
    assert ratios["disagreement"] > 5
    assert float(losses_by("disagreement", adaptive=False)[1][1]) == pytest.approx(
        float(losses_by("off", adaptive=True)[1][1])
    )


def test_disagreement_is_softened_and_has_no_gradient() -> None:
    student, teacher = predictions()
    sharp = disagreement(student.scores.requires_grad_(), teacher.scores)
    assert sharp.shape == (1, 400)
    assert not sharp.requires_grad
    assert (disagreement(student.scores, teacher.scores, 4.0)[0, [NEAR, FAR]] < sharp[0, [NEAR, FAR]]).all()


def test_balance_brings_every_gradient_to_the_size_of_the_labels() -> None:
    shared = torch.ones(3, requires_grad=True)
    labels, losses = (shared * 2).sum(), {"small": (shared * 0.5).sum(), "large": (shared * 40).sum()}
    factors = Balance(10)(labels, losses, [shared])
    for name, loss in losses.items():
        assert factors[name] * gradient_norm(loss, [shared]) == pytest.approx(gradient_norm(labels, [shared]))
    labels.backward()
    assert shared.grad.tolist() == [2, 2, 2], "measuring leaves the backward pass alone"


def test_balance_measures_every_so_many_steps_and_for_what_is_new() -> None:
    shared = torch.ones(3, requires_grad=True)
    balance = Balance(2)

    def factor(size: float, name: str = "one") -> float:
        return balance(shared.sum(), {name: (shared * size).sum()}, [shared])[name]

    assert factor(0.5) == pytest.approx(2)
    assert factor(0.1) == pytest.approx(2), "not measured in the second step"
    assert factor(0.1) == pytest.approx(EMA_DECAY * 2 + (1 - EMA_DECAY) * 10)
    assert factor(0.25, "new") == pytest.approx(4)


def test_a_gradient_that_is_not_finite_leaves_the_factors_as_they_are() -> None:
    shared = torch.ones(3, requires_grad=True)
    balance = Balance(1)

    def factor(labels: float, size: float) -> float:
        return balance((shared * labels).sum(), {"one": (shared * size).sum()}, [shared])["one"]

    assert factor(1, 0.5) == pytest.approx(2)
    for labels, size in ((torch.inf, torch.inf), (1, torch.inf), (torch.inf, 1), (torch.nan, 1)):
        assert factor(labels, size) == pytest.approx(2)
    assert factor(1, 0.5) == pytest.approx(2)


def test_without_balance_every_factor_is_one_and_nothing_unbounded_happens() -> None:
    shared = torch.ones(3, requires_grad=True)
    assert Balance(0)(shared.sum(), {"one": (shared * 9).sum()}, [shared]) == {"one": 1.0}
    unreachable = Balance(1)(shared.sum(), {"one": torch.ones((), requires_grad=True) * 2}, [shared])
    assert unreachable == {"one": 1.0}
    assert Balance(1)(shared.sum(), {"one": (shared * 1e-9).sum()}, [shared]) == {"one": 100.0}

"""Weights that adapt: the teacher's share moves, gradients come into balance."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation.distill import disagreement, foreground  # noqa: E402
from edgekd.compress.distillation.loss_terms import DistillationLosses  # noqa: E402
from edgekd.compress.distillation.loss_weighting import (  # noqa: E402
    EMA_DECAY,
    Balance,
    LossWeighting,
    gradient_norm,
    teacher_share,
)
from edgekd.compress.steps import Distill, DistillStage, Weights  # noqa: E402


def batch(wrong: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of student and teacher on 8400 anchors, of which 20 see something; `wrong`: how far off the student is."""
    teacher = torch.full((1, 5, 8400), -8.0)
    teacher[:, 2, :20] = 2.0
    student = teacher.clone()
    student[:, 2, :20] -= wrong
    return student, teacher


def test_alpha_moves_where_the_teacher_sees_something_and_not_over_all_anchors() -> None:
    alphas: dict[bool, list[float]] = {True: [], False: []}
    for masked in alphas:
        for wrong in (0.0, 2.0, 6.0):
            student, teacher = batch(wrong)
            apart = disagreement(student, teacher, foreground(teacher) if masked else None)
            alphas[masked].append(float(teacher_share(apart, "agreement")))
    assert alphas[True][0] == 1
    assert alphas[True][1] < 0.8
    assert alphas[True][2] < 0.6
    assert min(alphas[False]) > 0.999, "the trap: background holds it at 1, whatever the student does"


def test_the_readings_of_alpha_are_opposite() -> None:
    near, far = torch.tensor(0.1), torch.tensor(0.8)
    assert teacher_share(near, "agreement") > teacher_share(far, "agreement")
    assert teacher_share(near, "disagreement") < teacher_share(far, "disagreement")
    assert float(teacher_share(far, "agreement")) == pytest.approx(1 / 1.8)
    assert float(teacher_share(far, "agreement") + teacher_share(far, "disagreement")) == pytest.approx(1)
    assert float(teacher_share(far, "off")) == 1


def test_disagreement_is_softened_and_has_no_gradient() -> None:
    student, teacher = batch(4.0)
    mask = foreground(teacher)
    sharp = disagreement(student.requires_grad_(), teacher, mask)
    assert not sharp.requires_grad
    assert disagreement(student, teacher, mask, 4.0) < sharp
    assert float(disagreement(student, teacher, torch.zeros_like(mask))) == 0


def test_an_average_starts_with_its_first_value_and_forgets() -> None:
    weighting, stage = (
        LossWeighting(Distill(momentum=0.9, alpha="agreement")),
        DistillStage("all", 1.0, Weights(), adaptive=True),
    )
    for now, mean in ((2.0, 2.0), (1.0, 1.9)):
        losses = DistillationLosses({}, torch.tensor(now), torch.ones(()), torch.zeros(1, 1))
        assert float(weighting.of_teacher(stage, losses, {})["teacher"]) == pytest.approx(1 / (1 + mean))


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


def test_without_balance_every_factor_is_one_and_nothing_unbounded_happens() -> None:
    shared = torch.ones(3, requires_grad=True)
    assert Balance(0)(shared.sum(), {"one": (shared * 9).sum()}, [shared]) == {"one": 1.0}
    unreachable = Balance(1)(shared.sum(), {"one": torch.ones((), requires_grad=True) * 2}, [shared])
    assert unreachable == {"one": 1.0}
    assert Balance(1)(shared.sum(), {"one": (shared * 1e-9).sum()}, [shared]) == {"one": 100.0}

"""The learned temperature: trained against the loss, within its range."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation import distill  # noqa: E402
from edgekd.compress.distillation.loss_terms import Temperature  # noqa: E402


def test_the_temperature_climbs_the_loss_that_the_student_descends() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 3, 50), torch.randn(1, 3, 50) * 3
    temperature = Temperature()
    optimizer = torch.optim.SGD(temperature.parameters(), lr=1.0)
    losses = []
    for _ in range(20):
        loss = distill.class_loss(student, teacher, temperature=temperature(1.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] > losses[0]
    assert 1 < float(temperature(1.0)) < 4
    optimizer.zero_grad()
    distill.class_loss(student, teacher, temperature=temperature(0.0)).backward()
    assert temperature.theta.grad == 0, "at the start of training it stays where it is"

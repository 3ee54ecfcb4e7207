"""Weights of losses that adapt while a student learns: the teacher's share, gradients in balance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from edgekd.builds.recipe import Distill, DistillStage
    from edgekd.compress.distillation.loss_terms import Said

KEPT = 0.7
"""How much of what was known stays with each new measurement of gradients."""
FACTORS = (0.01, 100.0)
"""No loss is made weaker or stronger than this to bring its gradient into balance."""
_MAGNIFIED = 1024.0
"""Gradients are compared after this factor, for they may be too small for half precision without it."""
Reading = Literal["agreement", "disagreement", "off"]


def teachers_share(apart: torch.Tensor, reading: Reading) -> torch.Tensor:
    """How much the teacher's losses count, 0 to 1, from the mean disagreement.

    alpha = 1 / (1 + disagreement). By `agreement` it is alpha, as the formula says: a student that is far from its
    teacher hears less of it. By `disagreement` it is 1 - alpha: the teacher speaks up where the two differ. `off`: 1.
    """
    alpha = 1 / (1 + apart)
    return {"agreement": alpha, "disagreement": 1 - alpha, "off": torch.ones_like(alpha)}[reading]


class Average:
    """A mean that forgets: value = momentum * value + (1 - momentum) * new, from the first value on."""

    def __init__(self, momentum: float) -> None:
        self.value: torch.Tensor | None = None
        self._momentum = momentum

    def __call__(self, new: torch.Tensor) -> torch.Tensor:
        """The mean after one more value, detached."""
        new = new.detach()
        self.value = new if self.value is None else self._momentum * self.value + (1 - self._momentum) * new
        return self.value


class Balance:
    """Factors that let every loss pull on shared tensors as hard as the labels' loss does, measured every N steps.

    factor = |gradient of the labels' loss| / |gradient of the loss|, both at the tensors that all losses reach last, as
    a mean that forgets. Gradient norms as GradNorm compares them (Chen and others, arXiv 1711.02257), but as a plain
    ratio to one reference, as RT-DETRv4 sets its feature loss (arXiv 2510.25257). `every` 0: all factors are 1.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.factors: dict[str, float] = {}
        self.calls = 0

    def __call__(
        self, labels: torch.Tensor, losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]
    ) -> dict[str, float]:
        """The factor of each loss. labels, losses: scalars that depend on `shared`, or not, with their graphs."""
        if self.every:
            new = losses.keys() - self.factors.keys()
            if new or self.calls % self.every == 0:
                self._measure(labels, losses, shared)
            self.calls += 1
        return {name: self.factors.get(name, 1.0) for name in losses}

    def _measure(
        self, labels: torch.Tensor, losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]
    ) -> None:
        reference = gradient_norm(labels, shared)
        for name, loss in losses.items():
            norm = gradient_norm(loss, shared)
            if not (norm > 0 and reference > 0):
                continue
            wanted = min(max(reference / norm, FACTORS[0]), FACTORS[1])
            known = self.factors.get(name, wanted)
            self.factors[name] = KEPT * known + (1 - KEPT) * wanted


def gradient_norm(loss: torch.Tensor, shared: Sequence[torch.Tensor]) -> float:
    """Length of the gradient of a scalar at tensors of its graph, which stays for the backward pass; 0: none."""
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss * _MAGNIFIED, list(shared), retain_graph=True, allow_unused=True)
    total = sum(float(found.float().square().sum()) for found in gradients if found is not None)
    return math.sqrt(total) / _MAGNIFIED


class Weighing:
    """What the losses of each batch are multiplied with: their stage's weights, in balance, by the teacher's share."""

    def __init__(self, step: Distill) -> None:
        self._alpha: Reading = step.alpha
        self._balance, self._apart = Balance(step.balance_every), Average(step.momentum)

    def factors(
        self, labels: torch.Tensor, losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]
    ) -> dict[str, float]:
        """What brings each loss into balance with the labels'; arguments as for `Balance`."""
        return self._balance(labels, losses, shared)

    def of_teacher(self, stage: DistillStage, said: Said, factors: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """The weight of each loss that the teacher causes, and as `teacher` its share. Scalars."""
        share = teachers_share(self._apart(said.apart), self._alpha if stage.adaptive else "off")
        return {
            **{name: getattr(stage.weights, name) * factors[name] * share for name in said.losses},
            "teacher": share,
        }

    def state(self) -> dict[str, Any]:
        """What a training that goes on has to know."""
        return {"factors": dict(self._balance.factors), "calls": self._balance.calls, "apart": self._apart.value}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._balance.factors, self._balance.calls = dict(state["factors"]), state["calls"]
        self._apart.value = state["apart"]

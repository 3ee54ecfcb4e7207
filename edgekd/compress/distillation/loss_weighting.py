"""Weights of losses that adapt during a distillation: the teacher's share, and balanced gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from edgekd.compress.distillation.loss_terms import DistillationLosses
    from edgekd.compress.steps import Distill, DistillStage

EMA_DECAY = 0.7
"""Share of a factor that stays with each new measurement of gradients."""
MIN_FACTOR = 0.01
"""Smallest factor that balances a loss: one with huge gradients is not lost altogether."""
MAX_FACTOR = 100.0
"""Largest factor that balances a loss: one with tiny gradients does not become noise."""
_GRADIENT_SCALE = 1024.0
"""Factor of losses before their gradients are compared, which may be too small for half precision without it."""
Reading = Literal["agreement", "disagreement", "off"]


def teacher_share(disagreement: torch.Tensor, reading: Reading) -> torch.Tensor:
    """Return how much the teacher's losses count, 0 to 1, from the mean disagreement.

    alpha = 1 / (1 + disagreement). `agreement`: alpha, so the teacher counts less for a student that is far from it;
    `disagreement`: 1 - alpha, so it counts more where the two differ; `off`: 1.
    """
    alpha = 1 / (1 + disagreement)
    return {"agreement": alpha, "disagreement": 1 - alpha, "off": torch.ones_like(alpha)}[reading]


class Balance:
    """Factors that give every loss a gradient as long as that of the labels' loss at shared tensors, every N steps.

    factor = |gradient of the labels' loss| / |gradient of the loss|, both at the tensors that all losses reach last, as
    a moving average. Gradient norms as GradNorm compares them (Chen and others, arXiv 1711.02257), but as a plain
    ratio to one reference, as RT-DETRv4 sets its feature loss (arXiv 2510.25257). `every` 0: all factors are 1.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.factors: dict[str, float] = {}
        self.calls = 0

    def __call__(
        self, labels: torch.Tensor, losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]
    ) -> dict[str, float]:
        """Return the factor of each loss. labels, losses: scalars with graphs, which depend on `shared` or not."""
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
            measured = min(max(reference / norm, MIN_FACTOR), MAX_FACTOR)
            average = self.factors.get(name, measured)
            self.factors[name] = EMA_DECAY * average + (1 - EMA_DECAY) * measured


def gradient_norm(loss: torch.Tensor, shared: Sequence[torch.Tensor]) -> float:
    """Return the length of a scalar's gradient at tensors of its graph, which is kept; 0 without a gradient."""
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss * _GRADIENT_SCALE, list(shared), retain_graph=True, allow_unused=True)
    total = sum(float(gradient.float().square().sum()) for gradient in gradients if gradient is not None)
    return math.sqrt(total) / _GRADIENT_SCALE


class LossWeighting:
    """Weights of the losses of each batch: of their stage, times balancing factors, times the teacher's share.

    The share follows an exponential moving average of the disagreement.
    """

    def __init__(self, step: Distill) -> None:
        self._alpha: Reading = step.alpha
        self._momentum = step.momentum
        self._disagreement: torch.Tensor | None = None
        self.factors = Balance(step.balance_every)

    def of_teacher(
        self, stage: DistillStage, teacher: DistillationLosses, factors: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weight of each of the teacher's losses, and as `teacher` its share. Scalars."""
        now, mean = teacher.disagreement.detach(), self._disagreement
        self._disagreement = now if mean is None else self._momentum * mean + (1 - self._momentum) * now
        share = teacher_share(self._disagreement, self._alpha if stage.adaptive else "off")
        weights = {name: getattr(stage.weights, name) * factors[name] * share for name in teacher.losses}
        return {**weights, "teacher": share}

    def state(self) -> dict[str, Any]:
        """Return what resuming a training needs."""
        balance = self.factors
        return {"factors": dict(balance.factors), "calls": balance.calls, "apart": self._disagreement}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state."""
        self.factors.factors, self.factors.calls = dict(state["factors"]), state["calls"]
        self._disagreement = state["apart"]

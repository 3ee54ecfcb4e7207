"""Adaptive weights of a distillation: the teacher's share at each anchor, and balanced gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

EMA_DECAY = 0.7
"""Share of the old factor in the moving average, at each new measurement of gradients."""
MIN_FACTOR = 0.01
"""Smallest factor of a loss, so that one with huge gradients still counts."""
MAX_FACTOR = 100.0
"""Largest factor of a loss, so that one with tiny gradients is not amplified to noise."""
MIN_DISAGREEMENT = 1e-6
"""Lower bound of the mean disagreement: if both networks are equal, alpha is 1."""
_GRADIENT_SCALE = 1024.0
"""Factor of losses in the comparison of gradients, which could otherwise underflow in half precision."""
Reading = Literal["agreement", "disagreement", "off"]


def teacher_shares(disagreement: torch.Tensor, certainty: torch.Tensor, reading: Reading) -> torch.Tensor:
    """Return the weight of the teacher at each anchor, 0 to 1, from the disagreement there; all [b, anchors].

    alpha = 1 / (1 + d / mean d), where the mean is weighted by the teacher's certainty: 1/2 at average disagreement.
    `agreement`: alpha, less weight where the student differs from the teacher; `disagreement`: 1 - alpha, more weight
    there; `off`: 1.
    """
    alpha = 1 / (1 + disagreement / mean_over_objects(disagreement, certainty).clamp(min=MIN_DISAGREEMENT))
    return {"agreement": alpha, "disagreement": 1 - alpha, "off": torch.ones_like(alpha)}[reading]


def mean_over_objects(values: torch.Tensor, certainty: torch.Tensor) -> torch.Tensor:
    """Return the mean of values weighted by the teacher's certainty, a scalar; both [b, anchors]."""
    return (values * certainty).sum() / certainty.sum().clamp(min=1e-6)


class Balance:
    """Factors that scale the gradient of every loss to the norm of the labels' gradient at shared tensors.

    factor = |gradient of the labels' loss| / |gradient of the loss|, both at tensors that the losses share, measured
    every `every` calls, as a moving average. Gradient norms are compared as in GradNorm (Chen and others, arXiv
    1711.02257), but as a plain ratio to one reference, as RT-DETRv4 does for its feature loss (arXiv 2510.25257).
    `every` 0: all factors are 1.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.factors: dict[str, float] = {}
        self.calls = 0

    def __call__(
        self, labels: torch.Tensor, losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]
    ) -> dict[str, float]:
        """Return the factor of each loss. labels, losses: scalars with autograd graphs; a loss may be independent of
        `shared`."""
        if self.every:
            new = losses.keys() - self.factors.keys()
            if new or self.calls % self.every == 0:
                self._measure(labels, losses, shared)
            self.calls += 1
        return {name: self.factors.get(name, 1.0) for name in losses}

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` needs to resume a training."""
        return {"factors": dict(self.factors), "calls": self.calls}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a state."""
        self.factors, self.calls = dict(state["factors"]), state["calls"]

    def _measure(
        self, labels: torch.Tensor, losses: Mapping[str, torch.Tensor], shared: Sequence[torch.Tensor]
    ) -> None:
        reference = gradient_norm(labels, shared)
        for name, loss in losses.items():
            norm = gradient_norm(loss, shared)
            if not (0 < norm < math.inf and 0 < reference < math.inf):
                continue  # a ratio that is not finite would stay in the average forever
            measured = min(max(reference / norm, MIN_FACTOR), MAX_FACTOR)
            average = self.factors.get(name, measured)
            self.factors[name] = EMA_DECAY * average + (1 - EMA_DECAY) * measured


def gradient_norm(loss: torch.Tensor, shared: Sequence[torch.Tensor]) -> float:
    """Return the norm of a scalar's gradient at tensors of its graph, 0 without a gradient. The graph is retained."""
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss * _GRADIENT_SCALE, list(shared), retain_graph=True, allow_unused=True)
    total = sum(float(gradient.float().square().sum()) for gradient in gradients if gradient is not None)
    return math.sqrt(total) / _GRADIENT_SCALE

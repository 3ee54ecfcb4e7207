"""A temperature of class probabilities, learned adversarially to the distillation loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MAX_TEMPERATURE = 4.0
"""Upper bound of the temperature; the lower one is 1."""


class Temperature(nn.Module):  # type: ignore[misc]
    """A temperature that the student's optimizer trains to maximize the loss.

    T = 1 + 3 sigmoid(theta), in (1, 4); theta's gradient is reversed and scaled by `strength`, which grows with
    training: first easy, then hard. CTKD: Li and others, arXiv 2211.16231.
    """

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((), -2.0))  # about 1.36: near the teacher's own probabilities

    def forward(self, strength: float) -> torch.Tensor:
        """Return the temperature, a scalar."""
        theta: torch.Tensor = _ReverseGradient.apply(self.theta, strength)  # type: ignore[no-untyped-call]
        return 1 + (MAX_TEMPERATURE - 1) * theta.sigmoid()


class _ReverseGradient(torch.autograd.Function):  # type: ignore[misc]
    """Identity forward; backward the gradient with its sign changed, times `strength`."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, strength: float) -> torch.Tensor:
        context.strength = strength
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -context.strength * gradient, None

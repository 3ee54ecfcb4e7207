"""A temperature of class probabilities that is learned against the loss of distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

HOTTEST = 4.0
"""The highest temperature that is learned; the lowest is 1."""


class Temperature(nn.Module):  # type: ignore[misc]
    """A temperature that makes the student's task as hard as it can: trained by the same optimizer, against the loss.

    T = 1 + 3 sigmoid(theta), in (1, 4); the gradient that reaches theta is turned round and scaled by `strength`, which
    grows with training: first easy, then hard. CTKD: Li and others, arXiv 2211.16231.
    """

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((), -2.0))  # about 1.36: near the teacher's own probabilities

    def forward(self, strength: float) -> torch.Tensor:
        """The temperature, a scalar."""
        turned: torch.Tensor = _Reverse.apply(self.theta, strength)  # type: ignore[no-untyped-call]
        return 1 + (HOTTEST - 1) * turned.sigmoid()


class _Reverse(torch.autograd.Function):  # type: ignore[misc]
    """What goes in comes out; the gradient comes back with its sign changed."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, strength: float) -> torch.Tensor:
        context.strength = strength
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -context.strength * gradient, None

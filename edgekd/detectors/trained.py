"""What every training of a detector tells, when it is over for the worse, and in which numbers it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.errors import CompressError


@dataclass(frozen=True)
class Trained:
    """What training did: epochs, the mean of each loss in each epoch, and how long it took."""

    epochs: int
    losses: tuple[Mapping[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class Distilled(Trained):
    """What distillation did: also the mean of each weight in each epoch, and the sizes of both networks.

    weights: of each level; `teacher`, the share by which an adaptive stage scales them; and what that and they follow
    from, `disagreement` and `temperature`.
    """

    weights: tuple[Mapping[str, float], ...]
    parameters: int
    teacher_parameters: int


def fast_in_bfloat16(device: Any) -> bool:
    """Whether a device, of PyTorch's, multiplies matrices in bfloat16: most GPUs, and CPUs with AMX or AVX512_BF16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    told: Any = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest PyTorch that will do
    return device.type == "cpu" and bool(told.get("amx_bf16") or told.get("avx512_bf16"))


def require_finite(epoch: int, losses: Mapping[str, float], last: float, remedy: str) -> None:
    """Raise CompressError where a mean of an epoch, counted from 0, or its last loss is no number."""
    if all(map(math.isfinite, (*losses.values(), last))):
        return
    raise CompressError(
        f"training diverged in epoch {epoch + 1}",
        expected="finite losses",
        found=", ".join(f"{name} {value:g}" for name, value in losses.items()),
        fix=remedy,
    )

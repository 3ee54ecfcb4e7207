"""What every training of a detector tells, when it is over for the worse, and in which numbers it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgekd.core.errors import CompressError, SpecError


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
    """Whether a device of PyTorch's has bfloat16 and does not emulate it: newer GPUs, CPUs with AMX or AVX512_BF16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    told: Any = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest PyTorch that will do
    return device.type == "cpu" and bool(told.get("amx_bf16") or told.get("avx512_bf16"))


def require_device(device: str | None) -> None:
    """Raise SpecError where training cannot be on `device`: `cpu`, or numbers of GPUs such as `0` or `0,1`."""
    import torch

    if device is None or device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked = device.split(",")
    if not all(each.isdecimal() and int(each) < count for each in asked) or len(set(asked)) < len(asked):
        there = ", ".join(map(str, range(count)))
        expected = f"cpu, or of the GPUs {there} one or several" if count else "cpu: PyTorch finds no GPU here"
        raise SpecError("device to train on", expected=expected, found=device, fix="`edgekd doctor` says what is there")


@contextmanager
def fitting_batches() -> Iterator[None]:
    """Turn errors of batches that are too large for a GPU's memory, or too small to train on, into CompressError."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        found = str(error).split(". ")[0]
        raise CompressError("training: too little memory", found=found, fix="a smaller batch or image_size") from error
    except ValueError as error:
        if "value per channel" not in str(error):
            raise
        fix = "a batch of 2 or more, or a larger image_size"
        raise CompressError("training: batch norm cannot see one image alone", found=str(error), fix=fix) from error


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

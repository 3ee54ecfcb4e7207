"""Helpers for PyTorch: missing libraries, devices, failures of training, its saved state, and the export to ONNX."""

from __future__ import annotations

import io
import math
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import write_file
from edgekd.core.errors import CompressError, SpecError, first_line

MAX_WARMUP_SHARE = 0.1
"""Largest share of warm-up in a training, which limits it in short ones."""


@contextmanager
def requiring(message: str, extra: str = "train") -> Iterator[None]:
    """Turn an ImportError into a SpecError that says what to install; redirect output of libraries to stderr.

    message: of the error; extra: edgekd's extra that installs the missing library.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except ImportError as error:
        fix = f'pip install "edgekd[{extra}]"; `edgekd doctor` says what is missing'
        raise SpecError(message, found=str(error), fix=fix) from error


def parameters_in(network: Any) -> int:
    """Return the number of parameters of a network."""
    return sum(each.numel() for each in network.parameters())


def fast_in_bfloat16(device: Any) -> bool:
    """Return whether a torch.device has native bfloat16: newer GPUs, and CPUs with AMX or AVX512_BF16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # absent in the oldest supported PyTorch
    return device.type == "cpu" and bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def in_bfloat16(device: Any) -> Any:
    """Return a context in which networks compute in bfloat16 if the torch.device has it natively."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=fast_in_bfloat16(device))


def one_device(device: str | None) -> Any:
    """Return the torch.device to train on.

    device: `cpu` or the number of a GPU; None for a GPU if there is one. Raises SpecError for a GPU that is missing.
    """
    import torch

    require_device(device)
    if device is None:
        device = "0" if torch.cuda.is_available() else "cpu"
    return torch.device("cpu" if device == "cpu" else f"cuda:{device}")


def require_device(device: str | None) -> None:
    """Raise SpecError unless training can run on `device`: `cpu`, or numbers of GPUs such as `0` or `0,1`."""
    import torch

    if device is None or device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbers = device.split(",")
    if not all(each.isdecimal() and int(each) < count for each in numbers) or len(set(numbers)) < len(numbers):
        present = ", ".join(map(str, range(count)))
        expected = f"cpu, or of the GPUs {present} one or several" if count else "cpu: PyTorch finds no GPU here"
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
    """Raise CompressError if an epoch's mean losses, or its last loss, are not finite.

    epoch: counted from 0; remedy: fix in the error.
    """
    if all(map(math.isfinite, (*losses.values(), last))):
        return
    raise CompressError(
        f"training diverged in epoch {epoch + 1}",
        expected="finite losses",
        found=", ".join(f"{name} {value:g}" for name, value in losses.items()),
        fix=remedy,
    )


def require_finite_weights(epoch: int, network: Any, remedy: str) -> None:
    """Raise CompressError if a weight is not finite after an epoch. epoch: counted from 0; remedy: fix in the error.

    Losses may still be finite, if such a weight has read only padding.
    """
    for name, weight in network.named_parameters():
        if not weight.isfinite().all():
            raise CompressError(
                f"training diverged in epoch {epoch + 1}", expected="finite weights", found=name, fix=remedy
            )


def warmup_factor(update: int, warmup_steps: int, share: float) -> float:
    """Return the factor of the learning rate at a weight update, which rises linearly to 1; 1 without warm-up.

    update: counted from 1; share: share of the training that is done after it. The warm-up ends after `warmup_steps`
    updates, or after MAX_WARMUP_SHARE of the training if that is earlier.
    """
    return min(max(update / warmup_steps, share / MAX_WARMUP_SHARE), 1.0) if warmup_steps else 1.0


def read_state(path: Path, device: Any = "cpu") -> dict[str, Any] | None:
    """Return the state of a training; None if the file is missing or incomplete. No code in it is executed."""
    import torch

    if not path.is_file():
        return None
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        return None


def write_content(content: Any, path: Path) -> None:
    """Write content to a file with `torch.save`, atomically."""
    write_file(path, saved_bytes(content))


def saved_bytes(content: Any) -> bytes:
    """Return the bytes that `torch.save` writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def write_onnx(
    module: Any, height: int, width: int, graph: Path, opset: int, outputs: Sequence[str] = ("output0",)
) -> None:
    """Write a module with input `images` [1, 3, h, w] and these outputs as float32 ONNX. Raises CompressError."""
    import torch

    frame = torch.zeros(1, 3, height, width)
    try:
        with torch.no_grad(), redirect_stdout(io.StringIO()):  # on failure PyTorch prints the whole graph
            module(frame)  # heads build their anchors for this input size, which become constants
            torch.onnx.export(
                module,
                (frame,),
                str(graph),
                opset_version=opset,
                input_names=["images"],
                output_names=list(outputs),
                dynamo=False,
            )
    except Exception as error:
        raise CompressError(f"export of {graph.name} at opset {opset} failed", found=first_line(error)) from error

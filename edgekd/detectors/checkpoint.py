"""Loading a checkpoint without running what is in it.

A `.pt` file is a pickle, and a pickle is a program. PyTorch's weights-only unpickler runs none of it except the names on
an allow-list; the list here is what an Ultralytics detector needs: network layers, and nothing that opens files,
downloads or executes.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgekd.errors import SpecError

_LAYER_MODULES = ("torch.nn.modules.", "ultralytics.nn.modules.", "ultralytics.nn.tasks")
_PLAIN_NAMES = ("ultralytics.utils.IterableSimpleNamespace",)
# A layer whose constructor downloads weights.
_REFUSED_NAMES = ("ultralytics.nn.modules.block.TorchVision",)


def load_checkpoint(path: Path, trust: bool = False) -> dict[str, Any]:
    """The dictionary in an Ultralytics checkpoint. With `trust`, whatever the pickle says is executed.

    Raises SpecError for a file that is no checkpoint, or that names anything an Ultralytics detector does not need.
    """
    import torch

    if trust:
        return _as_dict(_read(path, weights_only=False), path)
    names = _names_in(path)
    refused = sorted(name for name in names if not _may_load(name))
    if refused:
        raise SpecError(
            f"{path}: refused to load",
            expected="a pickle that names only Ultralytics and PyTorch layers",
            found=", ".join(refused[:5]) + (" ..." if len(refused) > 5 else ""),
            fix="if you trust whoever made this file with your machine, add --trust-checkpoint",
        )
    with torch.serialization.safe_globals([_resolve(name, path) for name in names]):
        return _as_dict(_read(path, weights_only=True), path)


def _names_in(path: Path) -> list[str]:
    """Every name in the pickle that PyTorch does not itself hold safe, read without unpickling."""
    import torch

    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:
        raise _no_checkpoint(path, error) from error


def _read(path: Path, weights_only: bool) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:
        raise _no_checkpoint(path, error) from error


def _as_dict(checkpoint: Any, path: Path) -> dict[str, Any]:
    if isinstance(checkpoint, dict) and (checkpoint.get("ema") or checkpoint.get("model")) is not None:
        return checkpoint
    raise SpecError(
        f"{path}: no model in this checkpoint",
        expected="a dictionary with `model` or `ema`, as Ultralytics writes it",
        found=type(checkpoint).__name__,
        fix="save it with Ultralytics, or export it to ONNX and pass that",
    )


def _may_load(name: str) -> bool:
    return name in _PLAIN_NAMES or (name.startswith(_LAYER_MODULES) and name not in _REFUSED_NAMES)


def _resolve(name: str, path: Path) -> type:
    """The class of that name; only network layers, and only where they are defined."""
    from torch import nn

    module_name, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"{path}: needs {name}, which the installed libraries do not have",
            fix="pip install --upgrade ultralytics, or the version that wrote the checkpoint",
        ) from error
    is_layer = isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module_name
    if name in _PLAIN_NAMES or is_layer:
        return found
    raise SpecError(f"{path}: refused to load", expected="network layers", found=name)


def _no_checkpoint(path: Path, error: Exception) -> SpecError:
    return SpecError(
        f"{path}: cannot be read as a checkpoint",
        expected="a file written by torch.save",
        found=str(error).strip().split("\n")[0][:200] or type(error).__name__,
        fix="check that the file is complete",
    )

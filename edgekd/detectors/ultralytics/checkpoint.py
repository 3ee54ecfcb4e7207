"""Write Ultralytics checkpoints, and read them without executing code in them.

A `.pt` file is a pickle, which can call any function that it names, with any arguments. A list of harmless names is not
sufficient protection, because constructors of network layers have side effects: Ultralytics' DetectionModel evaluates
the `activation` in its description, and its TorchVision block downloads weights. So nothing that the file names is
called:

1. PyTorch's weights-only unpickler reads the file; it refuses every name that is not on its allow-list.
2. The list has the names of network layers, each with a stand-in: a class whose objects only hold attributes.
3. After reading, every stand-in object gets the class of its layer, and with it the layer's methods.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import write_file
from edgekd.core.errors import SpecError, first_line
from edgekd.detectors.checkpoint_scan import scan_checkpoint
from edgekd.detectors.torch_support import saved_bytes

MAX_VISITS = 100_000
"""Largest number of layers in a traversal of a network; YOLO11x has 1,000."""
_LAYER_MODULES = ("torch.nn.modules.", "ultralytics.nn.modules.", "ultralytics.nn.tasks.")
# Results, paths and losses of the training: in real checkpoints, but not needed by a detector.
_IGNORED_MODULES = ("numpy.", "pathlib.", "ultralytics.utils.loss.", "ultralytics.utils.tal.")
_IGNORED_NAMES = ("ultralytics.utils.IterableSimpleNamespace",)


@dataclass(frozen=True)
class Checkpoint:
    """The used parts of a checkpoint: the network, float32 in evaluation mode, and the arguments of its training."""

    model: Any
    train_args: Mapping[str, Any]


def load_checkpoint(path: Path, trust: bool = False) -> Checkpoint:
    """Load the network in an Ultralytics checkpoint. With `trust`, the pickle can execute any code.

    Raises SpecError for a file that is not a checkpoint, or without `trust` names anything that an Ultralytics detector
    does not need.
    """
    from torch import nn

    content = _read(path, weights_only=False) if trust else _read_without_running(path)
    parts = content if isinstance(content, dict) else {}
    model = next((parts[key] for key in ("ema", "model") if isinstance(parts.get(key), nn.Module)), None)
    if model is None:
        raise SpecError(
            f"{path}: no network in this checkpoint",
            expected="a dictionary with a network as `model` or `ema`, as Ultralytics writes it",
            found=_kind(content),
            fix="save it with Ultralytics, or export it to ONNX and pass that",
        )
    train_args = parts.get("train_args")
    try:
        _require_few_visits(model)
        return Checkpoint(model.float().eval(), train_args if isinstance(train_args, dict) else {})
    except (AttributeError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise _no_checkpoint(path, error) from error


def _require_few_visits(model: Any) -> None:
    """Raise ValueError for layers inside themselves, or shared so often that a traversal is too long (MAX_VISITS)."""
    visits: dict[int, int] = {}

    def count(layer: Any) -> int:
        if visits.setdefault(id(layer), 0) < 0:
            raise ValueError("a layer inside itself")
        if not visits[id(layer)]:
            visits[id(layer)] = -1
            visits[id(layer)] = 1 + sum(count(inner) for inner in layer.children())
        if visits[id(layer)] > MAX_VISITS:
            raise ValueError(f"layers that are met more than {MAX_VISITS} times")
        return visits[id(layer)]

    count(model)


def write_checkpoint(network: Any, train_args: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint like Ultralytics', in half precision; converts the network itself, too."""
    write_file(path, checkpoint_bytes(network, train_args))


def checkpoint_bytes(network: Any, train_args: Mapping[str, Any]) -> bytes:
    """Return the bytes that `write_checkpoint` writes; converts the network to half precision."""
    head = {"epoch": -1, "ema": None, "optimizer": None, "train_args": dict(train_args)}
    return saved_bytes({**head, "model": network.half()})


def _read_without_running(path: Path) -> Any:
    import torch

    names = scan_checkpoint(path)
    refused = sorted(name for name in names if not name.startswith(_LAYER_MODULES) and not _is_ignored(name))
    if refused:
        raise _refusal(path, ", ".join(refused[:5]) + (" ..." if len(refused) > 5 else ""))
    instances: list[tuple[Any, type]] = []
    allowed = [(_Ignored if _is_ignored(name) else _stand_in(_layer(name, path), instances), name) for name in names]
    with torch.serialization.safe_globals(allowed):
        content = _read(path, weights_only=True)
    for instance, layer in instances:
        state = dict(vars(instance))
        instance.__class__ = layer
        try:
            instance.__setstate__(state)  # adds attributes that layers written by older versions lack
        except (AttributeError, LookupError, TypeError) as error:
            raise _no_checkpoint(path, error) from error
    return content


def _is_ignored(name: str) -> bool:
    return name in _IGNORED_NAMES or name.startswith(_IGNORED_MODULES)


class _Ignored:
    """A stand-in for an object that is not needed."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in(layer: type, instances: list[tuple[Any, type]]) -> type:
    """Return a class whose instances only hold a layer's attributes; each is appended to `instances` with the layer."""

    class StandIn:
        def __new__(cls) -> StandIn:
            instance = super().__new__(cls)
            instances.append((instance, layer))
            return instance

        def __setstate__(self, state: dict[str, Any]) -> None:
            vars(self).update(state)

    return StandIn


def _layer(name: str, path: Path) -> type:
    """Return the class of a network layer by its full name, only from the module that defines it. Raises SpecError."""
    from torch import nn

    module, _, attribute = name.rpartition(".")
    try:
        layer = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"{path}: needs {name}, which the installed libraries do not have",
            fix="pip install --upgrade ultralytics, or the version that wrote the checkpoint",
        ) from error
    if isinstance(layer, type) and issubclass(layer, nn.Module) and layer.__module__ == module:
        return layer
    raise _refusal(path, name)


def _read(path: Path, weights_only: bool) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:
        raise _no_checkpoint(path, error) from error


def _kind(content: Any) -> str:
    """Describe the content of a checkpoint without a network."""
    model = content.get("model", content) if isinstance(content, dict) else content
    kinds = {type(value).__name__ for value in model.values()} if isinstance(model, dict) else set()
    if kinds and kinds <= {"Tensor", "Parameter"}:
        return "weights without the layers (a state_dict)"
    return type(model).__name__


def _refusal(path: Path, names: str) -> SpecError:
    return SpecError(
        f"{path}: refused to load",
        expected="a pickle that names only Ultralytics and PyTorch layers",
        found=names,
        fix="if you trust the source of this file to run programs on this machine, add --trust-checkpoint",
    )


def _no_checkpoint(path: Path, error: Exception) -> SpecError:
    return SpecError(
        f"{path}: cannot be read as a checkpoint",
        expected="a file written by torch.save",
        found=first_line(error),
        fix="check that the file is complete",
    )

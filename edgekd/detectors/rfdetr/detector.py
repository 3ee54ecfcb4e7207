"""Checkpoints of RF-DETR as detectors, in files `*.pth` written by rfdetr's training.

They are read with the weights-only loader: no code in them is executed unless they are trusted, and nothing is
downloaded.
"""

from __future__ import annotations

import logging
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rfdetr
import torch
from rfdetr.assets.coco_classes import COCO_CLASSES

from edgekd.core.detection.checked_spec import checked_classes
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import SpecError, first_line
from edgekd.detectors.checkpoint_scan import scan_checkpoint
from edgekd.detectors.described import DescribedTeacher, RawOutputs, decoded
from edgekd.detectors.heads.description import read_description
from edgekd.graph.rehearsal import rehearse_call

torch.set_float32_matmul_precision("highest")  # PyTorch's default, which the import of rfdetr lowers

_SETTINGS = {"argparse.Namespace": Namespace, "types.SimpleNamespace": SimpleNamespace}
"""Types of the training's settings: plain containers of attributes."""
_SIDES = ("resolution", "positional_encoding_size")
"""Settings of the input's side, in pixels and in patches."""
_VALUES = 3 * 1024 * 1024
"""Number of input values for the time and memory limits of the trial; the largest RF-DETR has 880 x 880 pixels."""
_REBUILT = "_kp_active_mask"
"""A buffer that is computed from the settings, and that older checkpoints lack."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file. weights: by name; settings: of the training; described: it contains the architecture."""

    weights: Mapping[str, torch.Tensor]
    settings: Any
    described: bool


class RfdetrDetector:
    """A `.pth` file; nothing is read from it until `export`. classes: class names, if the file has none."""

    family = "rfdetr"
    libraries: tuple[str, ...] = ("rfdetr", "torch", "transformers")

    def __init__(self, path: Path, classes: tuple[str, ...] = (), trust: bool = False, **_: Any) -> None:
        """path: of the file, which contains its head; other arguments of `Family.load` are ignored."""
        self.path = path
        self._classes, self._trust = classes, trust

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the network as float32 ONNX, with decoding of boxes and scores. Raises SpecError, CompressError."""
        return load_network(self.path, self._trust, self._classes).export(graph, opset, f"{self.path}: detector")

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the decoded outputs of the checkpoint's network, float32, for a batch [1, 3, h, w]."""
        module = load_network(self.path, self._trust, self._classes)
        return decoded(module, module.described, module.size, batch)


def load_teacher(checkpoint: Path, trust: bool) -> DescribedTeacher:
    """Load a checkpoint as a teacher. Raises SpecError."""
    return load_network(checkpoint, trust).teacher()


def load_network(path: Path, trust: bool, classes: tuple[str, ...] = ()) -> RawOutputs:
    """Load the network in a file; unless it is trusted, after a trial in a child process with limits.

    classes: class names, if the file has none. Raises SpecError.
    """
    if not trust:
        rehearse_call(f"{__name__}:run_once", path, (classes,), _VALUES, "rfdetr,torch")
    return _loaded(path, trust, classes)


def run_once(path: str, classes: list[str]) -> None:
    """Load the network in a file and run it on a frame of zeros, in the child process."""
    module = _loaded(Path(path), False, tuple(classes))
    with torch.no_grad():
        module(torch.zeros(1, 3, *module.size))


def _loaded(path: Path, trust: bool, classes: tuple[str, ...]) -> RawOutputs:
    checkpoint = _read(path, trust)
    model = _built(path, trust, checkpoint)
    network, config = model.model.model, model.model_config
    if config.segmentation_head or config.use_grouppose_keypoints or config.num_channels != 3:
        raise _refusal(path, "a detector of boxes alone, in images with three channels", type(model).__name__)
    own, given = _shapes(network.state_dict()), _shapes(checkpoint.weights)
    strangers = {name for name, _ in own.items() ^ given.items()} - {_REBUILT}
    if strangers:
        raise _refusal(path, f"the weights of {type(model).__name__}", ", ".join(sorted(strangers))[:200])
    columns, legacy = network.class_embed.out_features, isinstance(checkpoint.settings, Namespace)
    names = _names(model.model.class_names or (), classes, columns, legacy=legacy)
    if not names:
        expected = f"names of at most {columns} classes in it, or of a data set"
        raise _refusal(path, expected, f"{len(model.model.class_names or classes)} names")
    described = replace(
        read_description("rf-detr"),
        scores=("labels",),
        boxes=("dets",),
        background="none",
        class_columns=tuple(names),
        classes=checked_classes(list(names.values()), f"{path}: class_names"),
    )
    network.eval().export()  # as in rfdetr's own export: positions of patches become constants
    side = model.model.resolution
    return RawOutputs(network, described, (side, side), lambda outputs: (outputs[1], outputs[0]))


def _read(path: Path, trust: bool) -> Checkpoint:
    """Read a checkpoint; unless it is trusted, without executing code in it. Raises SpecError for any other file."""
    foreign = set() if trust else scan_checkpoint(path) - set(_SETTINGS)
    if foreign:
        fix = "if you trust the source of this file to run programs on this machine, add --trust-checkpoint"
        found = ", ".join(sorted(foreign))[:200]
        raise SpecError(f"{path}: refused to load", expected="weights and plain settings", found=found, fix=fix)
    try:
        with torch.serialization.safe_globals(list(_SETTINGS.values())):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:
        raise _refusal(path, "a file that torch.save has written", first_line(error)) from error
    parts = content if isinstance(content, dict) else {}
    weights, settings = parts.get("model"), parts.get("args")
    if not isinstance(weights, dict) or "class_embed.bias" not in weights or settings is None:
        found = ", ".join(map(str, parts))[:100] or type(content).__name__
        raise _refusal(path, "`model` with the weights of an RF-DETR, and `args`", found)
    return Checkpoint(weights, settings, "model_config" in parts)


def _built(path: Path, trust: bool, checkpoint: Checkpoint) -> Any:
    """Return rfdetr's own model of a checkpoint. Raises SpecError."""
    logging.getLogger("rf-detr").setLevel(logging.ERROR)  # it warns of problems that are checked here
    known = vars(checkpoint.settings) if isinstance(checkpoint.settings, Namespace) else {}
    # Older checkpoints store them in the settings of the training, which rfdetr does not read.
    sides = {} if checkpoint.described else {name: known[name] for name in _SIDES if type(known.get(name)) is int}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # rfdetr resolves a path without a folder in its cache of downloads.
            return rfdetr.from_checkpoint(path.absolute(), trust_checkpoint=trust, device="cpu", **sides)
    except MemoryError:
        raise
    except Exception as error:  # with an unknown checkpoint, rfdetr can raise anything
        raise _refusal(path, "a model that rfdetr itself can load", first_line(error)) from error


def _names(stored: Sequence[str], given: Sequence[str], columns: int, *, legacy: bool) -> dict[int, str]:
    """Return the name of each class by its column of scores; empty if they are unknown.

    stored: names in the file; given: names used if there are none; columns: number of columns of scores; legacy:
    whether a trainer before rfdetr 1.6 wrote the file.
    """
    if columns == max(COCO_CLASSES) + 1 and list(stored) in ([], list(COCO_CLASSES.values())):
        return dict(COCO_CLASSES)
    names = stored or given
    # Before 1.6 labels were category numbers from 1 on; column 0 was the parent category of all classes.
    first = 1 if legacy and len(names) < columns else 0
    return {first + index: name for index, name in enumerate(names)} if len(names) <= columns else {}


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    return {name: tuple(value.shape) if isinstance(value, torch.Tensor) else None for name, value in weights.items()}


def _refusal(path: Path, expected: str, found: str) -> SpecError:
    fix = "export it to ONNX with its own package, and pass that; rfdetr's `model.export()` needs --head rf-detr"
    return SpecError(f"{path}: cannot be read as a checkpoint of RF-DETR", expected=expected, found=found, fix=fix)

"""Checkpoints by LibreYOLO as detectors, in files `*.libreyolo.pt` written by its `save`.

They are read with the weights-only loader: no code in them is executed, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libreyolo
import numpy as np
import torch

from edgekd.core.detection.checked_spec import checked_classes
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import SpecError, first_line
from edgekd.detectors.checkpoint_scan import scan_checkpoint
from edgekd.detectors.described import DescribedTeacher, Outputs, RawOutputs, decoded
from edgekd.detectors.heads.description import HeadDescription, read_description
from edgekd.graph.rehearsal import rehearse_call

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LibreHead:
    """The head of a family of LibreYOLO. outputs: selects the outputs, in the order of `output_names`."""

    described: HeadDescription
    outputs: Outputs


def _flat(output: Any) -> list[torch.Tensor]:
    """Return the maps of all levels; if a network returns scores and boxes, first all scores, then all boxes."""
    return [part for each in output for part in (each if isinstance(each, (list, tuple)) else [each])]


def _scores_and_boxes(output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the decoded scores and boxes of PP-YOLOE, which also returns raw outputs unless PyTorch traces it."""
    boxes, scores = output[0] if isinstance(output[0], tuple) else output
    return scores, boxes


def _levels(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}{level}" for level in range(count))


def _queries() -> LibreHead:
    described = replace(read_description("rt-detr"), scores=("scores",), boxes=("boxes",), background="none")
    return LibreHead(described, lambda output: (output["pred_logits"], output["pred_boxes"]))


def _yolox() -> LibreHead:
    described = HeadDescription(
        predictions=_levels("level", 3),
        columns=("boxes", "objectness", "scores"),
        coding="grid",
        unit="cells",
        strides=(8, 16, 32),
        activation="none",
        nms=True,
        color="bgr",
        scale=1.0,
        center=False,
    )
    return LibreHead(described, _flat)


def _yolo9() -> LibreHead:
    described = HeadDescription(
        predictions=("predictions",),
        columns=("boxes", "scores"),
        coding="xyxy",
        unit="pixels",
        strides=(8, 16, 32),
        activation="none",
        nms=True,
        center=False,
    )
    return LibreHead(described, lambda output: (output["predictions"],))


def _picodet() -> LibreHead:
    described = replace(
        read_description("picodet"),
        scores=_levels("scores", 4),
        boxes=_levels("boxes", 4),
        activation="sigmoid",
        nms=True,
    )
    return LibreHead(described, _flat)


def _rtmdet() -> LibreHead:
    described = replace(
        read_description("rtmdet"),
        scores=_levels("scores", 3),
        boxes=_levels("boxes", 3),
        strides=(8, 16, 32),
        nms=True,
    )
    return LibreHead(described, _flat)


def _ppyoloe() -> LibreHead:
    described = replace(
        read_description("pp-yoloe"),
        scores=("scores",),
        boxes=("boxes",),
        strides=(32, 16, 8),
        nms=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return LibreHead(described, _scores_and_boxes)


HEADS: Mapping[str, Callable[[], LibreHead]] = {
    "deim": _queries,
    "dfine": _queries,
    "picodet": _picodet,
    "ppyoloe": _ppyoloe,
    "rtdetrv4": _queries,
    "rtmdet": _rtmdet,
    "yolo9": _yolo9,
    "yolox": _yolox,
}
"""Head of each `model_family`."""


class LibreyoloDetector:
    """A `.libreyolo.pt` file; nothing is read from it until `export`."""

    family = "libreyolo"
    libraries: tuple[str, ...] = ("libreyolo", "torch")

    def __init__(self, path: Path, **_: Any) -> None:
        """path: of the file, which contains head and classes; other arguments of `Family.load` are ignored."""
        self.path = path

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the network as float32 ONNX, with decoding of boxes and scores. Raises SpecError, CompressError."""
        return load_network(self.path).export(graph, opset, f"{self.path}: detector")

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the decoded outputs of the checkpoint's network, float32, for a batch [1, 3, h, w]."""
        module = load_network(self.path)
        return decoded(module, module.described, module.size, batch)


def load_teacher(checkpoint: Path, trust: bool) -> DescribedTeacher:
    """Load a checkpoint as a teacher. Raises SpecError."""
    return load_network(checkpoint).teacher()


def load_network(path: Path) -> RawOutputs:
    """Load the network in a file, after a trial in a child process with limits of memory and time. Raises SpecError."""
    sides = _read(path)["imgsz"]
    rehearse_call(f"{__name__}:run_once", path, (), 3 * sides * sides, "libreyolo,torch")
    return _loaded(path)


def run_once(path: str) -> None:
    """Load the network in a file and run it on a frame of zeros, in the child process."""
    module = _loaded(Path(path))
    with torch.no_grad():
        module(torch.zeros(1, 3, *module.size))


def _loaded(path: Path) -> RawOutputs:
    content = _read(path)
    try:
        model = libreyolo.LibreYOLO(str(path), device="cpu")
    except MemoryError:
        raise
    except Exception as error:  # with an unknown checkpoint, libreyolo can raise anything
        raise _refusal(path, "the weights of the family that it names", first_line(error)) from error
    strangers = set(content["model"]) ^ set(model.model.state_dict())
    if strangers:
        raise _refusal(path, f"the weights of {content['model_family']}", ", ".join(sorted(strangers))[:200])
    names = [model.names[index] for index in sorted(model.names)]
    side = model.input_size
    size = (side[0], side[1]) if isinstance(side, (list, tuple)) else (side, side)
    head = HEADS[content["model_family"]]()
    described = replace(head.described, classes=checked_classes(names, f"{path}: names"))
    return RawOutputs(model.model, described, size, head.outputs)


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing code in it. Raises SpecError if LibreYOLO has not written it."""
    names = scan_checkpoint(path)
    if names:
        raise _refusal(path, "weights and plain values", ", ".join(sorted(names))[:200])
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refusal(path, "a file that LibreYOLO has saved", first_line(error)) from error
    parts = content if isinstance(content, dict) else {}
    family, task, side = (parts.get(key) for key in ("model_family", "task", "imgsz"))
    if family not in HEADS or task != "detect" or not isinstance(parts.get("model"), dict):
        raise _refusal(path, "a detector of " + ", ".join(HEADS), f"{family!r:.40}, task {task!r:.40}")
    if type(side) is not int or side < 1:
        raise _refusal(path, "imgsz: pixels", f"{side!r:.40}")
    return parts


def _refusal(path: Path, expected: str, found: str) -> SpecError:
    return SpecError(f"{path}: cannot be read as a detector by LibreYOLO", expected=expected, found=found)

"""Ultralytics checkpoints (YOLOv8, 11, 26). The only module that imports Ultralytics, which is AGPL-3.0."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import SpecError
from edgekd.detectors.checkpoint import load_checkpoint, write_checkpoint
from edgekd.detectors.torch_onnx import write_onnx

HEADS = ("Detect", "v10Detect")


class UltralyticsDetector:
    """A `.pt` checkpoint; nothing is read from it until `export`."""

    family = "ultralytics"
    libraries: tuple[str, ...] = ("torch", "ultralytics")

    def __init__(self, path: Path, trust: bool = False) -> None:
        self.path = path
        self._trust = trust

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the detector as float32 ONNX with the dense head `[1, 4 + classes, n]`.

        An end-to-end head is exported without its TopK, whose `Mod` and gathers TensorRT 8.2 cannot parse: the
        one-to-one branch gives one box per object, so ranking it needs no NMS.
        """
        model, train_args = self.network()
        head = model.model[-1]
        nms = keep_one_branch(head)
        size = input_size(train_args, int(max(head.stride)))
        spec = DetectorSpec(
            classes=tuple(model.names[index] for index in sorted(model.names)),
            preprocess=Preprocess(height=size[0], width=size[1]),
            head=Head("yolo", nms=nms, strides=tuple(int(stride) for stride in head.stride)),
        )
        _write_onnx(model, head, spec, graph, opset)
        return spec

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """What the checkpoint itself computes in float32 for batch [1, 3, h, w], to compare the export with."""
        import torch

        model, _ = self.network()
        keep_one_branch(model.model[-1])
        with torch.no_grad():
            prediction, _ = model(torch.from_numpy(batch))
        return np.asarray(prediction.numpy())

    def network(self) -> tuple[Any, Mapping[str, Any]]:
        """The network, which is a box detector, and its training's arguments. Raises SpecError."""
        try:
            # Ultralytics logs to stdout, at its first start and later, where only results belong.
            with redirect_stdout(sys.stderr):
                import ultralytics.nn.tasks  # noqa: F401
        except ImportError as error:
            raise SpecError(
                f"{self.path}: reading an Ultralytics checkpoint needs Ultralytics and PyTorch",
                found=str(error),
                fix='pip install "edgekd[train]"; `edgekd doctor` says what is missing',
            ) from error
        checkpoint = load_checkpoint(self.path, self._trust)
        require_box_detector(checkpoint.model, self.path)
        return checkpoint.model, checkpoint.train_args


def require_box_detector(model: Any, path: Path) -> None:
    """Raise SpecError for a model in a checkpoint that is no detector of boxes with a head known here."""
    last = list(model.model.children())[-1:] if hasattr(model, "model") else [model]
    # Exact types: models for other tasks derive from DetectionModel, and their heads from Detect.
    if type(model).__name__ != "DetectionModel" or not last or type(last[0]).__name__ not in HEADS:
        raise SpecError(
            f"{path}: not a box detector",
            expected="an Ultralytics DetectionModel whose last layer is " + " or ".join(HEADS),
            found=" with ".join(type(part).__name__ for part in (model, *last)),
            fix="train with task=detect, or export to ONNX and describe its head with --head",
        )


def keep_one_branch(head: Any) -> bool:
    """Drop the head branch that does not run on the camera; return whether the one that stays needs NMS."""
    if not getattr(head, "end2end", False):
        return True
    head.cv2, head.cv3 = head.one2one_cv2, head.one2one_cv3
    head.one2one_cv2 = head.one2one_cv3 = None
    head.end2end = False
    return False


def input_size(train_args: Mapping[str, Any], stride: int) -> tuple[int, int]:
    """Height and width the network was trained at: whole strides, as Ultralytics rounds them; 640 where not said."""
    size = train_args.get("imgsz") or 640
    if isinstance(size, str):
        size = ast.literal_eval(size)
    sides = (size, size) if isinstance(size, (int, float)) else (size[0], size[-1])
    height, width = (stride * math.ceil(side / stride) for side in sides)
    return height, width


def resized(checkpoint: Path, image_size: int, out: Path, trust: bool = False) -> tuple[tuple[int, int], ...]:
    """Write `out`, the detector in `checkpoint` as it is but for the side of its input in pixels.

    Returns height and width before and after. Raises SpecError for a checkpoint that is no detector.
    """
    network, train_args = UltralyticsDetector(checkpoint, trust).network()
    stride = int(max(network.stride))
    told = {"task": "detect", **train_args, "imgsz": image_size}
    write_checkpoint(network, told, out)
    return input_size(train_args, stride), input_size(told, stride)


def _write_onnx(model: Any, head: Any, spec: DetectorSpec, graph: Path, opset: int) -> None:
    model.fuse(verbose=False)
    head.export, head.format, head.dynamic = True, "onnx", False
    write_onnx(model, spec.preprocess.height, spec.preprocess.width, graph, opset)

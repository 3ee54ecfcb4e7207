"""Ultralytics checkpoints (YOLOv8, 11, 26). The only module that imports Ultralytics, which is AGPL-3.0."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.detectors.checkpoint import load_checkpoint
from edgekd.detectors.types import DetectorSpec, Head, Preprocess
from edgekd.errors import CompressError, SpecError


class UltralyticsDetector:
    """A `.pt` checkpoint; nothing is read from it until `export`."""

    family = "ultralytics"

    def __init__(self, path: Path, trust: bool = False) -> None:
        self.path = path
        self._trust = trust

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the detector as float32 ONNX with the dense head `[1, 4 + classes, n]`.

        An end-to-end head is exported without its TopK, whose `Mod` and gathers TensorRT 8.2 cannot parse: the
        one-to-one branch gives one box per object, so ranking it needs no NMS.
        """
        checkpoint = _load(self.path, self._trust)
        model = (checkpoint.get("ema") or checkpoint["model"]).float().eval()
        head = model.model[-1]
        _require_detect_head(self.path, model, head)
        nms = _keep_one_branch(head)
        size = _input_size(checkpoint)
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

        checkpoint = _load(self.path, self._trust)
        model = (checkpoint.get("ema") or checkpoint["model"]).float().eval()
        head = model.model[-1]
        _keep_one_branch(head)
        with torch.no_grad():
            output = model(torch.from_numpy(batch))
        return (output[0] if isinstance(output, tuple) else output).numpy()


def _load(path: Path, trust: bool) -> dict[str, Any]:
    try:
        import ultralytics  # noqa: F401
    except ImportError as error:
        raise SpecError(
            f"{path}: reading an Ultralytics checkpoint needs Ultralytics and PyTorch",
            found=str(error),
            fix='pip install "edgekd[train]"; `edgekd doctor` says what is missing',
        ) from error
    return load_checkpoint(path, trust)


def _require_detect_head(path: Path, model: Any, head: Any) -> None:
    if type(head).__name__ not in ("Detect", "v10Detect") or getattr(model, "task", "detect") != "detect":
        raise SpecError(
            f"{path}: not a box detector",
            expected="a model whose last layer is Detect",
            found=type(head).__name__,
            fix="train with task=detect, or export to ONNX and describe its head with --head",
        )


def _keep_one_branch(head: Any) -> bool:
    """Drop the head branch that does not run on the camera; return whether the one that stays needs NMS."""
    if not getattr(head, "end2end", False):
        return True
    head.cv2, head.cv3 = head.one2one_cv2, head.one2one_cv3
    head.one2one_cv2 = head.one2one_cv3 = None
    return False


def _input_size(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Height and width the network was trained at; 640 where the checkpoint does not say."""
    size = (checkpoint.get("train_args") or {}).get("imgsz", 640)
    if isinstance(size, str):
        size = ast.literal_eval(size)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def _write_onnx(model: Any, head: Any, spec: DetectorSpec, graph: Path, opset: int) -> None:
    import torch

    model.fuse(verbose=False)
    head.export, head.format, head.dynamic = True, "onnx", False
    frame = torch.zeros(1, 3, spec.preprocess.height, spec.preprocess.width)
    try:
        with torch.no_grad():
            model(frame)  # builds the anchors for this input size, which become constants
            torch.onnx.export(
                model,
                (frame,),
                str(graph),
                opset_version=opset,
                input_names=["images"],
                output_names=["output0"],
                dynamo=False,
            )
    except Exception as error:
        raise CompressError(f"export of {graph.name} at opset {opset} failed", found=str(error)) from error

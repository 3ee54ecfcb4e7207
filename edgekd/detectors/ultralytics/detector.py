"""Ultralytics checkpoints (YOLOv3 to v13 and 26, RT-DETR) as detectors: loading, export, change of the input size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.bundle.detector_rule import MAX_SIDE
from edgekd.core.detection.checked_spec import checked_classes, checked_spec
from edgekd.core.detection.types import NO_GRID, DetectorSpec, Head, Keypoints, Masks, Preprocess
from edgekd.core.errors import SpecError, first_line
from edgekd.detectors.keypoints import keypoints_of
from edgekd.detectors.literals import read_literal
from edgekd.detectors.masks import join_prototypes, joined
from edgekd.detectors.torch_support import requiring, write_onnx
from edgekd.detectors.ultralytics.checkpoint import Checkpoint, load_checkpoint, write_checkpoint
from edgekd.graph.model_file import read_model
from edgekd.graph.rehearsal import rehearse_call

HEADS = ("Detect", "v10Detect")
"""Ultralytics' classes of heads that predict boxes at anchors."""
_TRAINED = {"DetectionModel": HEADS}
_TRANSFORMER = "RTDETRDetectionModel"
_POSE, _ROTATED, _MASKS = "PoseModel", "OBBModel", "SegmentationModel"
_EXPORTED = {
    **_TRAINED,
    _POSE: ("Pose", "Pose26"),
    _ROTATED: ("OBB", "OBB26"),
    _MASKS: ("Segment", "Segment26"),
    _TRANSFORMER: ("RTDETRDecoder",),
}
"""Names of the model classes that can be exported, with the classes of their last layers."""
STUDENTS = {**_TRAINED, _TRANSFORMER: _EXPORTED[_TRANSFORMER]}
"""Models that can be distilled, pruned and recovered; RT-DETR has no quantization-aware training."""
_ONE_TO_ONE = "one2one_"
"""Prefix of the names of layers in the one-to-one branch of a head, which predicts one box per object."""
DEFAULT_SIDE = 640
"""Side of the input in pixels if a checkpoint does not contain it: Ultralytics' default."""
MAX_STRIDE = 1024
"""Largest stride of a head in pixels; detectors have 64 at most."""


class UltralyticsDetector:
    """A `.pt` checkpoint of a YOLO or an RT-DETR; nothing is read from it until `export`."""

    family = "ultralytics"
    libraries: tuple[str, ...] = ("torch", "ultralytics")

    def __init__(self, path: Path, trust: bool = False, **_: Any) -> None:
        """path: of the file, which contains head and classes; other arguments of `Family.load` are ignored."""
        self.path = path
        self._trust = trust

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the detector as float32 ONNX with the dense output `[1, 4 + classes + extra, n]`.

        extra: values of keypoints, angles or masks. An end-to-end head is exported without its TopK, whose `Mod` and
        gathers TensorRT 8.2 cannot parse: the one-to-one branch predicts one box per object, so it needs no NMS. The
        candidates of an RT-DETR are its queries; its frames are stretched, as in its training. Raises SpecError,
        CompressError.
        """
        model, train_args = self._checked(_EXPORTED)
        if is_transformer(model):
            return self._export_queries(model, train_args, graph, opset)
        head = model.model[-1]
        strides, nms = strides_of(head), keep_one_branch(head)
        height, width = input_size(train_args, max(strides))
        described = Head("yolo", nms, strides, _keypoints(model, self.path), rotated=type(model).__name__ == _ROTATED)
        spec = DetectorSpec(class_names(model), Preprocess(height=height, width=width), described)
        checked_spec(spec, f"{self.path}: detector")
        model.fuse(verbose=False)
        head.export, head.format, head.dynamic = True, "onnx", False
        if type(model).__name__ != _MASKS:
            write_onnx(model, height, width, graph, opset)
            return spec
        write_onnx(model, height, width, graph, opset, ("output0", "prototypes"))
        return replace(spec, head=replace(described, masks=_join_outputs(graph, self.path)))

    def _export_queries(self, model: Any, train_args: Mapping[str, Any], graph: Path, opset: int) -> DetectorSpec:
        from edgekd.detectors.ultralytics.queries import Queries

        size = input_size(train_args, max(strides_of(model)))
        spec = DetectorSpec(
            class_names(model), Preprocess(*size, stretch=True), Head("yolo", nms=False, strides=NO_GRID)
        )
        checked_spec(spec, f"{self.path}: detector")
        write_onnx(Queries(model, size), *size, graph, opset)
        return spec

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the checkpoint's own output in float32 for a batch [1, 3, h, w], for comparison with the export."""
        import torch

        model, _ = self._checked(_EXPORTED)
        frames = torch.from_numpy(batch)
        with torch.no_grad():
            if is_transformer(model):
                from edgekd.detectors.ultralytics.queries import Queries

                return np.asarray(Queries(model, frames.shape[2:])(frames).numpy())
            keep_one_branch(model.model[-1])
            prediction, _ = model(frames)
        if isinstance(prediction, tuple):
            found, prototypes = prediction
            return joined(found.numpy(), prototypes.numpy())
        return np.asarray(prediction.numpy())

    def network(self, kinds: Mapping[str, Sequence[str]] = _TRAINED) -> tuple[Any, Mapping[str, Any]]:
        """Return the network, and the arguments of its training. kinds: as for `require_box_detector`.

        Raises SpecError.
        """
        return self._checked(kinds)

    def _checked(self, kinds: Mapping[str, Sequence[str]]) -> tuple[Any, Mapping[str, Any]]:
        model_classes(self.path)
        checkpoint = load_checkpoint(self.path, self._trust)
        require_box_detector(checkpoint.model, self.path, kinds)
        if not self._trust:
            rehearse_network(checkpoint, self.path)
        return checkpoint.model, checkpoint.train_args


def rehearse_network(checkpoint: Checkpoint, path: Path) -> None:
    """Run the network in a checkpoint once in a child process with limits. path: of its file. Raises SpecError."""
    height, width = input_size(checkpoint.train_args, max(strides_of(checkpoint.model)))
    rehearse_call(f"{__name__}:run_once", path, (height, width), 3 * height * width, "torch,ultralytics")


def run_once(path: str, height: int, width: int) -> None:
    """Run the network in a checkpoint on one frame of zeros, in the child process."""
    import torch

    model = load_checkpoint(Path(path)).model
    keep_one_branch(model.model[-1])
    with torch.no_grad():
        model(torch.zeros(1, 3, height, width))


def strides_of(head: Any) -> tuple[int, ...]:
    """Return the strides of a head or network in pixels. Raises SpecError unless they are 1 to MAX_STRIDE."""
    try:
        strides = tuple(int(stride) for stride in head.stride)
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise SpecError("checkpoint: strides of its head", expected="numbers", found=first_line(error)) from error
    if not strides or not all(1 <= stride <= MAX_STRIDE for stride in strides):
        raise SpecError("checkpoint: strides of its head", expected=f"1 to {MAX_STRIDE}", found=str(strides)[:100])
    return strides


def model_classes(path: Path) -> Any:
    """Return Ultralytics' module of model classes. path: for the error. Raises SpecError without Ultralytics."""
    with requiring(f"{path}: reading an Ultralytics checkpoint needs Ultralytics and PyTorch"):
        import ultralytics.nn.tasks
    return ultralytics.nn.tasks


def is_transformer(model: Any) -> bool:
    """Return whether a network is an RT-DETR."""
    return type(model).__name__ == _TRANSFORMER


def require_box_detector(model: Any, path: Path, kinds: Mapping[str, Sequence[str]] = _TRAINED) -> None:
    """Raise SpecError unless a model and its last layer are of supported classes.

    path: of the checkpoint, for the error; kinds: names of Ultralytics' model classes, each with the allowed classes of
    the last layer; by default detectors of boxes at anchors.
    """
    last = list(model.model.children())[-1:] if hasattr(model, "model") else [model]
    # Exact types: models for other tasks derive from DetectionModel, and their heads from Detect.
    if not last or type(last[0]).__name__ not in kinds.get(type(model).__name__, ()):
        named = (f"{kind} whose last layer is {' or '.join(heads)}" for kind, heads in kinds.items())
        raise SpecError(
            f"{path}: not a box detector",
            expected=f"an Ultralytics {', or '.join(named)}",
            found=" with ".join(type(part).__name__ for part in (model, *last)),
            fix="train with task=detect, or export to ONNX and describe its head with --head",
        )


def _keypoints(model: Any, path: Path) -> Keypoints | None:
    """Return the keypoints that a model predicts, with the sigmas of its training; None for none. Raises SpecError."""
    if type(model).__name__ != _POSE:
        return None
    head, sigmas = model.model[-1], getattr(model, "kpt_oks_sigmas", None)
    return keypoints_of(getattr(head, "kpt_shape", None), sigmas, f"{path}: checkpoint")


def _join_outputs(graph: Path, path: Path) -> Masks:
    """Join the outputs for candidates and prototypes in the file of an exported graph. path: of the checkpoint."""
    import onnx

    model = read_model(graph)
    masks = join_prototypes(model, str(path))
    onnx.save(model, graph)
    return masks


def unfused_network(
    checkpoint: Path, trust: bool, kinds: Mapping[str, Sequence[str]] = _TRAINED
) -> tuple[Any, dict[str, Any]]:
    """Return a network that can be trained, and the arguments of its training.

    kinds: as for `require_box_detector`. Raises SpecError, also for folded batch norms.
    """
    network, train_args = UltralyticsDetector(checkpoint, trust).network(kinds)
    if network.is_fused():
        raise SpecError(f"{checkpoint}: batch norms are folded in", fix="pass the checkpoint that was trained")
    return network, dict(train_args)


def class_names(model: Any) -> tuple[str, ...]:
    """Return the names of a model's classes, by index. Raises SpecError for names that a manifest cannot contain."""
    names = getattr(model, "names", None)
    if isinstance(names, dict) and all(type(index) is int for index in names):
        names = [names[index] for index in sorted(names)]
    # YAML reads an unquoted 5 as a number, and Ultralytics does not convert it.
    named = [str(name) if type(name) in (int, float) else name for name in names] if isinstance(names, list) else []
    return checked_classes(named, "checkpoint: names")


def keep_one_branch(head: Any) -> bool:
    """Drop the head's branch that does not run on the camera, in place; return whether the other one needs NMS."""
    if not getattr(head, "end2end", False):
        return True
    for name in [name for name, _ in head.named_children() if name.startswith(_ONE_TO_ONE)]:
        setattr(head, name[len(_ONE_TO_ONE) :], getattr(head, name))
        setattr(head, name, None)
    head.end2end = False
    return False


def input_size(train_args: Mapping[str, Any], stride: int) -> tuple[int, int]:
    """Return height and width of a network's training in pixels, rounded up to multiples of the stride.

    Raises SpecError for an invalid `imgsz`.
    """
    size = train_args.get("imgsz") or DEFAULT_SIDE
    if isinstance(size, str):
        size = read_literal(size)
    sides = size if isinstance(size, (list, tuple)) else [size]
    if not sides or not all(type(side) in (int, float) and 1 <= side <= MAX_SIDE for side in sides):
        expected = f"one side or two, from 1 to {MAX_SIDE}"
        raise SpecError("checkpoint: imgsz of its training", expected=expected, found=f"{sides!r:.100}")
    height, width = (stride * math.ceil(side / stride) for side in (sides[0], sides[-1]))
    return height, width


def resize_detector(checkpoint: Path, image_size: int, out: Path, trust: bool = False) -> tuple[tuple[int, int], ...]:
    """Write `out`, the detector in `checkpoint` with another side of its input in pixels, otherwise unchanged.

    Returns height and width before and after. Raises SpecError for a checkpoint that is not a detector.
    """
    network, train_args = UltralyticsDetector(checkpoint, trust).network()
    stride = max(strides_of(network))
    new_args = {"task": "detect", **train_args, "imgsz": image_size}
    write_checkpoint(network, new_args, out)
    return input_size(train_args, stride), input_size(new_args, stride)

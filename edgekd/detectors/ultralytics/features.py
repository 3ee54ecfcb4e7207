"""Features and predictions of a network that Ultralytics has built: in its backbone, its neck and its head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.compress.distillation.anchors import Grid
from edgekd.compress.distillation.loss_terms import DetectorFeatures, Predictions
from edgekd.core.detection.types import Preprocess
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
from edgekd.detectors.ultralytics.detector import (
    class_names,
    input_size,
    is_transformer,
    rehearse_network,
    require_box_detector,
    strides_of,
)

PROBE_SIDE = 256
"""Side in pixels of the blank frame by which a network's maps are found."""


@dataclass(frozen=True)
class TapPoints:
    """The maps that are compared, level by level of a head.

    hidden: index of a layer of the backbone, the first one of nearly the level's stride whose output the neck reads;
    widths, strides: channels, and pixels between neighbours, of the map that the head reads.
    """

    hidden: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[float, ...]


def tap_points(network: Any) -> TapPoints:
    """Find the tap points of a network by a blank frame; the network stays as it is."""
    head = network.model[-1]
    shapes: dict[int, Any] = {}

    def record(at: int, layer: Any, inputs: Any, output: Any) -> None:
        shapes[at] = [each.shape for each in inputs[0]] if at == head.i else output.shape

    watched = [*sorted(set(network.save) - set(head.f)), head.i]
    hooks = [network.model[at].register_forward_hook(partial(record, at)) for at in watched]
    modes = {module: module.training for module in network.modules()}
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE, device=next(network.parameters()).device))
    for module, mode in modes.items():
        module.training = mode
    for hook in hooks:
        hook.remove()
    drop_anchors(head)  # of the blank frame, and of the device that the network is on
    neck = shapes.pop(head.i)
    hidden = tuple(
        min(shapes, key=lambda at, shape=shape: (abs(math.log(shapes[at][-1] / shape[-1])), at))  # type: ignore[misc]
        for shape in neck
    )
    return TapPoints(hidden, tuple(shape[1] for shape in neck), tuple(PROBE_SIDE / shape[-1] for shape in neck))


def drop_anchors(head: Any) -> None:
    """Drop the anchors that the head of an RT-DETR keeps of its last frame; it computes them anew."""
    for name in ("shapes", "anchors", "valid_mask") if hasattr(head, "valid_mask") else ():
        vars(head).pop(name, None)


def predict_raw(network: Any) -> None:
    """Have the head give what it is trained by: raw predictions, of an RT-DETR those of all layers.

    The head alone is in training mode, so no statistics change.
    """
    head = network.model[-1]
    head.training = True
    if is_transformer(network):
        head.decoder.training = True


def full_precision(network: Any, frames: torch.Tensor) -> Any:
    """Return a context in which an RT-DETR computes in float32: its boxes are places in the whole frame, where half
    precision has steps of 1/256. Other networks are left as they are.
    """
    return torch.autocast(frames.device.type, enabled=False) if is_transformer(network) else nullcontext()


class FeatureRecorder:
    """Keeps the maps of a network's last batch. taps: where; neck: the maps that its head has read; output: of it."""

    def __init__(self, network: Any) -> None:
        self.neck: tuple[torch.Tensor, ...] = ()
        self.output: Any = None
        self._maps: dict[int, torch.Tensor] = {}
        self.taps = tap_points(network)
        for index in set(self.taps.hidden):
            network.model[index].register_forward_hook(partial(self._keep, index))
        network.model[-1].register_forward_pre_hook(self._keep_neck)
        network.model[-1].register_forward_hook(self._keep_output)
        network.register_forward_pre_hook(self._forget)

    def _forget(self, network: Any, inputs: Any) -> None:
        """Drop the last batch: one that was too large must not stay in memory beside a smaller one."""
        self.neck, self.output = (), None
        self._maps.clear()

    def _keep(self, at: int, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        self._maps[at] = output

    def _keep_neck(self, head: Any, inputs: Any) -> None:
        self.neck = tuple(inputs[0])

    def _keep_output(self, head: Any, inputs: Any, output: Any) -> None:
        self.output = output

    @property
    def grid(self) -> Grid:
        """The anchors of the last batch."""
        return Grid(tuple((each.shape[2], each.shape[3]) for each in self.neck), self.taps.strides)

    def features(self, output: Any) -> DetectorFeatures:
        """Return the last batch's features in float32. output: of the network, as of `predict_raw`."""
        grid = self.grid
        queries = isinstance(output, tuple)
        branches = layers_of(output) if queries else branches_of(output)
        objects = list(branches.values())[-1] if queries else None
        hidden = tuple(self._maps[index].float() for index in self.taps.hidden)
        return DetectorFeatures(grid, tuple(each.float() for each in self.neck), hidden, branches, objects)


def drop_hooks(network: nn.Module) -> None:
    """Drop the hooks of recorders, with which a network cannot be written."""
    for layer in network.modules():
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()


def branches_of(output: Mapping[str, Any]) -> dict[str, Predictions]:
    """Return the predictions in float32 of each branch of a YOLO's head, from its raw output."""
    raw = {name: output[name] for name in ("one2many", "one2one") if output.get(name)} or {"one2many": output}
    if "one2many" not in raw:  # a fused head has kept one of them
        raw = {"one2many": raw["one2one"]}
    return {name: Predictions(each["scores"].float(), each["boxes"].float()) for name, each in raw.items()}


def layers_of(output: tuple[Any, ...]) -> dict[str, Predictions]:
    """Return the predictions in float32 of each layer of an RT-DETR, from its raw output, without denoising queries."""
    boxes, scores, first_boxes, first_scores, denoising = output
    if denoising is not None:
        boxes, scores = (each.split(denoising["dn_num_split"], dim=2)[1] for each in (boxes, scores))
    layers = {"encoder": Predictions(first_scores.float().mT, first_boxes.float().mT)}
    for number, (ours, logits) in enumerate(zip(boxes, scores, strict=True), 1):
        layers[f"decoder{number}"] = Predictions(logits.float().mT, ours.float().mT)
    return layers


class UltralyticsTeacher(nn.Module):  # type: ignore[misc]
    """A YOLO or an RT-DETR as a teacher; see `Teacher`."""

    def __init__(self, checkpoint: Path, trust: bool) -> None:
        """Load it. Raises SpecError for a checkpoint that holds no detector of boxes."""
        super().__init__()
        loaded = load_checkpoint(checkpoint, trust)
        network = loaded.model
        network.eval().requires_grad_(False)
        anchors = not is_transformer(network)
        if anchors:
            require_box_detector(network, checkpoint)
        if not trust:
            rehearse_network(loaded, checkpoint)
        if anchors and getattr(network.model[-1], "one2one_cv2", None) is None:
            network.fuse(verbose=False)  # which would drop one branch of a head with two
        predict_raw(network)
        self.network = network
        size = input_size(loaded.train_args, max(strides_of(network)))
        self.preprocess = Preprocess(*size, stretch=not anchors)  # frames of an RT-DETR are stretched
        self.classes = class_names(network)
        self._recorder = FeatureRecorder(network)
        self.widths, self.strides = self._recorder.taps.widths, self._recorder.taps.strides

    def forward(self, frames: torch.Tensor) -> DetectorFeatures:
        """Return the features of frames float32 [b, 3, h, w], RGB, 0 to 1."""
        with full_precision(self.network, frames):
            return self._recorder.features(self.network(frames))

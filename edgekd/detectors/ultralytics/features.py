"""Features and predictions of Ultralytics networks: maps of backbone and neck, outputs of the head."""

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
"""Side in pixels of the blank frame for finding a network's maps."""


@dataclass(frozen=True)
class TapPoints:
    """The compared maps, for each level of a head.

    hidden: index of a backbone layer: of the layers whose output the neck reads, the first one with the stride nearest
    to the level's; widths, strides: channels, and pixels between neighbours, of the map that the head reads.
    """

    hidden: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[float, ...]


def tap_points(network: Any) -> TapPoints:
    """Return the tap points of a network, found by running a blank frame; the network does not change."""
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
    drop_anchors(head)  # they are for the blank frame and the present device
    neck = shapes.pop(head.i)
    hidden = tuple(
        min(shapes, key=lambda at, shape=shape: (abs(math.log(shapes[at][-1] / shape[-1])), at))  # type: ignore[misc]
        for shape in neck
    )
    return TapPoints(hidden, tuple(shape[1] for shape in neck), tuple(PROBE_SIDE / shape[-1] for shape in neck))


def drop_anchors(head: Any) -> None:
    """Drop the anchors that an RT-DETR's head has cached for its last frame; it computes them again."""
    for name in ("shapes", "anchors", "valid_mask") if hasattr(head, "valid_mask") else ():
        vars(head).pop(name, None)


def predict_raw(network: Any) -> None:
    """Make the head return raw predictions, as in training; for an RT-DETR those of all layers.

    Only the head's own training flag is set, so no statistics change.
    """
    head = network.model[-1]
    head.training = True
    if is_transformer(network):
        head.decoder.training = True


def full_precision(network: Any, frames: torch.Tensor) -> Any:
    """Return a context in which an RT-DETR computes in float32; no effect on other networks.

    Its boxes are fractions of the whole frame, for which half precision has steps of 1/256.
    """
    return torch.autocast(frames.device.type, enabled=False) if is_transformer(network) else nullcontext()


class FeatureRecorder:
    """Stores the maps of a network's last batch. taps: tap points; neck: inputs of the head; output: of the head."""

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
        """Drop the last batch, so that one that was too large does not stay in memory during a smaller one."""
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
        """Return the last batch's features in float32. output: raw output of the network, after `predict_raw`."""
        grid = self.grid
        queries = isinstance(output, tuple)
        branches = layers_of(output) if queries else branches_of(output)
        objects = list(branches.values())[-1] if queries else None
        hidden = tuple(self._maps[index].float() for index in self.taps.hidden)
        return DetectorFeatures(grid, tuple(each.float() for each in self.neck), hidden, branches, objects)


def drop_hooks(network: nn.Module) -> None:
    """Remove all hooks of a network's layers: it cannot be saved with the hooks of recorders."""
    for layer in network.modules():
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()


def branches_of(output: Mapping[str, Any]) -> dict[str, Predictions]:
    """Return the predictions in float32 of each branch of a YOLO's head, from its raw output."""
    raw = {name: output[name] for name in ("one2many", "one2one") if output.get(name)} or {"one2many": output}
    if "one2many" not in raw:  # a fused head has only one branch
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
        """Load a checkpoint. Raises SpecError if it does not contain a box detector."""
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
            network.fuse(verbose=False)  # only without a second branch, which `fuse` would drop
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

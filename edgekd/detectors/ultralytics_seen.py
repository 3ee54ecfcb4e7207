"""What a network that Ultralytics has built sees in a batch, in its backbone, its neck and its head."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections, DetectorSpec, Head, Preprocess
from edgekd.detectors.checkpoint import load_checkpoint
from edgekd.detectors.ultralytics import input_size, require_box_detector

# First: it says what is missing where PyTorch or Ultralytics are.
import edgekd.detectors.ultralytics_loop  # noqa: F401  # isort: skip

import torch
from torch import nn
from ultralytics.nn.tasks import RTDETRDetectionModel

from edgekd.compress.distillation.anchors import Grid
from edgekd.compress.distillation.boxes import corners
from edgekd.compress.distillation.loss_terms import Predictions, Seen

SIDE = 256
"""Pixels of the blank frame on which a network is looked at."""


@dataclass(frozen=True)
class Look:
    """Of each level of a head: the backbone's layer that goes with it, and channels and stride of the map it reads.

    That layer is the first one of nearly its stride whose output the neck reads.
    """

    hidden: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[float, ...]


def look(network: Any) -> Look:
    """What there is to see in a network, found with a blank frame; the network stays as it is."""
    head = network.model[-1]
    shapes: dict[int, Any] = {}

    def note(at: int, layer: Any, inputs: Any, output: Any) -> None:
        shapes[at] = [each.shape for each in inputs[0]] if at == head.i else output.shape

    watched = [*sorted(set(network.save) - set(head.f)), head.i]
    hooks = [network.model[at].register_forward_hook(partial(note, at)) for at in watched]
    modes = {module: module.training for module in network.modules()}
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, SIDE, SIDE, device=next(network.parameters()).device))
    for module, mode in modes.items():
        module.training = mode
    for hook in hooks:
        hook.remove()
    read = shapes.pop(head.i)
    hidden = tuple(
        min(shapes, key=lambda at, shape=shape: (abs(math.log(shapes[at][-1] / shape[-1])), at))  # type: ignore[misc]
        for shape in read
    )
    return Look(hidden, tuple(shape[1] for shape in read), tuple(SIDE / shape[-1] for shape in read))


class Watched:
    """A network of which it is known what it has just seen.

    look: where it is watched; neck: the maps that its head has read.
    """

    def __init__(self, network: Any) -> None:
        self.neck: tuple[torch.Tensor, ...] = ()
        self._maps: dict[int, torch.Tensor] = {}
        self.look = look(network)
        for at in set(self.look.hidden):
            network.model[at].register_forward_hook(partial(self._keep, at))
        network.model[-1].register_forward_pre_hook(self._keep_neck)
        network.register_forward_pre_hook(self._forget)

    def _forget(self, network: Any, inputs: Any) -> None:
        """A batch that was too large must not stay in memory beside a smaller one."""
        self.neck = ()
        self._maps.clear()

    def _keep(self, at: int, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        self._maps[at] = output

    def _keep_neck(self, head: Any, inputs: Any) -> None:
        self.neck = tuple(inputs[0])

    @property
    def grid(self) -> Grid:
        """Where its anchors are in the batch that it has just seen."""
        return Grid(tuple((each.shape[2], each.shape[3]) for each in self.neck), self.look.strides)

    def seen(self, said: Any) -> Seen:
        """What it saw in the batch of which it has just said this, in float32: a YOLO undecoded, an RT-DETR decoded."""
        grid = self.grid
        branches: dict[str, Predictions] = {}
        objects = None
        if isinstance(said, tuple):
            boxes, scores = (each[-1].float().mT for each in said[1][:2])  # of the decoder's last layer
            objects = Predictions(scores, boxes)
        else:
            found = {name: said[name] for name in ("one2many", "one2one") if said.get(name)} or {"one2many": said}
            if "one2many" not in found:  # a fused head has kept one of them
                found = {"one2many": found["one2one"]}
            branches = {
                name: Predictions(told["scores"].float(), told["boxes"].float()) for name, told in found.items()
            }
        hidden = tuple(self._maps[at].float() for at in self.look.hidden)
        return Seen(grid, tuple(each.float() for each in self.neck), hidden, branches, objects)


@dataclass(frozen=True)
class Transformer:
    """A detector that cannot be exported. find: what is in a frame uint8 [h, w, 3] BGR, boxes in its pixels."""

    classes: tuple[str, ...]
    find: Callable[[np.ndarray], Detections]


class UltralyticsTeacher(nn.Module):  # type: ignore[misc]
    """A YOLO or an RT-DETR as a teacher; see `Teacher`."""

    def __init__(self, checkpoint: Path, trust: bool) -> None:
        """Raises SpecError for a checkpoint that holds no detector of boxes."""
        super().__init__()
        loaded = load_checkpoint(checkpoint, trust)
        network = loaded.model
        network.eval().requires_grad_(False)
        if type(network) is not RTDETRDetectionModel:
            require_box_detector(network, checkpoint)
            head = network.model[-1]
            if getattr(head, "one2one_cv2", None) is None:
                network.fuse(verbose=False)  # which would drop one branch of a head with two
            head.training = True  # the head alone, for that is when it does not decode
        self.network = network
        self.image_size = input_size(loaded.train_args, int(max(network.stride)))
        self._anchors = type(network) is not RTDETRDetectionModel
        self.classes: tuple[str, ...] = tuple(network.names[at] for at in sorted(network.names))
        self._watched = Watched(network)
        self.widths, self.strides = self._watched.look.widths, self._watched.look.strides

    def forward(self, frames: torch.Tensor) -> Seen:
        """What it sees in frames, float32 [b, 3, h, w], RGB, 0 to 1."""
        # Boxes without anchors are places in the whole frame: half precision has steps of 1/256 there.
        with nullcontext() if self._anchors else torch.autocast(frames.device.type, enabled=False):
            return self._watched.seen(self.network(frames))


def transformer(checkpoint: Path, thresholds: Thresholds, trust: bool = False) -> Transformer | None:
    """What an RT-DETR in a checkpoint finds in a frame, by its own network: it has no graph. None for other networks.

    Frames are letterboxed as for any detector of edgekd, where Ultralytics would stretch them.
    """
    loaded = load_checkpoint(checkpoint, trust)
    network = loaded.model
    if type(network) is not RTDETRDetectionModel:
        return None
    height, width = input_size(loaded.train_args, int(max(network.stride)))
    classes = tuple(network.names[at] for at in sorted(network.names))
    spec = DetectorSpec(classes, Preprocess(height, width), Head("end2end", nms=False))

    def find(frame: np.ndarray) -> Detections:
        batch, placement = letterbox(frame, spec.preprocess)
        with torch.no_grad():
            rows = network(torch.from_numpy(batch))[0][0]  # middle, width and height as shares, score, class
        found = torch.cat([corners(rows[:, :4], height, width), rows[:, 4:]], dim=1)
        return decode(found[None].numpy(), spec, placement, thresholds)

    return Transformer(classes, find)

"""A torchvision detector for edgekd: returns boxes per anchor, losses and maps for letterboxed frames."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from edgekd.compress.distillation.anchors import Grid
from edgekd.compress.distillation.loss_terms import MIN_PROBABILITY, DetectorFeatures, Predictions
from edgekd.compress.steps import Prune, QuantAwareDistill, Recover
from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import SpecError, did_you_mean, first_line
from edgekd.detectors.checkpoint_scan import scan_checkpoint
from edgekd.detectors.torch_support import write_content
from edgekd.detectors.torchvision.family import BUILDERS, FAMILY
from edgekd.graph.rehearsal import rehearse_call

_CLASS_LAYER = re.compile(r"head\.classification_head\.(cls_logits|module_list\.\d+\.1)\.")
STEP = 32
"""Sides of the input are multiples of this, in pixels, so that torchvision does not pad."""


class TorchvisionNetwork(nn.Module):  # type: ignore[misc]
    """A one-stage detector by torchvision. Frames are float32 [b, 3, h, w], RGB, 0 to 1, of `image_size`.

    preprocess: as in `Teacher`. widths, strides: channels, and pixels between neighbours, of the maps that the head
    reads. mean, std: torchvision's normalisation. Raises SpecError for an unknown builder, and for sides that are not
    multiples of STEP.
    """

    def __init__(self, builder: str, classes: Sequence[str], image_size: tuple[int, int]) -> None:
        super().__init__()
        if builder not in BUILDERS:
            fix = did_you_mean(builder, BUILDERS)
            raise SpecError("torchvision: builder", expected=", ".join(BUILDERS), found=builder, fix=fix)
        if not all(side > 0 and side % STEP == 0 for side in image_size):
            raise SpecError("torchvision: image_size", expected=f"multiples of {STEP}", found=str(list(image_size)))
        self.builder, self.classes, self.image_size = builder, tuple(classes), image_size
        self.preprocess = Preprocess(*image_size)
        self.names = dict(enumerate(classes))
        self.model = getattr(detection, builder)(weights=None, weights_backbone=None, num_classes=len(classes) + 1)
        self.model.transform.fixed_size = (image_size[1], image_size[0])  # width first; no frame is resized then
        self.mean, self.std = map(_of_channels, self._normalisation)
        self._find_maps()

    def _find_maps(self) -> None:
        """Set `widths` and `strides` from a forward pass; sets evaluation mode."""
        with torch.no_grad():
            features = self.eval().features(torch.zeros(1, 3, *self.image_size))
        self.widths, self.strides = tuple(maps.shape[1] for maps in features.neck), features.grid.strides

    def fit_widths(self, state: Mapping[str, torch.Tensor]) -> None:
        """Resize layers to the shapes of a `state_dict` of `model`, which must be loaded next."""
        for name, layer in self.model.named_modules():
            weight = state.get(f"{name}.weight")
            if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) and isinstance(weight, torch.Tensor):
                _resize(layer, weight.shape)

    def require_own_size(self, step: Prune | Recover | QuantAwareDistill) -> None:
        """Raise SpecError for a step with another image size than the network's, which determines its anchors."""
        height, width = self.image_size
        if step.image_size and (step.image_size, step.image_size) != self.image_size:
            raise SpecError(
                f"{step.kind}: image_size of a detector by torchvision",
                expected=f"its own, {width}x{height} pixels",
                found=str(step.image_size),
                fix="leave it out",
            )

    @property
    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.model.transform.image_mean, self.model.transform.image_std

    def forward(self, frames: torch.Tensor) -> DetectorFeatures:
        """Return the features of frames; in training use `losses`."""
        return self.features(frames)

    def features(self, frames: torch.Tensor) -> DetectorFeatures:
        """Return the features of frames, without labels."""
        mean, std = (frames.new_tensor(values)[:, None, None] for values in self._normalisation)
        with self._recording() as outputs:
            self.model.head(list(self.model.backbone((frames - mean) / std).values()))
        return self._features(outputs, frames)

    def losses(
        self, frames: torch.Tensor, targets: Sequence[Mapping[str, torch.Tensor]]
    ) -> tuple[dict[str, torch.Tensor], DetectorFeatures]:
        """Return torchvision's own losses by name, and the features; only in training mode.

        targets: for each frame `boxes` float32 [n, 4] x1, y1, x2, y2 in pixels, and `labels` int64 [n], from 1 on.
        """
        with self._recording() as outputs:
            losses = self.model(list(frames), list(targets))
        return losses, self._features(outputs, frames)

    @contextmanager
    def _recording(self) -> Iterator[dict[str, Any]]:
        """Record the outputs of backbone and head in float32: anchors have the maps' type, too coarse in 16 bits."""
        outputs: dict[str, Any] = {}

        def keep(name: str, module: Any, inputs: Any, output: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            outputs[name] = {key: value.float() for key, value in output.items()}
            return outputs[name]  # type: ignore[no-any-return]

        backbone = self.model.backbone
        watched = {"neck": backbone, "head": self.model.head, "hidden": getattr(backbone, "body", None)}
        hooks = [part.register_forward_hook(partial(keep, name)) for name, part in watched.items() if part is not None]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _features(self, outputs: Mapping[str, Any], frames: torch.Tensor) -> DetectorFeatures:
        neck = tuple(outputs["neck"].values())
        body = tuple(outputs.get("hidden", outputs["neck"]).values())  # without a feature pyramid only the neck's
        widths = [each.shape[3] for each in body]
        hidden = tuple(body[int(np.abs(np.subtract(widths, maps.shape[3])).argmin())] for maps in neck)
        sizes = tuple((maps.shape[2], maps.shape[3]) for maps in neck)
        grid = Grid(sizes, tuple(frames.shape[2] / height for height, _ in sizes))
        points, strides = grid.points(frames.device)
        boxes, probabilities = self.decoded(outputs["head"], self.anchors(frames, neck))
        boxes, probabilities = _best_anchors(boxes, probabilities, points.shape[1])
        sides = torch.cat([points.T - boxes[..., :2], boxes[..., 2:] - points.T], dim=-1) / strides[:, None]
        logits = probabilities.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()
        predictions = Predictions(logits.transpose(1, 2), sides.transpose(1, 2))
        return DetectorFeatures(grid, neck, hidden, {"one2many": predictions})

    def anchors(self, frames: torch.Tensor, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the anchors, float32 [n, 4] x1, y1, x2, y2 in pixels, the same for all frames."""
        sizes = [(frames.shape[2], frames.shape[3])]
        anchors: torch.Tensor = self.model.anchor_generator(ImageList(frames[:1], sizes), list(maps))[0]
        return anchors

    def decoded(self, output: Mapping[str, torch.Tensor], anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode a head's output per anchor: boxes [b, n, 4] x1, y1, x2, y2 in pixels, probabilities [b, n, classes].

        FCOS: square root of class probability times centredness; RetinaNet: sigmoid per class; SSD: softmax. These are
        torchvision's scores, without the background.
        """
        scores, codes = output["cls_logits"], output["bbox_regression"]
        if isinstance(self.model, detection.FCOS):
            both = scores[..., 1:].sigmoid() * output["bbox_ctrness"].sigmoid()
            # The gradient of the square root is infinite at 0, to which the product may underflow.
            return self.model.box_coder.decode(codes, anchors), both.clamp(min=MIN_PROBABILITY**2).sqrt()
        boxes = torch.stack([self.model.box_coder.decode_single(each, anchors) for each in codes])
        if isinstance(self.model, detection.RetinaNet):
            return boxes, scores[..., 1:].sigmoid()
        return boxes, scores.softmax(dim=-1)[..., 1:]


class Dense(nn.Module):  # type: ignore[misc]
    """A network for export, from normalised frames to [b, 4 + classes, n]: cx, cy, w, h in pixels, probabilities."""

    def __init__(self, network: TorchvisionNetwork) -> None:
        super().__init__()
        self.network = network.eval()
        frames = torch.zeros(1, 3, *network.image_size)
        with torch.no_grad():
            anchors = network.anchors(frames, list(network.model.backbone(frames).values()))
        self.register_buffer("anchors", anchors)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        model = self.network.model
        boxes, probabilities = self.network.decoded(model.head(list(model.backbone(frames).values())), self.anchors)
        low, high = boxes[..., :2], boxes[..., 2:]
        return torch.cat([(low + high) / 2, high - low, probabilities], dim=-1).transpose(1, 2)


def _of_channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _best_anchors(boxes: torch.Tensor, probabilities: torch.Tensor, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the most certain of several anchors at each point: [b, points, 4] and [b, points, classes]."""
    if boxes.shape[1] == points:
        return boxes, probabilities
    boxes, probabilities = (each.unflatten(1, (points, -1)) for each in (boxes, probabilities))
    best = probabilities.amax(-1).argmax(2)[..., None, None]
    selected = (each.gather(2, best.expand(-1, -1, -1, each.shape[3]))[:, :, 0] for each in (boxes, probabilities))
    return tuple(selected)  # type: ignore[return-value]


def _resize(layer: nn.Conv2d | nn.BatchNorm2d, shape: Sequence[int]) -> None:
    """Resize a layer to this shape of its weights, with zeros, if it has another shape."""
    if tuple(layer.weight.shape) == tuple(shape):
        return
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        if value.ndim:
            value.data = value.new_zeros(shape if name == "weight" else shape[:1])
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = shape[0]
        return
    layer.out_channels = shape[0]
    layer.groups = shape[0] if layer.groups > 1 else 1  # torchvision's grouped layers are depthwise
    layer.in_channels = shape[1] * layer.groups


def with_classes(network: TorchvisionNetwork, classes: Sequence[str], size: tuple[int, int]) -> TorchvisionNetwork:
    """Return a network with other classes: weights of classes with the same name are kept, others are initialized.

    size: height and width of its frames in pixels.
    """
    new = TorchvisionNetwork(network.builder, classes, size)
    old_names, new_names = ("", *network.classes), ("", *classes)  # the background comes first
    pairs = [(index, old_names.index(name)) for index, name in enumerate(new_names) if name in old_names]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    state, old = new.model.state_dict(), network.model.state_dict()
    new.fit_widths(
        {
            name: value.new_zeros(len(state[name]), *value.shape[1:]) if _CLASS_LAYER.match(name) else value
            for name, value in old.items()
        }
    )
    for name, value in new.model.state_dict().items():
        if _CLASS_LAYER.match(name):
            own = old[name].unflatten(0, (-1, len(old_names)))
            value.unflatten(0, (-1, len(new_names)))[:, ours] = own[:, theirs]
        else:
            value.copy_(old[name])
    new._find_maps()
    return new


def save_network(network: TorchvisionNetwork, path: Path) -> None:
    """Write a `.tv.pt` file, atomically."""
    content = {
        "family": FAMILY.name,
        "builder": network.builder,
        "classes": list(network.classes),
        "image_size": list(network.image_size),
        "state_dict": network.model.state_dict(),
    }
    write_content(content, path)


@dataclass(frozen=True)
class _Description:
    """The checked content of a `.tv.pt` file. state: the weights, by name."""

    builder: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    state: Mapping[str, Any]


def load_network(path: Path) -> TorchvisionNetwork:
    """Load the network in a `.tv.pt` file, in evaluation mode. No code in the file is executed.

    The network is first built and run once in a child process with limits, because weights may be shared, and of any
    width. Raises SpecError.
    """
    described = _read(path)
    rehearse_call(f"{__name__}:run_once", path, (), 3 * prod(described.image_size), "torch,torchvision")
    return _built(described, path)


def run_once(path: str) -> None:
    """Build the network in a file, which also runs it on a frame of zeros, in the child process."""
    _built(_read(Path(path)), Path(path))


def _read(path: Path) -> _Description:
    names = scan_checkpoint(path)
    if names:
        raise _unreadable(path, ", ".join(sorted(names))[:200])
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, first_line(error)) from error
    parts = content if isinstance(content, dict) else {}
    builder, classes, size, state = (parts.get(key) for key in ("builder", "classes", "image_size", "state_dict"))
    if parts.get("family") != FAMILY.name or not isinstance(state, dict) or not isinstance(builder, str):
        raise _unreadable(path, ", ".join(map(str, parts)) or type(content).__name__)
    if not isinstance(classes, list):
        raise _unreadable(path, f"classes {classes!r:.100}")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise _unreadable(path, f"image_size {size!r:.100}")
    checked_spec(DetectorSpec(tuple(classes), Preprocess(size[0], size[1]), Head("yolo")), f"{path}: detector")
    return _Description(builder, tuple(classes), (size[0], size[1]), state)


def _built(described: _Description, path: Path) -> TorchvisionNetwork:
    network = TorchvisionNetwork(described.builder, described.classes, described.image_size)
    try:
        network.fit_widths(described.state)
        # A plain dictionary has no version metadata, so the batch counters that frozen batch norms lack may be missing.
        network.model.load_state_dict(dict(described.state))
        network._find_maps()
    except RuntimeError as error:
        raise SpecError(
            f"{path}: its weights are not those of {described.builder} with {len(described.classes)} classes and the"
            " background",
            found=" ".join(str(error).split())[:200],
            fix="save the state_dict of the network that this builder makes",
        ) from error
    network.eval()
    return network


def _unreadable(path: Path, found: str) -> SpecError:
    return SpecError(
        f"{path}: cannot be read as a torchvision detector",
        expected="a dictionary with family, builder, classes, image_size and state_dict, written by torch.save",
        found=found,
        fix="docs/guides/model-formats.md says how to write one",
    )

"""Structured pruning of torchvision's detectors: the same builder's network, with narrower layers.

What comes out is a `.tv.pt` file like any: how wide layers are follows from the weights in it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.builds.recipe import Distill, DistillStage, Prune, Weights
from edgekd.compress.pruning import Cost
from edgekd.core.detection.preprocess import letterbox, to_input
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import Image, drawn
from edgekd.data.types import Sample
from edgekd.detectors.teacher import Teacher, load_teacher, paired_aids, parameters_in
from edgekd.detectors.torchvision import TorchvisionDetector

# First: it says what is missing where PyTorch or torch-pruning are.
from edgekd.detectors.channel_groups import (  # isort: skip
    Channels,
    Pruned,
    Sensitivity,
    convolutions_run,
    deterministic,
    in_batches,
    on_the_way,
    renew_statistics,
    scan,
)

import torch
from torch import nn

from edgekd.compress.distillation.loss_terms import shared_classes
from edgekd.detectors.torchvision_distill import Batch, StudentLoss
from edgekd.detectors.torchvision_network import TorchvisionNetwork, save_network, with_classes


def prune_detector(
    checkpoint: Path,
    out: Path,
    data: Path,
    step: Prune,
    trust: bool = False,
    progress: Progress = SILENT,
    cost: Cost | None = None,
    teacher: Path | None = None,
    rounds: int = 1,
) -> Pruned:
    """Write `out`, the detector in `checkpoint` with fewer channels in its layers: again a `.tv.pt` file.

    As `ultralytics_prune.prune_detector`. What a head ends in keeps its outputs, and so does what a group norm reads,
    whose groups are of neighbours.
    """
    began = time.monotonic()
    network = TorchvisionDetector(checkpoint).network()
    if teacher and (size := TorchvisionDetector(teacher).network().image_size) != network.image_size:
        network = with_classes(network, network.classes, size)  # which training has changed
    _require_own_size(step, network)
    dense = _Dense(network)
    frame = torch.zeros(1, 3, *network.image_size)
    before = parameters_in(network)
    samples: Sequence[tuple[Sample, Image]] = ()
    if step.importance != "magnitude":
        dataset = load_dataset(data)
        samples = drawn(dataset.split("train").samples, step.images, step.seed, progress)
        found = load_teacher(teacher, trust) if teacher else None
        _accumulate_gradients(network, _loss(network, dataset.classes, found), samples, step, progress)
    network.requires_grad_(True)
    run = partial(dense.forward, frame)
    channels = Channels(dense, frame, convolutions_run(dense, run), _untouched(network), step.importance)
    gone = channels.thin(step, cost, _weights(network, checkpoint, step.max_bytes, rounds))
    network.zero_grad(set_to_none=True)
    renew_statistics(network, samples, step.batch, lambda some: _batch(some, network.image_size).frames)
    after = convolutions_run(dense, run).values()
    save_network(network, out)
    return Pruned.of(channels, gone, after, (before, parameters_in(network)), time.monotonic() - began)


def scan_detector(
    checkpoint: Path, data: Path, step: Prune, trust: bool = False, progress: Progress = SILENT
) -> Sensitivity:
    """How much the loss on the labels grows when each unit loses channels, on the images that pruning would see."""
    network, dataset = TorchvisionDetector(checkpoint).network(), load_dataset(data)
    _require_own_size(step, network)
    dense, frame = _Dense(network), torch.zeros(1, 3, *network.image_size)
    samples = drawn(dataset.split("train").samples, step.images, step.seed, progress)
    loss = _loss(network, dataset.classes, None)
    if step.importance != "magnitude":
        _accumulate_gradients(network, loss, samples, step, progress)
    run = partial(dense.forward, frame)
    network.requires_grad_(True)
    channels = Channels(dense, frame, convolutions_run(dense, run), _untouched(network), step.importance)
    batches = [_batch(some, network.image_size) for some in in_batches(samples, step.batch)]
    _to_train(network)
    return scan(channels, lambda: sum(float(loss(each)) for each in batches) / len(batches), progress)


class _Dense(nn.Module):  # type: ignore[misc]
    """Backbone and head alone, whose layers have the names they have in the file."""

    def __init__(self, network: TorchvisionNetwork) -> None:
        super().__init__()
        self.backbone, self.head = network.model.backbone, network.model.head

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """What the head says, part by part."""
        return list(self.head(list(self.backbone(frames).values())).values())


def _require_own_size(step: Prune, network: TorchvisionNetwork) -> None:
    """Raise SpecError where images are to have another size than a network takes, whose anchors are for that one."""
    height, width = network.image_size
    if step.image_size and (step.image_size, step.image_size) != network.image_size:
        raise SpecError(
            "prune: image_size of a detector by torchvision",
            expected=f"its own, {width}x{height} pixels",
            found=str(step.image_size),
            fix="leave it out",
        )


def _weights(network: TorchvisionNetwork, checkpoint: Path, max_bytes: int | None, rounds: int) -> float:
    """How many weights the convolutions may have on the way to a file of so many bytes, at four bytes each."""
    if max_bytes is None:
        return inf
    weights = sum(each.weight.numel() for each in network.modules() if isinstance(each, nn.Conv2d))
    return on_the_way(weights, weights - (checkpoint.stat().st_size - max_bytes) / 4, rounds)


def _untouched(network: TorchvisionNetwork) -> list[Any]:
    """Convolutions that keep their outputs: those whose outputs the head gives, and what group norms read."""
    ends = [layer for name, layer in network.model.head.named_modules() if _END.search(name)]
    grouped = [
        before
        for part in network.modules()
        if isinstance(part, nn.Sequential)
        for before, after in pairwise(part)
        if isinstance(after, nn.GroupNorm)
    ]
    return ends + grouped


_END = re.compile(r"(cls_logits|bbox_reg|bbox_ctrness|module_list\.\d+\.1)$")
"""Names of layers that a head of RetinaNet, FCOS or SSDLite ends in."""


def _loss(network: TorchvisionNetwork, classes: tuple[str, ...], teacher: Teacher | None) -> Any:
    """The loss of a batch, a scalar: on the labels, and of what the teacher says of classes and boxes."""
    if teacher is None:
        return lambda batch: sum(network.losses(batch.frames, batch.targets)[0].values())
    stage = DistillStage("predictions", 1.0, Weights(classes=1.0, boxes=1.0))
    step = Distill(stages=(stage,), alpha="off", balance_every=0)
    aids = paired_aids(network.widths, network.strides, teacher, step)
    loss = StudentLoss(teacher, step, shared_classes(classes, teacher.classes), aids)
    return lambda batch: loss(network, batch, 0.0)[0]


def _accumulate_gradients(
    network: TorchvisionNetwork, loss: Any, samples: Sequence[tuple[Sample, Image]], step: Prune, progress: Progress
) -> None:
    """Leave in each weight the gradient of the loss, summed over images; the network stays as it is."""
    _to_train(network.requires_grad_(True))
    batches = in_batches(samples, step.batch)
    with deterministic():
        for some in progress.items(batches, "gradients", len(batches)):
            loss(_batch(some, network.image_size)).backward()
    network.eval()


def _to_train(network: TorchvisionNetwork) -> None:
    """Have a network give losses, without a change of its statistics."""
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def _batch(samples: Sequence[tuple[Sample, Image]], size: tuple[int, int]) -> Batch:
    """Letterboxed images with their labels."""
    frames, targets = [], []
    for sample, image in samples:
        frame, place = letterbox(image, Preprocess(*size))
        single = ~sample.truth.crowd
        boxes = torch.from_numpy(to_input(sample.truth.boxes[single], place).astype(np.float32))
        classes = torch.from_numpy(sample.truth.classes[single].astype(np.int64)) + 1
        frames.append(torch.from_numpy(frame[0]))
        targets.append({"boxes": boxes, "labels": classes})
    return Batch(torch.stack(frames), targets)

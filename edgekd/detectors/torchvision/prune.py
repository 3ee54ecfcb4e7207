"""Structured pruning of torchvision's detectors: a network of the same builder, with fewer channels.

The result is an ordinary `.tv.pt` file: on loading, layers get the widths of the weights in it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.compress.channel_elimination import Reader
from edgekd.compress.distillation.loss_terms import shared_classes
from edgekd.compress.pruning import CostFunction
from edgekd.compress.steps import Prune
from edgekd.core.detection.types import Preprocess
from edgekd.core.progress import SILENT, Progress
from edgekd.detectors.channel_groups import (
    PREDICTIONS_ONLY,
    Channels,
    LabelledImage,
    accumulate_gradients,
    convolutions_run,
    in_batches,
    pruning_images,
    renew_statistics,
    scan,
    weights_to_keep,
)
from edgekd.detectors.channel_readers import observed_readers
from edgekd.detectors.family import load_teacher
from edgekd.detectors.refit import object_certainty, refit
from edgekd.detectors.results import PruningRecord, Sensitivity
from edgekd.detectors.teacher import Teacher, paired_aids
from edgekd.detectors.torch_support import parameters_in
from edgekd.detectors.torchvision.detector import TorchvisionDetector
from edgekd.detectors.torchvision.distill import Batch, TorchvisionStudentLoss, collate, labelled_frame
from edgekd.detectors.torchvision.network import TorchvisionNetwork, save_network, with_classes

Loss = Callable[[Batch], torch.Tensor]


def prune_detector(
    checkpoint: Path,
    out: Path,
    data: Path,
    step: Prune,
    trust: bool = False,
    progress: Progress = SILENT,
    cost: CostFunction | None = None,
    teacher: Path | None = None,
    rounds: int = 1,
) -> PruningRecord:
    """Write `out`, the detector in `checkpoint` with fewer channels in its layers: again a `.tv.pt` file.

    Arguments: `Family.prune`. The last layers of a head keep all outputs, and so do convolutions before group norms,
    whose groups are adjacent channels.
    """
    began = time.monotonic()
    network = TorchvisionDetector(checkpoint).network()
    if teacher and (size := TorchvisionDetector(teacher).network().image_size) != network.image_size:
        network = with_classes(network, network.classes, size)  # the training between rounds has changed it
    network.require_own_size(step)
    before, max_weights = parameters_in(network), inf
    if step.max_bytes is not None:
        max_weights = weights_to_keep(network, checkpoint.stat().st_size - step.max_bytes, 4, rounds)
    classes, samples = pruning_images(data, step, progress) if step.needs_images else ((), [])
    readers: dict[str, Reader] = {}
    if step.importance != "magnitude":
        loss = _loss(network, classes, load_teacher(teacher, trust) if teacher else None)
        with observed_readers(_Dense(network), step.seed) as readers:
            _accumulate(network, loss, samples, progress, of_weights=step.needs_weight_gradients)
    original = deepcopy(network)
    channels, convolutions = _channels(network, step, readers)
    removed = channels.prune(step, cost, max_weights)
    network.zero_grad(set_to_none=True)
    if step.refit:
        frames = torch.cat([_batch([each], network.image_size).frames for each in samples])
        networks, kept = (_Dense(network), _Dense(original)), channels.kept_outputs(removed)
        refit(*networks, kept, frames, partial(object_certainty, load_teacher(checkpoint, trust)), step.seed, progress)
    else:
        renew_statistics(network, samples, step.batch, lambda chosen: _batch(chosen, network.image_size).frames)
    save_network(network, out)
    sizes = (before, parameters_in(network))
    return channels.pruned(removed, convolutions().values(), sizes, time.monotonic() - began)


def scan_detector(
    checkpoint: Path, data: Path, step: Prune, trust: bool = False, progress: Progress = SILENT
) -> Sensitivity:
    """Measure the increase of the loss on labels when each unit loses channels, on the images that pruning uses."""
    network = TorchvisionDetector(checkpoint).network()
    network.require_own_size(step)
    classes, samples = pruning_images(data, step, progress)
    loss = _loss(network, classes, None)
    readers: dict[str, Reader] = {}
    if step.importance != "magnitude":
        with observed_readers(_Dense(network), step.seed) as readers:
            _accumulate(network, loss, samples, progress, of_weights=step.needs_weight_gradients)
    channels, _ = _channels(network, step, readers)
    batches = [_batch(chosen, network.image_size) for chosen in in_batches(samples, step.batch)]
    _to_train(network)
    return scan(channels, lambda: sum(float(loss(each)) for each in batches) / len(batches), progress)


def _channels(
    network: TorchvisionNetwork, step: Prune, readers: Mapping[str, Reader]
) -> tuple[Channels, Callable[[], Any]]:
    """Return the channels that can be removed, and a function that returns the network's present convolutions."""
    network.requires_grad_(True)
    dense, frame = _Dense(network), torch.zeros(1, 3, *network.image_size)
    convolutions = partial(convolutions_run, dense, partial(dense.forward, frame))
    fixed = _fixed_outputs(network)
    return Channels(dense, frame, convolutions(), fixed, step.importance, readers=readers), convolutions


class _Dense(nn.Module):  # type: ignore[misc]
    """Only backbone and head; names of layers are those in the file."""

    def __init__(self, network: TorchvisionNetwork) -> None:
        super().__init__()
        self.backbone, self.head = network.model.backbone, network.model.head

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Return the head's outputs as a list."""
        return list(self.head(list(self.backbone(frames).values())).values())


def _fixed_outputs(network: TorchvisionNetwork) -> list[Any]:
    """Return the convolutions that keep all outputs: the last ones of the head, and those before group norms."""
    ends = [layer for name, layer in network.model.head.named_modules() if _LAST_LAYER.search(name)]
    grouped = [
        before
        for part in network.modules()
        if isinstance(part, nn.Sequential)
        for before, after in pairwise(part)
        if isinstance(after, nn.GroupNorm)
    ]
    return ends + grouped


_LAST_LAYER = re.compile(r"(cls_logits|bbox_reg|bbox_ctrness|module_list\.\d+\.1)$")
"""Matches names of the last layers of a head of RetinaNet, FCOS or SSDLite."""


def _loss(network: TorchvisionNetwork, classes: tuple[str, ...], teacher: Teacher | None) -> Loss:
    """Return the loss function of a batch, a scalar: on labels, and with a teacher also on its classes and boxes."""
    if teacher is None:
        return lambda batch: sum(network.losses(*batch)[0].values(), torch.zeros(()))
    aids = paired_aids(network.widths, network.strides, teacher, PREDICTIONS_ONLY)
    loss = TorchvisionStudentLoss(teacher, PREDICTIONS_ONLY, shared_classes(classes, teacher.classes), aids)
    return lambda batch: loss(network, batch, 0.0)[0]


def _accumulate(
    network: TorchvisionNetwork, loss: Loss, samples: Sequence[LabelledImage], progress: Progress, *, of_weights: bool
) -> None:
    """Set the gradient of each weight to the sum over images of |gradient of the loss|; weights do not change.

    of_weights: False: compute gradients of outputs only, for hooks.
    """
    _to_train(network.requires_grad_(of_weights))

    def image_loss(image: LabelledImage) -> torch.Tensor:
        batch = _batch([image], network.image_size)
        batch.frames.requires_grad_()
        return loss(batch)

    accumulate_gradients(network, samples, image_loss, progress)
    network.eval()


def _to_train(network: TorchvisionNetwork) -> None:
    """Set training mode, in which a network returns losses, but with fixed statistics of batch norms."""
    network.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def _batch(samples: Sequence[LabelledImage], size: tuple[int, int]) -> Batch:
    """Return letterboxed images with their labels."""
    return collate([labelled_frame(sample, image, Preprocess(*size)) for sample, image in samples])

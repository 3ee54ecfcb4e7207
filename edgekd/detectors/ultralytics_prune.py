"""Structured pruning of Ultralytics detectors: narrower layers, and nothing else changed.

What comes out is a checkpoint of Ultralytics' own layers, which its tools read, and everything here that takes one. But
its trainer builds a network anew from a description, which knows nothing of the new widths: `Loop` does not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.builds.recipe import Distill, DistillStage, Prune, Weights
from edgekd.compress.pruning import Cost
from edgekd.core.detection.preprocess import letterbox, to_input
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import drawn
from edgekd.data.types import Sample
from edgekd.detectors.checkpoint import checkpoint_bytes, write_checkpoint
from edgekd.detectors.teacher import load_teacher, paired_aids, parameters_in
from edgekd.detectors.ultralytics import UltralyticsDetector, input_size

# First: it says what is missing where PyTorch or Ultralytics are.
from edgekd.detectors.ultralytics_loop import quiet, ultralytics_label  # isort: skip

import torch
from torch import nn
from ultralytics.nn.modules.block import C2f
from ultralytics.utils import DEFAULT_CFG

from edgekd.compress.distillation.loss_terms import shared_classes
from edgekd.compress.quantization.fake_quant import FakeQuantConv2d
from edgekd.compress.quantization.qdq import read_layers
from edgekd.detectors.channel_groups import (
    Pruned,
    Sensitivity,
    deterministic,
    in_batches,
    on_the_way,
    renew_statistics,
    scan,
)
from edgekd.detectors.ultralytics_channels import branches_alone, channels_of, convolutions_of, in_halves
from edgekd.detectors.ultralytics_loss import StudentLesson, StudentLoss
from edgekd.detectors.ultralytics_seen import look
from edgekd.detectors.ultralytics_trainer import DistillationLoss, float_network, quantized_network

Read = tuple[Sample, NDArray[np.uint8]]
"""A sample, and its image as it was read: uint8 [h, w, 3] BGR."""


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
    quantized: Path | None = None,
) -> Pruned:
    """Write `out`, the detector in `checkpoint` with fewer channels in its layers: again an Ultralytics checkpoint.

    data: a data set, of whose split `train` `step.images` are read, for gradients. Of the step `share` and `max_size`
    say how much goes; `min_fps`, `rounds` and `recovery` are the caller's. cost: of a convolution, by which what is
    saved is counted; multiply-adds if None. teacher: also its detections count in the gradients, as in distillation,
    and the input stays of its size, which training may have changed.
    rounds: how many are left, this one included, to come down to `max_size`. quantized: the detector's Q/DQ graph, in
    place of which the gradients are then taken, of the loss on the labels and of how far it is from the detector.
    Nothing is trained: a detector that has lost more than a little has to be (`ultralytics_distill`). The same
    arguments give the same detector.
    Raises SpecError for a checkpoint that is no detector, DataError for unusable data, CompressError where so much
    cannot be removed.
    """
    began = time.monotonic()
    network, train_args, size = _opened(checkpoint, trust)
    size = _opened(teacher, trust)[2] if teacher else size
    told = {"task": "detect", **train_args, "imgsz": list(size)}
    before, room = parameters_in(network), _weights(network, told, step.max_bytes, rounds)
    samples: Sequence[Read] = ()
    with quiet(), in_halves(network):
        if step.importance != "magnitude":
            dataset = load_dataset(data)
            samples = drawn(dataset.split("train").samples, step.images, step.seed, progress)
            if quantized:
                model, loss = _quantized(checkpoint, quantized, trust)
            else:
                model, loss = network, _loss(network, dataset.classes, teacher, trust)
            _accumulate_gradients(model, loss, samples, _shown(step, network, size), step, progress)
            if quantized:
                _hand_over(model, network)
        channels = channels_of(network, size, step.importance)
        with branches_alone(network):
            gone = channels.thin(step, cost, room)
            shown = _shown(step, network, size)
            renew_statistics(network, samples, step.batch, lambda some: _batch(some, shown)["img"])
    network.zero_grad(set_to_none=True)
    after = tuple(convolutions_of(network, size).values())
    write_checkpoint(network, told, out)
    return Pruned.of(channels, gone, after, (before, parameters_in(network)), time.monotonic() - began)


def scan_detector(
    checkpoint: Path, data: Path, step: Prune, trust: bool = False, progress: Progress = SILENT
) -> Sensitivity:
    """How much the loss on the labels grows when each unit loses channels, on the images that pruning would see."""
    network, _, size = _opened(checkpoint, trust)
    dataset = load_dataset(data)
    with quiet(), in_halves(network):
        samples = drawn(dataset.split("train").samples, step.images, step.seed, progress)
        loss, shown = _loss(network, dataset.classes, None, trust), _shown(step, network, size)
        if step.importance != "magnitude":
            _accumulate_gradients(network, loss, samples, shown, step, progress)
        channels = channels_of(network, size, step.importance)
        network.model[-1].training = True  # the head alone: raw predictions
        batches = [_batch(some, shown) for some in in_batches(samples, step.batch)]

        def measure() -> float:
            return sum(float(loss(network(each["img"]), each)[0].sum()) for each in batches) / len(batches)

        return scan(channels, measure, progress)


def _opened(checkpoint: Path, trust: bool) -> tuple[Any, dict[str, Any], tuple[int, int]]:
    """A network that can be pruned, how it was trained, and its input's height and width. Raises SpecError."""
    network, train_args = UltralyticsDetector(checkpoint, trust).network()
    if network.is_fused():
        raise SpecError(f"{checkpoint}: batch norms are folded in", fix="pass the checkpoint that was trained")
    if not all(hasattr(block.cv1, "conv") for block in network.modules() if isinstance(block, C2f)):
        raise SpecError(f"{checkpoint}: has factorized layers", fix="prune first, and factorize what is left")
    return network, dict(train_args), input_size(train_args, int(max(network.stride)))


def _shown(step: Prune, network: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the images for gradients: whole strides."""
    return input_size({"imgsz": step.image_size or size}, int(max(network.stride)))


def _weights(network: Any, train_args: Mapping[str, Any], max_bytes: int | None, rounds: int) -> float:
    """How many weights the convolutions may have on the way to a checkpoint of so many bytes, at two bytes each."""
    if max_bytes is None:
        return inf
    whole = len(checkpoint_bytes(deepcopy(network), train_args))
    weights = sum(each.weight.numel() for each in network.modules() if isinstance(each, nn.Conv2d))
    return on_the_way(weights, weights - (whole - max_bytes) / 2, rounds)


def _loss(network: Any, classes: tuple[str, ...], teacher: Path | None, trust: bool) -> Any:
    """The loss whose gradients count: on the labels, and of what the teacher says of classes and boxes."""
    own = vars(network).get("args")
    network.args = DEFAULT_CFG  # how much each part of the loss counts
    try:
        if teacher is None:
            return network.init_criterion()
        found = load_teacher(teacher, trust)
        stage = DistillStage("predictions", 1.0, Weights(classes=1.0, boxes=1.0))
        step = Distill(stages=(stage,), alpha="off", balance_every=0)
        lesson = StudentLesson((), classes, step, found, shared_classes(classes, found.classes), Path())
        seen = look(network)
        network.aids = paired_aids(seen.widths, seen.strides, found, step)
        loss = StudentLoss(network, lesson, lambda: 0.0)
        del network.aids
        return loss
    finally:
        network.args = own


def _quantized(checkpoint: Path, graph: Path, trust: bool) -> tuple[Any, Any]:
    """A detector that computes what its Q/DQ graph does, and the loss whose gradients count."""
    floating, one_to_one = float_network(checkpoint, trust)
    network = quantized_network(floating, read_layers(graph), learned=False)
    network.args = DEFAULT_CFG
    return network, DistillationLoss(network, floating, 1.0, one_to_one)


def _hand_over(quantized: Any, network: Any) -> None:
    """Give the weights of a network in halves the gradients of the quantized one with its batch norms folded in.

    What counts is weight times gradient, which neither scales nor folded norms change: dL/dW of W = k V is dL/dV / k.
    """
    found = {
        name: layer.weight.detach() * layer.weight.grad
        for name, layer in quantized.named_modules()
        if isinstance(layer, (nn.Conv2d, FakeQuantConv2d)) and layer.weight.grad is not None
    }
    if network.model[-1].end2end:  # of two branches the one that ships has taken the other one's names
        branch = rf"^(model\.{len(network.model) - 1}\.)(cv[23]\.)"
        found = {re.sub(branch, r"\1one2one_\2", name): product for name, product in found.items()}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            whole = re.sub(r"\.halves\.[01]\.", ".cv1.", name)
            product = found.get(whole, torch.zeros_like(layer.weight))  # a branch that does not ship has none
            if whole != name:
                product = product.chunk(2)[".halves.1." in name]
            layer.weight.grad = torch.where(layer.weight == 0, 0.0, product / layer.weight).detach()


def _accumulate_gradients(
    network: Any,
    loss: Any,
    samples: Sequence[Read],
    size: tuple[int, int],
    step: Prune,
    progress: Progress,
) -> None:
    """Leave in each weight the gradient of the loss, summed over images; the network stays as it is."""
    network.requires_grad_(True).eval()
    head = network.model[-1]
    head.training = True  # the head alone: raw predictions, and no statistics change
    batches = in_batches(samples, step.batch)
    with deterministic():
        for some in progress.items(batches, "gradients", len(batches)):
            batch = _batch(some, size)
            loss(network(batch["img"]), batch)[0].sum().backward()
    head.training = False
    for layer in network.modules():  # which a teacher's loss has watched
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()


def _batch(samples: Sequence[Read], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Letterboxed images with their labels, as Ultralytics' losses take them."""
    frames, classes, boxes, owners = [], [], [], []
    for at, (sample, image) in enumerate(samples):
        frame, place = letterbox(image, Preprocess(*size))
        shares = (to_input(sample.truth.boxes, place) / (size[::-1] * 2)).astype(np.float32)
        label = ultralytics_label(replace(sample, truth=replace(sample.truth, boxes=shares)))
        frames.append(frame[0])
        classes.append(label["cls"])
        boxes.append(label["bboxes"])
        owners.append(np.full(len(label["cls"]), at, np.float32))
    values = {"img": np.stack(frames), "cls": np.concatenate(classes), "bboxes": np.concatenate(boxes)}
    values["batch_idx"] = np.concatenate(owners)
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}

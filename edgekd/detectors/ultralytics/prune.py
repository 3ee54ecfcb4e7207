"""Structured pruning of Ultralytics detectors: layers with fewer channels, otherwise unchanged.

The result is a checkpoint of Ultralytics' own layers, which its tools and edgekd can read. Ultralytics' trainer cannot
train it, because it builds the network from a description, which lacks the new widths; `Loop` can.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from edgekd.compress.channel_elimination import Reader
from edgekd.compress.distillation import distill
from edgekd.compress.distillation.loss_terms import shared_classes
from edgekd.compress.pruning import CostFunction
from edgekd.compress.quantization.fake_quant import FakeQuantConv2d
from edgekd.compress.quantization.qdq import read_layers
from edgekd.compress.steps import Prune
from edgekd.core.detection.preprocess import letterbox, to_input
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.detectors.channel_groups import (
    PREDICTIONS_ONLY,
    LabelledImage,
    accumulate_gradients,
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
from edgekd.detectors.teacher import paired_aids
from edgekd.detectors.torch_support import parameters_in
from edgekd.detectors.ultralytics.channels import branches_alone, channels_of, convolutions_of, in_halves
from edgekd.detectors.ultralytics.checkpoint import checkpoint_bytes, write_checkpoint
from edgekd.detectors.ultralytics.detector import STUDENTS, input_size, is_transformer, strides_of, unfused_network
from edgekd.detectors.ultralytics.features import drop_anchors, drop_hooks, predict_raw, tap_points
from edgekd.detectors.ultralytics.loop import quiet, ultralytics_label
from edgekd.detectors.ultralytics.loss import LabelsOfQueries, StudentLesson, StudentLoss
from edgekd.detectors.ultralytics.quant_aware import float_network, quantized_network
from edgekd.detectors.ultralytics.upstream import DEFAULT_CFG, C2f, v8DetectionLoss

T = TypeVar("T")
BOX_WEIGHT = 5.0
"""Weight of the box distance of a quantized detector; losses of classes, features and labels have weight 1."""


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
    quantized: Path | None = None,
) -> PruningRecord:
    """Write `out`, the detector in `checkpoint` with fewer channels in its layers: again an Ultralytics checkpoint.

    Arguments: `Family.prune`. `step.images` training images are read for gradients and the refit. The step's `share`
    and `max_size` are the goal; the caller handles `min_fps`, `rounds` and `recovery`. With a teacher, the input has
    the teacher's size. quantized: the detector's Q/DQ graph, for gradients of its loss on labels and its distance from
    the float detector. If `step.refit`, the kept weights are refitted; nothing is trained.
    """
    began = time.monotonic()
    network, train_args, size = _load(checkpoint, trust)
    size = _load(teacher, trust)[2] if teacher else size
    train_args = {"task": "detect", **train_args, "imgsz": list(size)}
    before, max_weights = parameters_in(network), inf
    if step.max_bytes is not None:
        excess = len(checkpoint_bytes(deepcopy(network), train_args)) - step.max_bytes
        max_weights = weights_to_keep(network, excess, 2, rounds)
    image_size = _gradient_size(step, network, size)
    batch = partial(_batch, size=image_size, stretch=is_transformer(network))
    classes, samples = pruning_images(data, step, progress) if step.needs_images else ((), [])
    with quiet(), in_halves(network):
        readers: dict[str, Reader] = {}
        if step.importance != "magnitude":
            if quantized:
                floating, model, loss = _quantized(checkpoint, quantized, trust)
            else:
                floating, model, loss = network, network, _loss(network, classes, teacher, trust)
            with observed_readers(model, step.seed, floating) as readers:
                _accumulate(model, loss, samples, image_size, progress, of_weights=step.needs_weight_gradients)
            if quantized:
                if step.needs_weight_gradients:
                    _copy_gradients(model, network)
                readers = _renamed(readers, network)
        original = deepcopy(network).eval()
        channels = channels_of(network, size, step.importance, readers)
        with branches_alone(network), branches_alone(original):
            removed = channels.prune(step, cost, max_weights)
            if step.refit:
                frames = torch.cat([batch([each])["img"] for each in samples])
                certainty = partial(object_certainty, load_teacher(checkpoint, trust))
                refit(network, original, channels.kept_outputs(removed), frames, certainty, step.seed, progress)
            else:
                renew_statistics(network, samples, step.batch, lambda chosen: batch(chosen)["img"])
    drop_anchors(network.model[-1])
    network.zero_grad(set_to_none=True)
    after = convolutions_of(network, size).values()
    write_checkpoint(network, train_args, out)
    return channels.pruned(removed, after, (before, parameters_in(network)), time.monotonic() - began)


def scan_detector(
    checkpoint: Path, data: Path, step: Prune, trust: bool = False, progress: Progress = SILENT
) -> Sensitivity:
    """Measure the increase of the loss on labels when each unit loses channels, on the images that pruning uses."""
    network, _, size = _load(checkpoint, trust)
    classes, samples = pruning_images(data, step, progress)
    with quiet(), in_halves(network):
        loss, image_size = _loss(network, classes, None, trust), _gradient_size(step, network, size)
        readers: dict[str, Reader] = {}
        if step.importance != "magnitude":
            with observed_readers(network, step.seed) as readers:
                _accumulate(network, loss, samples, image_size, progress, of_weights=step.needs_weight_gradients)
        channels = channels_of(network, size, step.importance, readers)
        predict_raw(network)
        batch = partial(_batch, size=image_size, stretch=is_transformer(network))
        batches = [batch(chosen) for chosen in in_batches(samples, step.batch)]

        def measure() -> float:
            return sum(float(loss(network(each["img"]), each)[0].sum()) for each in batches) / len(batches)

        return scan(channels, measure, progress)


def _load(checkpoint: Path, trust: bool) -> tuple[Any, dict[str, Any], tuple[int, int]]:
    """Return a network that can be pruned, its training's arguments, and its input's size. Raises SpecError."""
    network, train_args = unfused_network(checkpoint, trust, STUDENTS)
    if not all(hasattr(block.cv1, "conv") for block in network.modules() if isinstance(block, C2f)):
        raise SpecError(f"{checkpoint}: has factorized layers", fix="prune first, and factorize what is left")
    return network, train_args, input_size(train_args, max(strides_of(network)))


def _gradient_size(step: Prune, network: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width in pixels of the images for gradients, multiples of the stride."""
    return input_size({"imgsz": step.image_size or size}, max(strides_of(network)))


def _loss(network: Any, classes: tuple[str, ...], teacher: Path | None, trust: bool) -> Any:
    """Return the loss for gradients: on labels, and with a teacher also on its classes and boxes."""
    own = vars(network).get("args")
    network.args = DEFAULT_CFG  # weights of the parts of the loss
    try:
        if teacher is None:
            return LabelsOfQueries(network) if is_transformer(network) else network.init_criterion()
        loaded = load_teacher(teacher, trust)
        pairs = shared_classes(classes, loaded.classes)
        lesson = StudentLesson((), classes, PREDICTIONS_ONLY, loaded, pairs, state=Path())
        taps = tap_points(network)
        network.aids = paired_aids(taps.widths, taps.strides, loaded, PREDICTIONS_ONLY)
        loss = StudentLoss(network, lesson, lambda: 0.0)
        del network.aids
        return loss
    finally:
        network.args = own


def _quantized(checkpoint: Path, graph: Path, trust: bool) -> tuple[Any, Any, Any]:
    """Return a float detector, one that computes like its Q/DQ graph, and the loss for gradients."""
    floating, one_to_one = float_network(checkpoint, trust)
    network = quantized_network(floating, read_layers(graph), learned=False)
    network.args = DEFAULT_CFG
    return floating, network, _QuantizedLoss(network, floating, one_to_one)


class _QuantizedLoss:
    """The loss of a quantized detector on a batch: on labels, plus its distance from the float detector.

    one_to_one: whether the head predicts one box per object, so that one anchor per object is in the loss on labels.
    """

    def __init__(self, quantized: Any, floating: Any, one_to_one: bool) -> None:
        self._floating, self._distances = floating, floating.model[-1].dfl
        anchors = {"tal_topk": 7, "tal_topk2": 1} if one_to_one else {}  # as Ultralytics trains its one-to-one branch
        self._detection = v8DetectionLoss(quantized, **anchors)

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor]:
        with torch.no_grad():
            floating = self._floating(batch["img"])[1]
        ours, theirs = (self._distances(each["boxes"]) for each in (output, floating))
        certainty = distill.certainty(floating["scores"])
        classes = distill.class_loss(output["scores"], floating["scores"])
        boxes = BOX_WEIGHT * distill.box_loss(ours, theirs, certainty)
        features = distill.feature_loss(output["feats"], floating["feats"])
        labels = self._detection(output, batch)[0].sum() / len(batch["img"])
        return (classes + boxes + features + labels,)


def _copy_gradients(quantized: Any, network: Any) -> None:
    """Set the gradients of a network in halves to those of the quantized network, whose batch norms are folded.

    The product of weight and gradient is the same in both, because with V = k W, dL/dV = dL/dW / k. So the gradient is
    the quantized network's product divided by the weight.
    """
    products = {
        name: layer.weight.detach() * layer.weight.grad
        for name, layer in quantized.named_modules()
        if isinstance(layer, (nn.Conv2d, FakeQuantConv2d)) and layer.weight.grad is not None
    }
    products = _unfused_names(products, network)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            whole = re.sub(r"\.halves\.[01]\.", ".cv1.", name)
            product = products.get(whole, torch.zeros_like(layer.weight))  # a branch that is not shipped has none
            if whole != name:
                product = product.chunk(2)[".halves.1." in name]
            layer.weight.grad = torch.where(layer.weight == 0, 0.0, product / layer.weight).detach()


def _renamed(readers: Mapping[str, Reader], network: Any) -> dict[str, Reader]:
    """Return the readers of a quantized network by their names in the network in halves.

    Both halves read the same channels, so only the first half gets the reader of the whole convolution.
    """
    renamed = _unfused_names(readers, network)
    firsts = [name for name, _ in network.named_modules() if ".halves.0." in name]
    return renamed | {
        name: renamed[whole] for name in firsts if (whole := name.replace(".halves.0.", ".cv1.")) in renamed
    }


def _unfused_names(values: Mapping[str, T], network: Any) -> dict[str, T]:
    """Return values, by name in a fused network, by the layers' names in the unfused network."""
    if not network.model[-1].end2end:
        return dict(values)
    branch = rf"^(model\.{len(network.model) - 1}\.)(cv[23]\.)"  # the shipped branch has taken these names
    return {re.sub(branch, r"\1one2one_\2", name): value for name, value in values.items()}


def _accumulate(
    network: Any,
    loss: Any,
    samples: Sequence[LabelledImage],
    size: tuple[int, int],
    progress: Progress,
    *,
    of_weights: bool,
) -> None:
    """Set the gradient of each weight to the sum over images of |gradient of the loss|; weights do not change.

    of_weights: False: compute gradients of outputs only, for hooks.
    """
    network.requires_grad_(of_weights).eval()
    predict_raw(network)

    def image_loss(image: LabelledImage) -> torch.Tensor:
        batch = _batch([image], size, stretch=is_transformer(network))
        total: torch.Tensor = loss(network(batch["img"].requires_grad_()), batch)[0].sum()
        return total

    accumulate_gradients(network, samples, image_loss, progress)
    network.eval().requires_grad_(True)
    drop_hooks(network)  # those of the loss with a teacher


def _batch(
    samples: Sequence[LabelledImage], size: tuple[int, int], *, stretch: bool = False
) -> dict[str, torch.Tensor]:
    """Return letterboxed or stretched images with their labels, in the format of Ultralytics' losses."""
    frames, classes, boxes, owners = [], [], [], []
    for index, (sample, image) in enumerate(samples):
        frame, place = letterbox(image, Preprocess(*size, stretch=stretch))
        shares = (to_input(sample.truth.boxes, place) / (size[::-1] * 2)).astype(np.float32)
        label = ultralytics_label(replace(sample, truth=replace(sample.truth, boxes=shares)))
        frames.append(frame[0])
        classes.append(label["cls"])
        boxes.append(label["bboxes"])
        owners.append(np.full(len(label["cls"]), index, np.float32))
    values = {"img": np.stack(frames), "cls": np.concatenate(classes), "bboxes": np.concatenate(boxes)}
    values["batch_idx"] = np.concatenate(owners)
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}

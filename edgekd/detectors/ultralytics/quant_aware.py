"""Quantization-aware distillation of Ultralytics detectors, inside Ultralytics' own trainer."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.compress.distillation import distill
from edgekd.compress.quantization.fake_quant import ActivationRange, FakeQuantConv2d, latent_weights
from edgekd.compress.quantization.half import as_short_half
from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.steps import QuantAwareDistill
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.formats import int8
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.images import readable_samples
from edgekd.detectors.onnx import describe
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.torch_support import fitting_batches
from edgekd.detectors.ultralytics.detector import UltralyticsDetector, keep_one_branch
from edgekd.detectors.ultralytics.loop import Lesson, Loop, base_settings, quiet
from edgekd.detectors.ultralytics.upstream import v8DetectionLoss
from edgekd.graph.view import load_graph

BOX_WEIGHT = 5.0
"""Weight of the distance of boxes; those of classes and features have 1."""
WARM_UP_SHARE = 0.05
"""Share of the steps in which the learning rate rises; in the rest it falls to zero along a cosine."""


def distill_quantized(
    checkpoint: Path,
    graph: Path,
    out: Path,
    data: Path,
    step: QuantAwareDistill,
    trust: bool = False,
    progress: Progress = SILENT,
    teacher: Path | None = None,
) -> TrainingRun:
    """Write `out`: the Q/DQ graph `graph` with weights trained to match the float `checkpoint`, or `teacher`.

    Arguments: `Family.quant_aware_distill`. graph: exported from `checkpoint` and quantized by `compress.quantize`.
    """
    _require_sensible(step)
    began = time.monotonic()
    dataset = load_dataset(data)
    spec = describe(load_graph(graph), graph)
    require_classes(spec, dataset)
    samples = readable_samples(dataset.split("train").samples, progress)
    layers = read_layers(graph)
    floating, one_to_one = float_network(checkpoint, trust)
    student = quantized_network(floating, layers, step.ranges == "learned")
    teacher_network = float_network(teacher, trust)[0] if teacher else floating
    side = step.image_size or max(spec.preprocess.height, spec.preprocess.width)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch, quiet(), fitting_batches():
        trainer = _Trainer.of(Lesson(tuple(samples), spec.classes), _settings(step, side, scratch), progress)
        trainer.model, trainer.rate = student, step.learning_rate
        trainer.make_loss = lambda model: DistillationLoss(model, teacher_network, step.labels, one_to_one)
        trainer.train()
    write_layers(graph, out, trained_layers(trainer.ema.ema, layers))
    return TrainingRun(step.epochs, trainer.ema.updates, tuple(trainer.losses), time.monotonic() - began)


def _require_sensible(step: QuantAwareDistill) -> None:
    for name in ("epochs", "batch", "learning_rate"):
        value = getattr(step, name)
        if not value > 0:
            raise SpecError(f"quantization-aware distillation: {name}", expected="more than 0", found=str(value))


def float_network(checkpoint: Path, trust: bool) -> tuple[Any, bool]:
    """Return the branch of the network that ships, with folded batch norms, and whether it gives one box per object."""
    network, _ = UltralyticsDetector(checkpoint, trust).network()
    needs_nms = keep_one_branch(network.model[-1])
    network.fuse(verbose=False)
    return network.eval().requires_grad_(False), not needs_nms


def quantized_network(network: Any, layers: Sequence[QdqConvolution], learned: bool) -> Any:
    """Copy a float network so that it computes as the Q/DQ graph with these layers does, ready for training.

    Raises CompressError where the layers are not this network's.
    """
    student = deepcopy(network).requires_grad_(True)
    # Tensors of a group have the same scale, and keep sharing one range.
    ranges = {
        layer.input_scale: ActivationRange(layer.input_scale, learned)
        for layer in layers
        if layer.input_scale is not None
    }
    for layer in layers:
        name = layer.parameter.removesuffix(".weight")
        module = _convolution(student, name, layer)
        if layer.bias is not None:
            module.bias = torch.nn.Parameter(torch.tensor(layer.bias))  # the graph may have one where there was none
        if layer.scales is None:
            module.weight.data = torch.tensor(layer.weights)
            continue
        codes, scales = torch.tensor(layer.weights).float(), torch.tensor(layer.scales)
        steps = None if layer.coded_steps is None else torch.tensor(layer.coded_steps)
        latent = latent_weights(module.weight.data, codes, scales, layer.form, steps)
        entry = None if layer.input_scale is None else ranges[layer.input_scale]
        student.set_submodule(name, FakeQuantConv2d(module, latent, scales, layer.form, entry, learned, steps))
    _quantize_skips(student)
    return student


def _convolution(student: Any, name: str, layer: QdqConvolution) -> Any:
    module = dict(student.named_modules()).get(name)
    shape = list(module.weight.shape) if isinstance(module, torch.nn.Conv2d) else None
    if shape != list(layer.weights.shape):
        raise CompressError(
            f"layer {layer.node}: the checkpoint is not what the graph was made from",
            expected=f"a convolution {name} of shape {list(layer.weights.shape)}",
            found="none" if shape is None else str(shape),
            fix="pass the checkpoint that was exported",
        )
    return module


def _quantize_skips(student: Any) -> None:
    """Quantize the inputs that residual blocks add to their outputs, as the graph does: their first layers' inputs."""
    for block in student.modules():
        if not getattr(block, "add", False):
            continue
        if _first_range(block) is not None:
            block.register_forward_pre_hook(lambda block, inputs: (_first_range(block)(inputs[0]),))
        # Attention blocks have a second residual, around a part of theirs and with a sum that no hook sees.
        if hasattr(block, "ffn") and _first_range(block.ffn) is not None:
            block.ffn.register_forward_hook(_correct_sum)


def _first_range(block: Any) -> Any:
    """Return the range of the input of a block's first convolution; None where it reads floats."""
    kinds = (torch.nn.Conv2d, FakeQuantConv2d)
    return getattr(next(part for part in block.modules() if isinstance(part, kinds)), "entry", None)


def _correct_sum(part: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    """Correct an output so that its sum with the unquantized input is that with the quantized input."""
    return output + (_first_range(part)(inputs[0]) - inputs[0])


def trained_layers(student: Any, layers: Sequence[QdqConvolution]) -> tuple[QdqConvolution, ...]:
    """Return the layers with the weights, scales and biases of a student made from them."""
    return tuple(_trained(student.get_submodule(layer.parameter.removesuffix(".weight")), layer) for layer in layers)


def _trained(module: Any, layer: QdqConvolution) -> QdqConvolution:
    bias = None if layer.bias is None else module.bias.detach().cpu().numpy()
    if layer.scales is None:
        # Not rounded while it was trained: a step of these is below what training moves.
        return replace(layer, weights=as_short_half(module.weight.detach().cpu().numpy()), bias=bias)
    return replace(
        layer,
        weights=module.codes().detach().cpu().numpy().astype(np.int8),
        scales=module.scales.detach().cpu().numpy(),
        bias=bias,
        input_scale=None if layer.input_scale is None else float(module.entry.scale),
    )


class DistillationLoss:
    """The loss of a student beside its teacher on a batch, and on labels, which count as much as `labels` says.

    Called by Ultralytics with the student's raw predictions. one_to_one: whether the head gives one box per object, and
    so learns from one anchor per object.
    """

    def __init__(self, student: Any, teacher: Any, labels: float, one_to_one: bool) -> None:
        self._teacher = teacher.to(next(student.parameters()).device)
        self._distances = teacher.model[-1].dfl
        self._labels = labels
        # As Ultralytics trains its one-to-one branch.
        anchors = {"tal_topk": 7, "tal_topk2": 1} if one_to_one else {}
        self._detection = v8DetectionLoss(student, **anchors) if labels else None

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the loss, and its parts by name."""
        with torch.no_grad():
            teacher = self._teacher(batch["img"])[1]
        boxes, teacher_boxes = (self._distances(predictions["boxes"]) for predictions in (output, teacher))
        certainty = distill.certainty(teacher["scores"])
        parts = {
            "class": distill.class_loss(output["scores"], teacher["scores"]),
            "box": BOX_WEIGHT * distill.box_loss(boxes, teacher_boxes, certainty),
        }
        if all(ours.shape == theirs.shape for ours, theirs in zip(output["feats"], teacher["feats"], strict=False)):
            parts["feature"] = distill.feature_loss(output["feats"], teacher["feats"])  # a teacher may have wider ones
        if self._detection is not None:
            loss, _ = self._detection(output, batch)
            parts["labels"] = self._labels * loss.sum() / len(batch["img"])
        return sum(parts.values()), {name: part.detach() for name, part in parts.items()}


def _settings(step: QuantAwareDistill, side: int, folder: str) -> dict[str, Any]:
    """Return the settings of Ultralytics' trainer: its loop without its schedule, checks and files."""
    return {
        **base_settings(step, side, folder),
        **{"amp": False, "save": False},
        # Mild: the student has to follow its teacher where the teacher is good.
        **{"mosaic": 0.0, "close_mosaic": 0, "scale": 0.25, "translate": 0.1, "fliplr": 0.5},
    }


class _Trainer(Loop):
    """Training of a network with another loss. Its only result is its moving average, `ema`.

    Set before training: `model`; `rate`, the learning rate; `make_loss`, from the model in training to its loss.
    """

    rate: float
    make_loss: Callable[[Any], Any]
    remedy = "lower learning_rate"
    stage = "quant_aware_distill"

    def build_optimizer(self, model: Any, *_: Any, **__: Any) -> Any:
        """Return Adam, whose steps are as large as the learning rate, in each parameter's own unit."""
        latent = [module.weight for module in model.modules() if isinstance(module, FakeQuantConv2d)]
        latent_ids = set(map(id, latent))
        others = [parameter for parameter in model.parameters() if id(parameter) not in latent_ids]
        groups = [{"params": latent, "lr": self.rate * int8.LEVELS}, {"params": others, "lr": self.rate}]
        return torch.optim.Adam(groups)

    def _setup_train(self) -> None:
        super()._setup_train()
        # Only now: the moving average has copied the model, and needs no copy of the teacher.
        self.model.criterion = self.make_loss(self.model)

    def rate_factor(self) -> float:
        done, steps = self.steps_done - 1, self.steps
        rising = (done + 1) / max(WARM_UP_SHARE * steps, 1)
        falling = 0.5 + 0.5 * math.cos(math.pi * done / steps)
        return min(rising, falling)

    def save_model(self) -> bool:
        return False

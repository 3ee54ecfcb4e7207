"""Quantization-aware training of Ultralytics detectors: a quantized one is trained to predict as the float one does."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.compress.quantization.fake_quant import ActivationRange, FakeQuantConv2d, latent_weights
from edgekd.compress.quantization.half import as_short_half
from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.steps import QuantAwareDistill
from edgekd.core.errors import CompressError
from edgekd.core.progress import Progress
from edgekd.detectors.onnx import describe
from edgekd.detectors.recovery import recover
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.ultralytics.detector import UltralyticsDetector, keep_one_branch
from edgekd.detectors.ultralytics.loop import quiet
from edgekd.detectors.ultralytics.recover import compressed
from edgekd.graph.view import load_graph


def distill_quantized(
    checkpoint: Path,
    teacher: Path,
    out: Path,
    data: Path,
    step: QuantAwareDistill,
    cache: Path,
    state: Path,
    trust: bool,
    device: str | None,
    progress: Progress,
    graph: Path,
) -> TrainingRun:
    """Write `out`: the Q/DQ graph `graph` with weights trained so that it predicts as `teacher` does.

    Arguments: `Family.quant_aware_distill`. graph: exported from `checkpoint` and quantized by `compress.quantize`. The
    branch of a head with two that ships is trained.
    """
    layers, preprocess = read_layers(graph), describe(load_graph(graph), graph).preprocess
    floating, one_to_one = float_network(checkpoint, trust)
    network = quantized_network(floating, layers, step.ranges == "learned")
    branch = "one2one" if one_to_one else "one2many"
    student = compressed(network, step, [preprocess.height, preprocess.width], device, branch)
    with quiet():
        run = recover(student, teacher, data, step, cache, state, progress, trust=trust)
    write_layers(graph, out, trained_layers(network, layers))
    return run


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

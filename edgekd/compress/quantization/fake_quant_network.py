"""Float networks that compute like their Q/DQ graphs, for training; the same for every family of detectors.

A network has folded batch norms, and a module for each convolution of the graph. Only convolutions are trained, and
only their numbers are written back to the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.compress.quantization.fake_quant import ActivationRange, FakeQuantConv2d, latent_weights
from edgekd.compress.quantization.half import as_short_half
from edgekd.compress.quantization.qdq import QdqConvolution
from edgekd.core.errors import CompressError

ModuleName = Callable[[QdqConvolution], str]
"""Returns the name of the network's module that computes a convolution of the graph."""


def fake_quantized(network: Any, layers: Sequence[QdqConvolution], module_of: ModuleName, *, learned: bool) -> Any:
    """Return a copy of a float network whose convolutions compute like these layers; only these have gradients.

    learned: whether scales are trained, too. Raises CompressError if the layers are not from this network.
    """
    student = deepcopy(network).requires_grad_(False)
    # Tensors of a group have the same scale, and keep sharing one range.
    ranges = {
        layer.input_scale: ActivationRange(layer.input_scale, learned)
        for layer in layers
        if layer.input_scale is not None
    }
    for layer in layers:
        name = module_of(layer)
        module = _convolution(student, name, layer)
        if layer.bias is not None:
            module.bias = nn.Parameter(torch.tensor(layer.bias))  # the graph may have a bias that the module lacks
        if layer.scales is None:
            module.weight = nn.Parameter(torch.tensor(layer.weights))
            continue
        codes, scales = torch.tensor(layer.weights).float(), torch.tensor(layer.scales)
        steps = None if layer.coded_steps is None else torch.tensor(layer.coded_steps)
        latent = latent_weights(module.weight.data, codes, scales, layer.form, steps)
        entry = None if layer.input_scale is None else ranges[layer.input_scale]
        student.set_submodule(name, FakeQuantConv2d(module, latent, scales, layer.form, entry, learned, steps))
    return student


def _convolution(student: Any, name: str, layer: QdqConvolution) -> Any:
    module = dict(student.named_modules()).get(name)
    shape = list(module.weight.shape) if isinstance(module, nn.Conv2d) else None
    if shape != list(layer.weights.shape):
        raise CompressError(
            f"layer {layer.node}: the checkpoint is not what the graph was made from",
            expected=f"a convolution {name} of shape {list(layer.weights.shape)}",
            found="none" if shape is None else str(shape),
            fix="pass the checkpoint that was exported",
        )
    return module


def input_range(block: Any) -> ActivationRange | None:
    """Return the input range of a block's first convolution; None if its input is float."""
    kinds = (nn.Conv2d, FakeQuantConv2d)
    found: ActivationRange | None = getattr(
        next(each for each in block.modules() if isinstance(each, kinds)), "entry", None
    )
    return found


def quantize_input(block: Any) -> None:
    """Quantize the input of a residual block like its first convolution's, as for the addition in the graph."""
    block.register_forward_pre_hook(_quantized_input)


def _quantized_input(block: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    quantizer = input_range(block)  # looked up at each call: a copy of the block has its own range
    return inputs if quantizer is None else (quantizer(inputs[0]),)


def trained_layers(student: Any, layers: Sequence[QdqConvolution], module_of: ModuleName) -> tuple[QdqConvolution, ...]:
    """Return the layers with the trained weights, scales and biases of a `fake_quantized` student."""
    return tuple(_trained(student.get_submodule(module_of(layer)), layer) for layer in layers)


def _trained(module: Any, layer: QdqConvolution) -> QdqConvolution:
    bias = None if layer.bias is None else module.bias.detach().cpu().numpy()
    if layer.scales is None:
        # Not rounded during training: the rounding is smaller than the changes by training.
        return replace(layer, weights=as_short_half(module.weight.detach().cpu().numpy()), bias=bias)
    return replace(
        layer,
        weights=module.codes().detach().cpu().numpy().astype(np.int8),
        scales=module.scales.detach().cpu().numpy(),
        bias=bias,
        input_scale=None if layer.input_scale is None else float(module.entry.scale.detach()),
    )

"""Quantization-aware training of Ultralytics detectors, to reproduce the predictions of the float detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.compress.quantization.fake_quant_network import (
    fake_quantized,
    input_range,
    quantize_input,
    trained_layers,
)
from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.steps import QuantAwareDistill
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
    """Write `out`: the Q/DQ graph `graph` with weights trained to reproduce the predictions of `teacher`.

    Arguments: `Family.quant_aware_distill`. graph: exported from `checkpoint`, and quantized by
    `compress.quantization.quantize`. Of a head with two branches, only the shipped one is trained.
    """
    layers, preprocess = read_layers(graph), describe(load_graph(graph), graph).preprocess
    floating, one_to_one = float_network(checkpoint, trust)
    network = quantized_network(floating, layers, step.ranges == "learned")
    branch = "one2one" if one_to_one else "one2many"
    student = compressed(network, step, [preprocess.height, preprocess.width], device, branch)
    with quiet():
        run = recover(student, teacher, data, step, cache, state, progress, trust=trust)
    write_layers(graph, out, trained_layers(network, layers, module_of))
    return run


def float_network(checkpoint: Path, trust: bool) -> tuple[Any, bool]:
    """Return the network with only the shipped branch and folded batch norms, and whether it needs no NMS."""
    network, _ = UltralyticsDetector(checkpoint, trust).network()
    needs_nms = keep_one_branch(network.model[-1])
    network.fuse(verbose=False)
    return network.eval().requires_grad_(False), not needs_nms


def quantized_network(network: Any, layers: Sequence[QdqConvolution], learned: bool) -> Any:
    """Return a copy of a float network that computes like the Q/DQ graph with these layers: see `fake_quantized`."""
    student = fake_quantized(network, layers, module_of, learned=learned)
    for block in student.modules():
        if not getattr(block, "add", False):
            continue
        quantize_input(block)
        # Attention blocks have a second residual around `ffn`, whose sum no hook can reach.
        if hasattr(block, "ffn") and input_range(block.ffn) is not None:
            block.ffn.register_forward_hook(_correct_sum)
    return student


def module_of(layer: QdqConvolution) -> str:
    """Return the name of the module with a layer's weights, which the export keeps."""
    return layer.parameter.removesuffix(".weight")


def _correct_sum(part: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    """Return the output changed so that its sum with the unquantized input equals output + quantized input."""
    quantizer = input_range(part)
    assert quantizer is not None, "hooks are registered on parts with a range alone"
    return output + (quantizer(inputs[0]) - inputs[0])

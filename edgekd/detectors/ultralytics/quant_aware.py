"""Quantization-aware training of Ultralytics detectors: a quantized one is trained to predict as the float one does."""

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
    write_layers(graph, out, trained_layers(network, layers, module_of))
    return run


def float_network(checkpoint: Path, trust: bool) -> tuple[Any, bool]:
    """Return the branch of the network that ships, with folded batch norms, and whether it gives one box per object."""
    network, _ = UltralyticsDetector(checkpoint, trust).network()
    needs_nms = keep_one_branch(network.model[-1])
    network.fuse(verbose=False)
    return network.eval().requires_grad_(False), not needs_nms


def quantized_network(network: Any, layers: Sequence[QdqConvolution], learned: bool) -> Any:
    """Copy a float network so that it computes as the Q/DQ graph with these layers does: see `fake_quantized`."""
    student = fake_quantized(network, layers, module_of, learned=learned)
    for block in student.modules():
        if not getattr(block, "add", False):
            continue
        quantize_input(block)
        # Attention blocks have a second residual, around a part of theirs and with a sum that no hook sees.
        if hasattr(block, "ffn") and input_range(block.ffn) is not None:
            block.ffn.register_forward_hook(_correct_sum)
    return student


def module_of(layer: QdqConvolution) -> str:
    """Return the name of the module with a layer's weights: the export keeps it."""
    return layer.parameter.removesuffix(".weight")


def _correct_sum(part: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    """Correct an output so that its sum with the unquantized input is that with the quantized input."""
    quantizer = input_range(part)
    assert quantizer is not None, "hooks are registered on parts with a range alone"
    return output + (quantizer(inputs[0]) - inputs[0])

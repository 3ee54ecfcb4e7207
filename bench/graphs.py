"""What quantized graphs say of themselves, whoever made them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.types import DetectorSpec


def float_head_patterns(graph: Path) -> tuple[str, ...]:
    """Patterns for the convolutions that edgekd leaves in float: the last ones before the outputs, and DFL."""
    import onnx

    from edgekd.compress.quantization.placement import float_head
    from edgekd.graph.view import Graph

    model = onnx.load(graph)
    head = float_head(Graph(model))
    names = [node.name for node in model.graph.node if node.op_type == "Conv" and node.name in head]
    return tuple(f"^{re.escape(name)}$" for name in names)


def facts(graph: Path) -> dict[str, Any]:
    """What a quantized graph says of itself: `int8_convolutions` and `symmetric`, as in `Row`."""
    import onnx
    from onnx import numpy_helper

    loaded = onnx.load(graph).graph
    nodes = loaded.node
    constants = {each.name: each for each in loaded.initializer}
    constants.update({node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"})
    pairs = [node for node in nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    zeros = [numpy_helper.to_array(constants[node.input[2]]) for node in pairs if len(node.input) > 2]
    dequantized = {node.output[0] for node in pairs if node.op_type == "DequantizeLinear"}
    weights = [node.input[1] in dequantized for node in nodes if node.op_type == "Conv"]
    return {
        "int8_convolutions": (sum(weights), len(weights)),
        # Biases are INT32 in some tools' graphs.
        "symmetric": all(zero.dtype in (np.int8, np.int32) and not zero.any() for zero in zeros),
    }


def described(graph: Path, spec: DetectorSpec) -> Path:
    """A copy that says its classes and strides, which some tools drop and Ultralytics' `val` needs."""
    import onnx

    from edgekd.detectors.onnx import describe_in

    model = onnx.load(graph)
    describe_in(model, spec)
    copy = graph.with_name(f"{graph.stem}-described.onnx")
    onnx.save(model, copy)
    return copy

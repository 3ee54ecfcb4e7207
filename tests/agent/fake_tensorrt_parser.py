"""Errors of TensorRT's ONNX parser by version. Pure functions.

Sources: `QuantDequantLinearHelper`, `convertToTensor`, `convertDtype` and `parseGraph` of onnx-tensorrt at
release/8.2-GA, 8.4-GA, 8.5-GA, 8.6-GA, 10.0-GA and 10.1-GA; messages of TensorRT's core from NVIDIA/TensorRT issues
2163 and 2361 (constants in INT8) and microsoft/onnxruntime issue 14229 (biases in INT32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from fake_tensorrt_graph import QUANTIZING, Graph
from tensorrt_tables import names_of, numbers

_INT8_CONSTANTS_FROM = (10, 0)
"""First version whose core accepts INT8 weights."""
_UINT8_REFUSED_FROM = (8, 5)
_TWO_INPUTS_FROM = (8, 6)
"""First version that allows a missing zero point. 8.6 still reads the third input."""
_TYPES = {
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
    onnx.TensorProto.INT4: "INT4",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT4E2M1: "FP4",
}
"""ONNX types that not every version supports, and their members of DataType."""
_ONNX_TYPES_FROM = (10, 0)
"""8.6 has FP8 in its bindings, but its parser reads no ONNX tensor of that type."""


@dataclass(frozen=True)
class ParseError:
    """A parser error.

    code: name in the parser's ErrorCode; node: index of the node, -1 for none; logged: message that the core logs in
    addition, empty for none.
    """

    code: str
    node: int
    description: str
    logged: str = ""


def parse_error(model: onnx.ModelProto, version: str, refused: Sequence[str] = ()) -> ParseError | None:
    """Return the first error that a version's parser reports for a model, None if it accepts the model.

    refused: operators without an importer.
    """
    graph, first = Graph(model), numbers(version)
    for initializer in model.graph.initializer:
        kind = _TYPES.get(initializer.data_type)
        if kind and (first < _ONNX_TYPES_FROM or kind not in names_of(version)["DataType"]):
            text = 'convertOnnxWeights(initializer, &weights, ctx) && "Failed to import initializer."'
            return ParseError("UNSUPPORTED_NODE", -1, f"Assertion failed: {text}")
    for index, node in enumerate(graph.nodes):
        if node.op_type in refused:
            return ParseError("UNSUPPORTED_NODE", index, _unknown_operator(node))
        error = next(_node_errors(graph, node, first), None)
        if error:
            code, description, logged = error
            return ParseError(code, index, description, logged)
    return None


def _unknown_operator(node: onnx.NodeProto) -> str:
    importer = f"getPluginCreator() could not find plugin: {node.op_type} version: 1"
    return f"In node {node.name} ({node.op_type}): UNSUPPORTED_NODE: {importer}"


def _node_errors(graph: Graph, node: onnx.NodeProto, version: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield code, description and logged message of each error of a node, in the order of the importer's checks."""
    for position, name in enumerate(node.input):
        constant = graph.constant(name)
        is_zero_point = node.op_type in QUANTIZING and position == 2
        if constant is None or is_zero_point or constant.data_type != onnx.TensorProto.INT8:
            continue
        if version < _INT8_CONSTANTS_FROM and node.op_type != "Constant":
            yield _invalid_node(node, f"{name}: invalid weights type of Int8")
    if node.op_type in QUANTIZING:
        yield from _quantizing_errors(graph, node, version)


def _invalid_node(node: onnx.NodeProto, message: str) -> tuple[str, str, str]:
    """Return an error of the core that the parser passes on."""
    return "INVALID_NODE", f"Invalid Node - {node.name}\n{message}", message


def _assertion(text: str) -> tuple[str, str, str]:
    return "INVALID_NODE", f"Assertion failed: {text}", ""


def _quantizing_errors(graph: Graph, node: onnx.NodeProto, version: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield the errors of QuantizeLinear and DequantizeLinear."""
    given = [name for name in node.input if name]
    data = graph.constant(given[0])
    if version >= _UINT8_REFUSED_FROM and data is not None and data.data_type == onnx.TensorProto.UINT8:
        yield _assertion(f"Found invalid input type of UINT8 ({node.name})")
    if version < _TWO_INPUTS_FROM and len(given) != 3:
        yield _assertion(
            '(inputs.size() == 3) && "This version of TensorRT requires 3 inputs for the DequantizeLinear operator."'
        )
    if data is not None and data.data_type == onnx.TensorProto.INT32 and node.op_type == "DequantizeLinear":
        yield _invalid_node(node, f"{node.name}: only activation types allowed as input to this layer.")
    yield from _scale_errors(graph, given[1], version)
    if len(given) < 3 and version < _INT8_CONSTANTS_FROM:  # of 8.6: std::vector::at throws
        yield _invalid_node(node, "vector::_M_range_check: __n (which is 2) >= this->size() (which is 2)")
    if graph.constant(given[1]) is None:
        return
    count = graph.value(given[1]).size
    if len(given) == 3 and graph.constant(given[2]) is not None:
        zero_point = graph.value(given[2])
        if zero_point.any():
            yield _assertion('shiftIsAllZeros(zeroPoint) && "TensorRT only supports symmetric quantization."')
        if zero_point.size != count:
            yield _assertion('zeroPointSize == scaleSize && "The scale and zero-point must have the same size"')
    if count != 1 and data is not None:
        # Without an axis TensorRT takes 0 for several scales, and ONNX takes 1.
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
        sides = list(data.dims)
        if not -len(sides) <= axis < len(sides) or sides[axis] != count:
            yield _assertion('K == scaleSize && "The number of scales is not equal to the number of output channels."')


def _scale_errors(graph: Graph, name: str, version: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    """Yield the errors of a constant scale. Versions before 10 read any type as float32, possibly beyond its end."""
    scale = graph.constant(name)
    if scale is None:
        return
    values = graph.value(name)
    misread = version < _INT8_CONSTANTS_FROM and values.dtype != np.float32
    if misread or not (values > 0).all():
        yield _assertion('scaleAllPositive && "Scale coefficients must all be positive"')

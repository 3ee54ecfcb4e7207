"""Changes to an ONNX graph: node names, separate parameters for each layer, and quantizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgekd.compress.quantization.layers import bias_of_product, is_dfl, is_layer
from edgekd.compress.quantization.placement import QuantizerPlacement
from edgekd.compress.quantization.reconstruct import Stored
from edgekd.core.formats.nvfp4 import Nvfp4
from edgekd.graph import nvfp4
from edgekd.graph.view import Graph, attributes, reads

_OPTIONAL_OUTPUTS = ("BatchNormalization", "Dropout", "LayerNormalization", "MaxPool")
"""Operators whose outputs are optional except the first."""


def name_nodes(model: Any) -> None:
    """Give every node without a name a unique one: placement refers to nodes by name."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}" if f"{node.op_type}_{index}" not in taken else f"edgekd_{index}"


def drop_left_out(model: Any) -> None:
    """Drop trailing empty names, which stand for omitted inputs and outputs, such as a convolution's bias.

    The meaning is the same, but ONNX Runtime cannot run a quantized MaxPool with them.
    """
    for node in model.graph.node:
        # For other operators the number of outputs matters: it is the number of parts of a Split.
        for names in (node.input, node.output) if node.op_type in _OPTIONAL_OUTPUTS else (node.input,):
            while names and not names[-1]:
                names.pop()


def own_parameters(model: Any) -> None:
    """Give every layer its own weights, and a bias if its node can have one.

    A Gemm then has weights [O, K], and no factors alpha and beta.
    """
    _drop_identities(model)
    graph = Graph(model)
    for node in graph.nodes:
        if not is_layer(graph, node) or is_dfl(graph, node):
            continue
        if node.op_type == "Gemm":
            _plain_gemm(graph, node)
        elif node.op_type == "Conv" and len(node.input) == 2 and (shape := graph.shape(node.input[1])) is not None:
            node.input.append(f"{node.name}/bias")
            _add_initializer(graph, node.input[2], np.zeros(shape[0], np.float32))
        if node.op_type == "MatMul" and bias_of_product(graph, node) is not None:
            addition, index = graph.consumers(node.output[0])[0]
            _own(graph, addition, [1 - index])
        _own(graph, node, range(1, len(node.input)))


def _drop_identities(model: Any) -> None:
    """Replace copies of initializers by the initializers: exporters write shared and equal weights as Identity."""
    graph = Graph(model)
    copies = {
        node.output[0]: node.input[0]
        for node in graph.of("Identity")
        if node.input[0] in graph.initializers
        and node.output[0] not in graph.outputs
        and node.output[0] not in graph.read_by_nested
    }
    for name, initializer in copies.items():
        for node, index in graph.consumers(name):
            node.input[index] = initializer
        model.graph.node.remove(graph.producers[name])


def _plain_gemm(graph: Graph, node: Any) -> None:
    """Rewrite a Gemm, if possible, to weights [O, K] without factors alpha and beta, and a bias [O]."""
    from onnx import helper

    options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **attributes(node)}
    weights = graph.constant(node.input[1])
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.float32)
    assert weights is not None, "layers have constant weights"
    weights = weights if options["transB"] else weights.T
    if options["transA"] or weights.dtype != np.float32 or bias is None:
        return
    if bias.size not in (1, len(weights)) or bias.size != max((1, *bias.shape[-1:])):
        return
    del node.attribute[:], node.input[1:]
    node.attribute.append(helper.make_attribute("transB", 1))
    node.input.extend([f"{node.name}/weights", f"{node.name}/bias"])
    _add_initializer(graph, node.input[1], np.ascontiguousarray(weights * np.float32(options["alpha"])))
    scaled_bias = np.broadcast_to(bias.ravel() * np.float32(options["beta"]), len(weights))
    _add_initializer(graph, node.input[2], scaled_bias.copy())


def _own(graph: Graph, node: Any, inputs: Iterable[int]) -> None:
    """Copy the constants at some inputs of a node if other nodes, or graphs nested in them, also read them."""
    for index in inputs:
        name = node.input[index]
        value = graph.constant(name)
        if value is not None and (len(graph.consumers(name)) > 1 or name in graph.read_by_nested):
            node.input[index] = f"{name}/{node.name}"
            _add_initializer(graph, node.input[index], value)


def _add_initializer(graph: Graph, name: str, value: np.ndarray) -> None:
    from onnx import numpy_helper

    graph.model.graph.initializer.append(numpy_helper.from_array(value, name))


def insert_activation_pairs(graph: Graph, placement: QuantizerPlacement, scales: Mapping[str, float]) -> None:
    """Insert a QuantizeLinear/DequantizeLinear pair per quantized tensor; the placement's edges read its output."""
    from onnx import helper

    pairs: dict[str, list[Any]] = {}
    for name in placement.quantized:
        scale, zero = f"{name}/scale", f"{name}/zero_point"
        _add_initializer(graph, scale, np.array(scales[name], np.float32))
        _add_initializer(graph, zero, np.array(0, np.int8))
        pairs[name] = [
            helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}/int8"], f"{name}/quantize"),
            helper.make_node("DequantizeLinear", [f"{name}/int8", scale, zero], [f"{name}/dq"], f"{name}/dequantize"),
        ]
    by_name = {node.name: node for node in graph.nodes}
    for node_name, index in placement.edges:
        by_name[node_name].input[index] += "/dq"
    ordered = [*pairs.get(graph.model.graph.input[0].name, [])]
    for node in graph.nodes:
        ordered.append(node)
        for output in node.output:
            ordered.extend(pairs.get(output, []))
    graph.nodes = ordered


def store_weights(graph: Graph, stored: Mapping[str, Stored]) -> None:
    """Replace the weights of layers by stored codes, by node name, and DequantizeLinear nodes.

    Codes of every layer are stored as [O, ...], so that all are packed alike; a MatMul gets a Transpose.
    """
    from onnx import helper

    ordered = []
    for node in graph.nodes:
        if node.name in stored:
            stem = f"{node.input[1]}/{node.name}"
            nodes, initializers = _dequantizers(stored[node.name], stem)
            graph.model.graph.initializer.extend(initializers)
            ordered.extend(nodes)
            node.input[1] = f"{stem}/dq"
            if node.op_type == "MatMul":
                turned = f"{stem}/turned"
                ordered.append(helper.make_node("Transpose", [f"{stem}/dq"], [turned], f"{stem}/turn", perm=[1, 0]))
                node.input[1] = turned
        ordered.append(node)
    graph.nodes = ordered


def _dequantizers(stored: Stored, stem: str) -> tuple[list[Any], list[Any]]:
    """Return the nodes that compute the weights as `stem`/dq, and the initializers they read."""
    from onnx import helper, numpy_helper

    if isinstance(stored, Nvfp4):
        return nvfp4.dequantizers(stored, stem)
    names = [f"{stem}/{part}" for part in ("int8", "scale", "zero_point")]
    values = (*stored, np.zeros(len(stored[1]), np.int8))
    node = helper.make_node("DequantizeLinear", names, [f"{stem}/dq"], f"{stem}/dequantize", axis=0)
    return [node], list(map(numpy_helper.from_array, values, names))


def weights_pair(graph: Graph, node: Any) -> Any | None:
    """Return the DequantizeLinear of a layer's weights; None for float weights."""
    before = graph.producers.get(node.input[1])
    if before is not None and before.op_type == "Transpose":
        before = graph.producers.get(before.input[0])
    return before if before is not None and before.op_type == "DequantizeLinear" else None


def stored_names(graph: Graph, node: Any) -> list[str]:
    """Return the names of the initializers of a layer's weights, in any format."""
    pair = weights_pair(graph, node)
    if pair is None:
        return [node.input[1]]
    scales = graph.producers.get(pair.input[1])
    return [*pair.input, *(scales.input if scales is not None else ())]


def apply(graph: Graph) -> None:
    """Write the graph's nodes back into its model; drop unused initializers, and inferred shapes."""
    model, nodes = graph.model, list(graph.nodes)
    used = {name for node in nodes for name in reads(node)}
    initializers = [initializer for initializer in model.graph.initializer if initializer.name in used]
    dropped = {initializer.name for initializer in model.graph.initializer} - used
    # Old exporters list initializers as inputs, too; without an initializer, the input would have to be fed.
    inputs = [value for value in model.graph.input if value.name not in dropped]
    del model.graph.node[:], model.graph.initializer[:], model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(inputs)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)

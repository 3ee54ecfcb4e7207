"""Changes to an ONNX graph: names, parameters of its own for each layer, and quantizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgekd.compress.quantization.layers import attributes, bias_of_product, is_dfl, is_layer
from edgekd.compress.quantization.placement import Placement
from edgekd.compress.quantization.reconstruct import Stored
from edgekd.core.formats.nvfp4 import Nvfp4
from edgekd.graph import nvfp4
from edgekd.graph.view import Graph


def name_nodes(model: Any) -> None:
    """Names for nodes that have none: placement speaks of nodes by name."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}" if f"{node.op_type}_{index}" not in taken else f"edgekd_{index}"


def own_parameters(model: Any) -> None:
    """Give every layer weights that no other reads, and a bias where its node takes one: each is decided for itself.

    A Gemm then takes its weights as [O, K], and has no factors.
    """
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
            addition, at = graph.consumers(node.output[0])[0]
            _own(graph, addition, [1 - at])
        _own(graph, node, range(1, len(node.input)))


def _plain_gemm(graph: Graph, node: Any) -> None:
    """Weights as [O, K] without factors, and a bias [O]; a Gemm that cannot be written so stays as it is."""
    from onnx import helper

    said = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **attributes(node)}
    weights = graph.constant(node.input[1])
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.float32)
    assert weights is not None, "so are layers told from other products"
    weights = weights if said["transB"] else weights.T
    if said["transA"] or weights.dtype != np.float32 or bias is None:
        return
    if bias.size not in (1, len(weights)) or bias.size != max((1, *bias.shape[-1:])):
        return
    del node.attribute[:], node.input[1:]
    node.attribute.append(helper.make_attribute("transB", 1))
    node.input.extend([f"{node.name}/weights", f"{node.name}/bias"])
    _add_initializer(graph, node.input[1], np.ascontiguousarray(weights * np.float32(said["alpha"])))
    _add_initializer(
        graph, node.input[2], np.broadcast_to(bias.ravel() * np.float32(said["beta"]), len(weights)).copy()
    )


def _own(graph: Graph, node: Any, places: Iterable[int]) -> None:
    """Copies of a node's constants at some of its inputs, where other nodes read them, too."""
    for index in places:
        name = node.input[index]
        value = graph.constant(name)
        if value is not None and len(graph.consumers(name)) > 1:
            node.input[index] = f"{name}/{node.name}"
            _add_initializer(graph, node.input[index], value)


def _add_initializer(graph: Graph, name: str, value: np.ndarray) -> None:
    from onnx import numpy_helper

    graph.model.graph.initializer.append(numpy_helper.from_array(value, name))


def insert_activation_pairs(graph: Graph, placement: Placement, scales: Mapping[str, float]) -> None:
    """One QuantizeLinear/DequantizeLinear pair per quantized tensor; the placement's edges read its output."""
    from onnx import helper, numpy_helper

    pairs: dict[str, list[Any]] = {}
    for name in placement.quantized:
        scale, zero = f"{name}/scale", f"{name}/zero_point"
        graph.model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(scales[name], np.float32), scale),
                numpy_helper.from_array(np.array(0, np.int8), zero),
            ]
        )
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
    """Replace weights by what stores them and by DequantizeLinear nodes, by name of the layer.

    Outputs come first for every layer, so that all are packed alike; what a MatMul takes is turned behind it.
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
    """Nodes that give the weights as `stem`/dq, and the initializers they read."""
    from onnx import helper, numpy_helper

    if isinstance(stored, Nvfp4):
        return nvfp4.dequantizers(stored, stem)
    names = [f"{stem}/{part}" for part in ("int8", "scale", "zero_point")]
    values = (*stored, np.zeros(len(stored[1]), np.int8))
    node = helper.make_node("DequantizeLinear", names, [f"{stem}/dq"], f"{stem}/dequantize", axis=0)
    return [node], list(map(numpy_helper.from_array, values, names))


def weights_pair(graph: Graph, node: Any) -> Any | None:
    """The DequantizeLinear that `store_weights` gave a layer; None for one with float weights."""
    found = graph.producer(node.input[1])
    if found is not None and found.op_type == "Transpose":
        found = graph.producer(found.input[0])
    return found if found is not None and found.op_type == "DequantizeLinear" else None


def stored_names(graph: Graph, node: Any) -> list[str]:
    """The initializers that hold a layer's weights, however they are stored."""
    pair = weights_pair(graph, node)
    if pair is None:
        return [node.input[1]]
    scales = graph.producer(pair.input[1])
    return [*pair.input, *(scales.input if scales is not None else ())]


def apply(graph: Graph) -> None:
    """Put the nodes as they are now into the model, and drop the initializers and shapes that nothing refers to."""
    model, nodes = graph.model, list(graph.nodes)
    used = {name for node in nodes for name in node.input}
    initializers = [initializer for initializer in model.graph.initializer if initializer.name in used]
    dropped = {initializer.name for initializer in model.graph.initializer} - used
    # Old exporters list initializers as inputs, too: without its value, one would have to be fed.
    inputs = [value for value in model.graph.input if value.name not in dropped]
    del model.graph.node[:], model.graph.initializer[:], model.graph.input[:], model.graph.value_info[:]
    model.graph.input.extend(inputs)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)

"""Changes to an ONNX graph: names, parameters of its own for each convolution, and quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekd.compress.graph import Graph
from edgekd.compress.placement import Placement, is_dfl


def name_nodes(model: Any) -> None:
    """Names for nodes that have none: placement speaks of nodes by name."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}" if f"{node.op_type}_{index}" not in taken else f"edgekd_{index}"


def own_parameters(model: Any) -> None:
    """Give every convolution weights that no other reads, and a bias: each is decided for itself."""
    from onnx import numpy_helper

    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type != "Conv" or is_dfl(graph, node):
            continue
        weights = graph.constant(node.input[1])
        if len(node.input) == 2 and weights is not None:
            node.input.append(f"{node.name}/bias")
            zeros = np.zeros(len(weights), np.float32)
            model.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
        for index, name in enumerate(node.input[1:], start=1):
            value = graph.constant(name)
            if value is not None and len(graph.consumers(name)) > 1:
                node.input[index] = f"{name}/{node.name}"
                model.graph.initializer.append(numpy_helper.from_array(value, node.input[index]))


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


def store_weights(graph: Graph, stored: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Replace weights by INT8 codes [O, ...], scales float32 [O] and a DequantizeLinear, by name of the convolution."""
    from onnx import helper, numpy_helper

    ordered = []
    for node in graph.nodes:
        if node.name in stored:
            codes, scales = stored[node.name]
            stem = f"{node.input[1]}/{node.name}"
            names = [f"{stem}/{part}" for part in ("int8", "scale", "zero_point")]
            values = (codes, scales, np.zeros(len(scales), np.int8))
            graph.model.graph.initializer.extend(map(numpy_helper.from_array, values, names))
            ordered.append(helper.make_node("DequantizeLinear", names, [f"{stem}/dq"], f"{stem}/dequantize", axis=0))
            node.input[1] = f"{stem}/dq"
        ordered.append(node)
    graph.nodes = ordered


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

"""Tap points: the tensors at which a network's activations are read, and the layers that its heads read.

They are found in the float graph, and are valid for graphs derived from it, because quantization and half precision
keep the names of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgekd.compress.quantization.layers import bias_of_product, is_dfl, is_layer
from edgekd.compress.quantization.layerwise import shapes_of
from edgekd.compress.quantization.sensitivity_4bit import last_products
from edgekd.graph.view import Graph

UNARY = frozenset("Clip Elu Gelu HardSwish LeakyRelu Mish PRelu Relu Selu Softplus Swish Tanh".split())
GATES = frozenset(("Sigmoid", "HardSigmoid"))
MAX_LEVELS = 3
"""Number of levels whose heads are analysed: those with the largest feature maps."""


@dataclass(frozen=True)
class TapPoint:
    """A layer, identified by the tensor that it writes.

    activated: the tensor after its bias and activation function; channels_last: True for a matrix product.
    """

    output: str
    activated: str
    channels_last: bool


def tap_points(graph: Graph) -> tuple[TapPoint, ...]:
    """Return the layers with weights, in graph order."""
    return tuple(
        TapPoint(node.output[0], _activated(graph, node), channels_last=node.op_type != "Conv")
        for node in graph.nodes
        if is_layer(graph, node) and not is_dfl(graph, node)
    )


def _activated(graph: Graph, node: Any) -> str:
    """Return the tensor after bias and activation, also x * sigmoid(x), unless other nodes read the layer, too."""
    name: str = node.output[0]
    if node.op_type == "MatMul" and bias_of_product(graph, node) is not None:
        name = graph.consumers(name)[0][0].output[0]
    readers = {id(reader): reader for reader, _ in graph.consumers(name)}.values()
    if len(readers) == 1 and (reader := next(iter(readers))).op_type in UNARY:
        return str(reader.output[0])
    gates = [reader for reader in readers if reader.op_type in GATES]
    products = [reader for reader in readers if reader.op_type == "Mul"]
    if len(readers) == 2 and len(gates) == len(products) == 1 and gates[0].output[0] in products[0].input:
        return str(products[0].output[0])
    return name


def head_inputs(graph: Graph) -> tuple[TapPoint, ...]:
    """Return the last layer that the heads of each level have in common, in graph order, for the finest levels.

    A head is a last convolution; heads that write maps of one size are of one level. Empty for a network that ends in
    matrix products.
    """
    shapes = shapes_of(graph)
    levels: dict[tuple[int, ...], list[str]] = {}
    for name in last_products(graph):
        if len(shape := shapes.get(name, ())) == 4:
            levels.setdefault(shape[2:], []).append(name)
    points = {point.output: point for point in tap_points(graph)}  # in graph order
    last_common = set()
    for _, heads in sorted(levels.items(), reverse=True)[:MAX_LEVELS]:
        common = set.intersection(*(_ancestors(graph, head, points) for head in heads))
        last_common |= set([name for name in points if name in common and len(shapes.get(name, ())) == 4][-1:])
    return tuple(point for name, point in points.items() if name in last_common)


def _ancestors(graph: Graph, tensor: str, layers: Iterable[str]) -> set[str]:
    """Return the layers that a tensor depends on, without the one that writes it; itself where there are none."""
    visited, waiting = set(), [tensor]
    while waiting:
        node = graph.producers.get(waiting.pop())
        for name in graph.activations(node) if node is not None else ():
            if name not in visited:
                visited.add(name)
                waiting.append(name)
    return visited.intersection(layers) or {tensor}

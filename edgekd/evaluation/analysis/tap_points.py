"""Where to look into a network: the tensor that shows a layer at work, and the layers that its heads read.

Both are found in the float graph, by its edges, and hold for what was made of it: quantizing and halving a graph keep
the names of its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgekd.compress.quantization.layers import bias_of_product, is_dfl, is_layer
from edgekd.compress.quantization.sensitivity_4bit import last_products
from edgekd.graph.view import Graph

UNARY = frozenset("Clip Elu Gelu HardSwish LeakyRelu Mish PRelu Relu Selu Softplus Swish Tanh".split())
GATES = frozenset(("Sigmoid", "HardSigmoid"))


@dataclass(frozen=True)
class Place:
    """A layer, by the name of the tensor that it writes; `shown`, the tensor behind its activation.

    rows: whether its outputs are the last axis, as a matrix product's are.
    """

    output: str
    shown: str
    rows: bool


def places(graph: Graph) -> tuple[Place, ...]:
    """The layers with weights, in graph order."""
    found = []
    for node in graph.nodes:
        if is_layer(graph, node) and not is_dfl(graph, node):
            rows = node.op_type != "Conv"
            found.append(Place(node.output[0], _activated(graph, node), rows))
    return tuple(found)


def _activated(graph: Graph, node: Any) -> str:
    """The tensor behind bias and activation, where those and nothing else read the layer: x * sigmoid(x) counts."""
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


def read_by_heads(graph: Graph, most: int = 3) -> tuple[Place, ...]:
    """The last layers that the heads of each level have in common, in graph order: what a detector decides by.

    A head is a last convolution; those that write maps of one size are of one level. At most so many levels, the finest
    ones; none for a network that ends in products.
    """
    from edgekd.compress.quantization.layerwise import shapes_of

    shapes = shapes_of(graph)
    levels: dict[tuple[int, ...], list[str]] = {}
    for name in last_products(graph):
        if len(shape := shapes.get(name, ())) == 4:
            levels.setdefault(shape[2:], []).append(name)
    known = {place.output: place for place in places(graph)}  # in graph order
    found = set()
    for _, ends in sorted(levels.items(), reverse=True)[:most]:
        common = set.intersection(*(_before(graph, end, known) for end in ends))
        found |= set([name for name in known if name in common and len(shapes.get(name, ())) == 4][-1:])
    return tuple(place for name, place in known.items() if name in found)


def _before(graph: Graph, tensor: str, known: Iterable[str]) -> set[str]:
    """The layers whose outputs a tensor depends on, but for the one that writes it; itself where it is the first."""
    layers, passed, waiting = set(known), set(), [tensor]
    while waiting:
        node = graph.producer(waiting.pop())
        for name in graph.activations(node) if node is not None else ():
            if name not in passed:
                passed.add(name)
                waiting.append(name)
    return (passed & layers) or {tensor}

"""Placement of quantizers: rules on the graph alone, based on TensorRT's documented behaviour.

- Layers (convolutions, and products with constant matrices) run in INT8: their data input and their weights are
  quantized, their output is not, so that bias and activation fuse into the layer and the next quantizer becomes its
  output type.
- The last layers before boxes and scores, and all later nodes (DFL, sigmoid, box decoding), stay float: one INT8 step
  there is many pixels.
- A residual addition reads a convolution's quantized input, so that convolution and addition become one INT8 kernel.
  Sums around products stay float: INT8 in the residual stream costs transformers accuracy.
- Tensors joined by layers that only move values (Concat, Resize, MaxPool, ...) share one scale: TensorRT moves
  quantizers across such a layer only when the scales on both sides agree.
Sources: TensorRT developer guide, "Working with Quantized Types"; NVIDIA-AI-IOT/yolo_deepstream, yolov7_qat guide.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.compress.quantization.layers import is_dfl, is_layer
from edgekd.graph.view import Graph, reads

CUTS_VALUES = frozenset(("Slice", "Split"))
"""Operators whose outputs are slices of their input."""
MOVES_VALUES = CUTS_VALUES | frozenset(
    ("Concat", "Flatten", "Identity", "MaxPool", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze")
)
"""Operators that only move values."""


@dataclass(frozen=True)
class QuantizerPlacement:
    """The quantized layers and activations.

    layers: names of the nodes with INT8 weights; edges: (node name, input index) that read a quantized activation;
    quantized: names of the quantized activations; groups: tensors that share a scale, each with at least one quantized
    tensor.
    """

    layers: tuple[str, ...]
    edges: tuple[tuple[str, int], ...]
    quantized: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]


def place(graph: Graph, keep_float: Collection[str] = ()) -> QuantizerPlacement:
    """Place the quantizers of a float network; the layers named in `keep_float` stay float."""
    head = float_head(graph).union(keep_float)
    layers = [node for node in graph.nodes if is_layer(graph, node) and node.name not in head]
    edges = [(node.name, 0) for node in layers]
    quantized = list(dict.fromkeys(node.input[0] for node in layers))
    convolved = {node.input[0] for node in layers if node.op_type == "Conv"}
    for node in graph.nodes:
        if node.op_type == "Add" and node.name not in head:
            skip = _skip_input(graph, node, convolved)
            edges += [] if skip is None else [(node.name, skip)]
    return QuantizerPlacement(
        layers=tuple(node.name for node in layers),
        edges=tuple(edges),
        quantized=tuple(quantized),
        groups=shared_scales(graph, quantized),
    )


def float_head(graph: Graph) -> set[str]:
    """Return the names of the last layers before the outputs, and of all later nodes.

    DFL is a layer itself (weights 0..15 for 16 probabilities); the search passes through it.
    """
    head: set[str] = set()
    waiting = [node for name in graph.outputs if (node := graph.producers.get(name)) is not None]
    while waiting:
        node = waiting.pop()
        if node.name in head:
            continue
        head.add(node.name)
        if not is_layer(graph, node) or is_dfl(graph, node):
            waiting.extend(graph.producers[name] for name in reads(node) if name in graph.producers)
    return head


def _skip_input(graph: Graph, node: Any, convolved: set[str]) -> int | None:
    """Return the index of an addition's skip input, quantized for a convolution anyway; the one with most readers."""
    if len(graph.activations(node)) != 2:
        return None
    candidates = [index for index, name in enumerate(node.input) if name in convolved]
    return max(candidates, key=lambda index: len(graph.consumers(node.input[index])), default=None)


def shared_scales(
    graph: Graph, quantized: Sequence[str], moving: Collection[str] = MOVES_VALUES
) -> tuple[tuple[str, ...], ...]:
    """Group tensors that are joined by nodes of the operators `moving`; only groups with a quantized tensor."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for name in quantized:
        root(name)
    for node in graph.nodes:
        if node.op_type in moving:
            # Of operators other than Concat, only the first input is values; the rest are shapes and indices.
            moved = graph.activations(node) if node.op_type == "Concat" else list(node.input[:1])
            for name in filter(None, [*moved, *node.output]):  # an omitted output has no name
                parent[root(name)] = root(node.output[0])
    members: dict[str, list[str]] = {}
    for name in list(parent):
        members.setdefault(root(name), []).append(name)
    return tuple(tuple(group) for group in members.values() if not set(quantized).isdisjoint(group))

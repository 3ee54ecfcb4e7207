"""Where quantization goes: rules on the graph alone, after TensorRT's documented behaviour.

- Convolutions run in INT8: their data input and their weights are quantized, their output is not, so that bias and
  activation fuse into the convolution and the next quantizer becomes its output type.
- The convolutions that give the final boxes and scores, and all that follows them (DFL, sigmoid, box decoding), stay
  float: one INT8 step there is many pixels.
- A residual addition reads its skip branch quantized, so that convolution and addition become one INT8 kernel.
- Tensors joined by layers that only move values (Concat, Resize, MaxPool, ...) share one scale: TensorRT moves
  quantizers across such a layer only when the scales on both sides agree.
Sources: TensorRT developer guide, "Working with Quantized Types"; NVIDIA-AI-IOT/yolo_deepstream, yolov7_qat guide.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgekd.compress.graph import Graph

_MOVES_VALUES = {"Concat", "Flatten", "Identity", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze"} | {
    "Transpose",
    "Unsqueeze",
}


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    convolutions: names of the Conv nodes with INT8 weights; edges: (node name, input index) that read a quantized
    activation; groups: tensors that share a scale, each with at least one quantized tensor in it.
    """

    convolutions: tuple[str, ...]
    edges: tuple[tuple[str, int], ...]
    quantized: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]


def place(graph: Graph, keep_float: Collection[str] = ()) -> Placement:
    """Where the quantizers of a float detector go; the convolutions named in `keep_float` get none."""
    head = float_head(graph).union(keep_float)
    convolutions = [node for node in graph.nodes if node.op_type == "Conv" and node.name not in head]
    edges = [(node.name, 0) for node in convolutions]
    quantized = list(dict.fromkeys(node.input[0] for node in convolutions))
    for node in graph.nodes:
        if node.op_type == "Add" and node.name not in head:
            skip = _skip_input(graph, node, set(quantized))
            edges += [] if skip is None else [(node.name, skip)]
    return Placement(
        convolutions=tuple(node.name for node in convolutions),
        edges=tuple(edges),
        quantized=tuple(quantized),
        groups=_groups(graph, quantized),
    )


def float_head(graph: Graph) -> set[str]:
    """Names of the last convolutions before the outputs and of all nodes behind them.

    DFL is itself a convolution (of 16 probabilities with 0..15); the search goes through it.
    """
    head: set[str] = set()
    waiting = [node for name in graph.outputs if (node := graph.producer(name)) is not None]
    while waiting:
        node = waiting.pop()
        if node.name in head:
            continue
        head.add(node.name)
        if node.op_type != "Conv" or is_dfl(graph, node):
            waiting.extend(graph.upstream(node))
    return head


def is_dfl(graph: Graph, node: Any) -> bool:
    """Whether a convolution is the fixed sum of distances in Distribution Focal Loss (weights 0, 1, 2, ...)."""
    weights = graph.constant(node.input[1])
    if weights is None or weights.shape[0] != 1:
        return False
    values = weights.ravel()
    return bool((values == range(len(values))).all())


def _skip_input(graph: Graph, node: Any, quantized: set[str]) -> int | None:
    """Which input of an addition is the skip branch: quantized anyway, and read by others too."""
    if len(graph.activations(node)) != 2:
        return None
    candidates = [index for index, name in enumerate(node.input) if name in quantized]
    return max(candidates, key=lambda index: len(graph.consumers(node.input[index])), default=None)


def _groups(graph: Graph, quantized: list[str]) -> tuple[tuple[str, ...], ...]:
    """Tensors joined by value-moving nodes, in graph order; only groups in which something is quantized."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for name in quantized:
        root(name)
    for node in graph.nodes:
        if node.op_type in _MOVES_VALUES:
            # Only the first input of the others carries values; the rest are shapes and indices.
            moved = graph.activations(node) if node.op_type == "Concat" else list(node.input[:1])
            for name in [*moved, *node.output]:
                parent[root(name)] = root(node.output[0])
    members: dict[str, list[str]] = {}
    for name in list(parent):
        members.setdefault(root(name), []).append(name)
    return tuple(tuple(group) for group in members.values() if not set(quantized).isdisjoint(group))

"""Layer-by-layer execution of a graph over several frames, so that a layer's weights can be computed from its input.

A node's level is the number of layers and selections on the longest path to it. Tensors are kept until the last level
that reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.compress.quantization.layers import is_layer
from edgekd.graph.session import part_session
from edgekd.graph.view import Graph, reads

SOURCE = 0
"""The level of the graph's input, and of tensors computed from it before any layer."""
SELECTS = ("TopK",)
"""Operators whose outputs are in the order of values; their readers are at a later level."""


class Walk:
    """The tensors of `graph` over frames float32 [1, 3, h, w], up to the current level.

    Memory: the tensors that cross from one level to the next, for each frame.
    """

    def __init__(self, graph: Graph, frames: Sequence[np.ndarray]) -> None:
        self._graph = graph
        self._levels = levels_of(graph)
        self._initializers = {each.name: each for each in graph.model.graph.initializer}
        self._last_read = _last_read(graph, self._levels)
        frame = graph.model.graph.input[0].name
        self._tensors: list[dict[str, np.ndarray]] = [{frame: each} for each in frames]
        self.advance(SOURCE)

    def values(self, tensor: str) -> list[np.ndarray]:
        """Return a tensor for each frame; it must be from a level up to the current one, and be read by a later one."""
        return [tensors[tensor] for tensors in self._tensors]

    def replace(self, name: str, value: np.ndarray) -> None:
        """Change an initializer, which no earlier level may have read."""
        from onnx import numpy_helper

        self._initializers[name].CopyFrom(numpy_helper.from_array(value, name))

    def select_as(self, other: Walk) -> None:
        """Copy the selections of another walk at the same level, so that rows of tensors refer to the same positions.

        A small difference of values can change which queries a transformer selects, and their order.
        """
        for node in self._graph.of(*SELECTS):
            for name in node.output:
                for tensors, others in zip(self._tensors, other._tensors, strict=True):
                    if name in tensors and name in others:
                        tensors[name] = others[name]

    def advance(self, level: int) -> None:
        """Compute the nodes of a level, for every frame."""
        nodes = [node for node in self._graph.nodes if self._levels[node.name] == level]
        made = {name: None for node in nodes for name in node.output if name}
        read = dict.fromkeys(name for node in nodes for name in reads(node) if name not in made)
        inputs = [name for name in read if name not in self._initializers]
        outputs = [name for name in made if self._last_read.get(name, 0) > level]
        constants = [self._initializers[name] for name in read if name in self._initializers]
        samples = {name: self._tensors[0][name] for name in inputs}
        if outputs:
            session = part_session(self._graph.model, nodes, constants, samples, outputs, spinning=False)
            for tensors in self._tensors:
                values = session.run(outputs, {name: tensors[name] for name in inputs})
                tensors.update(zip(outputs, values, strict=True))
        for tensors in self._tensors:
            for name in [name for name in tensors if self._last_read.get(name, 0) <= level]:
                del tensors[name]


def bytes_per_frame(graph: Graph) -> int:
    """Return the peak size in bytes of one frame's tensors between two levels, at 4 bytes per element."""
    levels = levels_of(graph)
    made = {name: levels[node.name] for node in graph.nodes for name in node.output}
    read = _last_read(graph, levels)
    alive = np.zeros(max(levels.values(), default=SOURCE) + 1, np.int64)
    for name, shape in shapes_of(graph).items():
        alive[made.get(name, SOURCE) : read.get(name, SOURCE)] += 4 * int(np.prod(shape))
    return int(alive.max())


def shapes_of(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs and computed tensors, by name; 0 for a dimension that cannot be inferred."""
    import onnx

    described = onnx.shape_inference.infer_shapes(graph.model).graph
    values = [*described.input, *described.value_info, *described.output]
    return {value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim) for value in values}


def _last_read(graph: Graph, levels: dict[str, int]) -> dict[str, int]:
    """Return the last level that reads each tensor; for the graph's outputs the highest level + 1."""
    last = dict.fromkeys(graph.outputs, max(levels.values(), default=SOURCE) + 1)
    for node in graph.nodes:
        for name in reads(node):
            last[name] = max(last.get(name, SOURCE), levels[node.name])
    return last


def levels_of(graph: Graph) -> dict[str, int]:
    """Return the level of every node, by name. Nodes are in topological order."""
    tensors: dict[str, int] = {}
    levels: dict[str, int] = {}
    for node in graph.nodes:
        before = max((tensors.get(name, SOURCE) for name in reads(node)), default=SOURCE)
        levels[node.name] = before + is_layer(graph, node)
        tensors.update(dict.fromkeys(node.output, levels[node.name] + (node.op_type in SELECTS)))
    return levels

"""An ONNX graph with its edges looked up: who makes a tensor, who reads it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np


class Graph:
    """A view of a ModelProto. Rebuild it after changing the model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.outputs: list[str] = [value.name for value in model.graph.output]
        self._initializers = {initializer.name: initializer for initializer in model.graph.initializer}
        self._producers = {output: node for node in self.nodes for output in node.output}
        self._consumers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self._consumers[name].append((node, index))

    def producer(self, tensor: str) -> Any | None:
        """The node that makes a tensor; None for graph inputs and initializers."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[tuple[Any, int]]:
        """The nodes that read a tensor, each with the index of the input."""
        return self._consumers.get(tensor, [])

    def activations(self, node: Any) -> list[str]:
        """The inputs of a node that depend on the frame."""
        return [name for name in node.input if name and name not in self._initializers]

    def constant(self, tensor: str) -> np.ndarray | None:
        """The value of an initializer; None for anything else."""
        from onnx import numpy_helper

        found = self._initializers.get(tensor)
        return None if found is None else numpy_helper.to_array(found)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of an initializer; None for anything else."""
        found = self._initializers.get(tensor)
        return None if found is None else tuple(found.dims)

    def upstream(self, node: Any) -> list[Any]:
        """The nodes that feed a node directly."""
        return [found for name in node.input if (found := self._producers.get(name)) is not None]

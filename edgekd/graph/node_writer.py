"""Build nodes to add at the beginning or the end of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class NodeWriter:
    """Collects new nodes and initializers for a graph. prefix: of all their names."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._prefix = prefix

    def add(self, operator: str, inputs: Sequence[str | np.ndarray], *, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; arrays among the inputs become initializers. Return the name of its last output."""
        import onnx

        node = f"{self._prefix}.{len(self.nodes)}.{operator}"
        names = []
        for index, value in enumerate(inputs):
            if not isinstance(value, str):
                self.constants.append(onnx.numpy_helper.from_array(value, f"{node}.input{index}"))
            names.append(value if isinstance(value, str) else f"{node}.input{index}")
        written = [f"{node}.output{index}" for index in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, names, written, node, **attributes))
        return written[-1]

    def reshape(self, tensor: str, *shape: int) -> str:
        """Add a Reshape. Return the name of its output."""
        return self.add("Reshape", [tensor, np.array(shape, np.int64)])

    def slice(self, tensor: str, begin: int, end: int, axis: int = 1) -> str:
        """Add a Slice from `begin` to `end` (excluded) along an axis. Return the name of its output."""
        return self.add("Slice", [tensor, *(np.array([value], np.int64) for value in (begin, end, axis))])

    def rename_last(self, name: str) -> None:
        """Rename the output of the last node."""
        self.nodes[-1].output[0] = name

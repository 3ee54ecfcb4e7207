"""Output noise: the error of a version of a detector relative to its float graph, measured without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.quantization.sensitivity_4bit import last_products, relative_error
from edgekd.graph.model_file import read_model
from edgekd.graph.nvfp4 import expanded
from edgekd.graph.session import cpu_session
from edgekd.graph.view import Graph


class ReferenceOutputs:
    """The outputs of a float graph's last convolutions and matrix products on frames float32 [1, 3, h, w].

    They are before sigmoid, box decoding and selection, so every position of every frame counts: their noise needs no
    labels, and depends little on the choice of images.
    """

    def __init__(self, graph: Path, frames: Sequence[np.ndarray]) -> None:
        model = read_model(graph)
        self._frames = frames
        self._ends = last_products(Graph(model))
        self._expected = self._values(model)

    def noise(self, graph: Path) -> float | None:
        """Return the noise-to-signal power ratio of another version of the graph, a mean over these layers.

        None for a graph with other names of tensors.
        """
        model = expanded(read_model(graph))
        made = {name for node in model.graph.node for name in node.output}
        if not made.issuperset(self._ends):
            return None
        pairs = zip(zip(*self._expected, strict=True), zip(*self._values(model), strict=True), strict=True)
        return float(np.mean([relative_error(expected, values) for expected, values in pairs]))

    def _values(self, model: Any) -> list[list[np.ndarray]]:
        from onnx import ValueInfoProto

        source = model.graph.input[0].name
        del model.graph.output[:]
        model.graph.output.extend(ValueInfoProto(name=name) for name in self._ends)
        session = cpu_session(model)
        return [session.run(list(self._ends), {source: frame}) for frame in self._frames]

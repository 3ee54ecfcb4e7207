"""The best candidates of a detector selected in its graph, so that a few hundred rows leave the GPU and not thousands.

The output keeps its format with fewer candidates. Shapes are static, and no node suppresses: that is left to the host,
which has few rows to compare then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgekd.core.detection.types import NO_GRID, Head
from edgekd.graph.node_writer import NodeWriter
from edgekd.graph.view import Graph, opset_of

MAX_CANDIDATES = 300
"""Candidates that are kept of a frame: as many as detections of a frame in COCO's protocol of Ultralytics."""
_AXES_INPUT_SINCE = 18  # opset in which axes of ReduceMax became an input


def keep_best(model: Any, head: Head, classes: int, count: int = MAX_CANDIDATES) -> Head:
    """Keep the `count` candidates of highest score of an output `yolo` [1, 4 + classes, n], in place; return its head.

    A graph that has no more of them is not changed. The order of candidates no longer has a meaning.
    """
    (output,) = model.graph.output
    shape = Graph(model).shapes[output.name]
    if shape[2] is None or shape[2] <= count:
        return head
    candidates = f"{output.name}.candidates"
    for node in model.graph.node:
        node.output[:] = [candidates if name == output.name else name for name in node.output]
        node.input[:] = [candidates if name == output.name else name for name in node.input]
    writer = NodeWriter("edgekd.selection")
    scores, axes = writer.slice(candidates, 4, 4 + classes), np.array([1], np.int64)
    if opset_of(model) < _AXES_INPUT_SINCE:
        best = writer.add("ReduceMax", [scores], axes=axes.tolist(), keepdims=0)
    else:
        best = writer.add("ReduceMax", [scores, axes], keepdims=0)
    indices = writer.add("TopK", [best, np.array([count], np.int64)], outputs=2, axis=1)
    writer.add("Gather", [candidates, writer.reshape(indices, count)], axis=2)
    writer.rename_last(output.name)
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants)
    output.type.tensor_type.shape.dim[2].dim_value = count
    return replace(head, strides=NO_GRID)

"""Select a detector's best candidates in its graph, so that a few hundred rows leave the GPU instead of thousands.

The output keeps its format, with fewer candidates. Shapes are static. NMS is not part of the graph: the host runs it,
on the few rows that are left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgekd.core.detection.types import NO_GRID, Head
from edgekd.graph.node_writer import NodeWriter
from edgekd.graph.view import Graph, opset_of

FINAL = 300
"""Candidates that are kept for heads without NMS: as many as `Thresholds.max_detections`, so that none is lost."""
BEFORE_NMS = 1000
"""Candidates that are kept for heads with NMS. YOLO11n lost 0.002 mAP50-95 with 300 on 128 COCO images, 0 with 1000."""
_AXES_INPUT_SINCE = 18  # opset in which axes of ReduceMax became an input


def keep_best(model: Any, head: Head, classes: int, *, several: bool = False) -> Head:
    """Keep only the candidates of highest score of an output `yolo` [1, 4 + classes, n], in place; return its head.

    A graph with no more candidates than are kept is not changed. The order of candidates no longer implies their
    positions (`strides` is NO_GRID). Prototypes of masks stay after the candidates.

    several: select separately for each frame of a batch, with GatherElements in place of Gather.
    """
    count = BEFORE_NMS if head.nms else FINAL
    (output,) = model.graph.output
    shape = Graph(model).shapes[output.name]
    pixels = head.masks.height * head.masks.width if head.masks else 0
    if shape[2] is None or shape[2] - pixels <= count:
        return head
    candidates = f"{output.name}.candidates"
    for node in model.graph.node:
        node.output[:] = [candidates if name == output.name else name for name in node.output]
        node.input[:] = [candidates if name == output.name else name for name in node.input]
    writer = NodeWriter("edgekd.selection")
    scores, axes = writer.slice(candidates, 4, 4 + classes), np.array([1], np.int64)
    if pixels:
        scores = writer.slice(scores, 0, shape[2] - pixels, axis=2)
    if opset_of(model) < _AXES_INPUT_SINCE:
        best = writer.add("ReduceMax", [scores], axes=axes.tolist(), keepdims=0)
    else:
        best = writer.add("ReduceMax", [scores, axes], keepdims=0)
    indices = writer.add("TopK", [best, np.array([count], np.int64)], outputs=2, axis=1)
    if several:
        columns = writer.add("Expand", [writer.reshape(indices, 1, 1, count), np.array([1, shape[1], 1])])
        chosen = writer.add("GatherElements", [candidates, columns], axis=2)
        if pixels:
            writer.add("Concat", [chosen, writer.slice(candidates, shape[2] - pixels, shape[2], axis=2)], axis=2)
    else:
        columns = writer.reshape(indices, count)
        if pixels:
            columns = writer.add("Concat", [columns, np.arange(shape[2] - pixels, shape[2])], axis=0)
        writer.add("Gather", [candidates, columns], axis=2)
    writer.rename_last(output.name)
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants)
    output.type.tensor_type.shape.dim[2].dim_value = count + pixels
    return replace(head, strides=NO_GRID)

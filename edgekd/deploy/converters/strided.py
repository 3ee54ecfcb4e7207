"""Replace strided slices by equivalent convolutions, for runtimes without them.

YOLOX's first layer slices every second row and column; ncnn's and pnnx's Slice has no step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.quantization.layerwise import shapes_of
from edgekd.graph.model_file import read_model
from edgekd.graph.view import Graph

_ROWS, _COLUMNS = 2, 3


def without_strided_slices(source: Path, out: Path) -> int:
    """Write an ONNX graph with depthwise convolutions in place of strided slices; return their number."""
    import onnx
    from onnx import helper, numpy_helper

    model = read_model(source)
    graph = Graph(model)
    shapes = shapes_of(graph)
    replaced = 0
    for node in graph.nodes:
        kernel = _kernel(node, graph, shapes)
        if kernel is None:
            continue
        name = f"{node.output[0]}.kernel"
        strides = list(kernel.shape[2:])
        convolution = helper.make_node(
            "Conv", [node.input[0], name], list(node.output), node.name, group=len(kernel), strides=strides
        )
        node.CopyFrom(convolution)
        model.graph.initializer.append(numpy_helper.from_array(kernel, name))
        replaced += 1
    onnx.save(model, out)
    return replaced


def _kernel(node: Any, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray | None:
    """Return the kernel float32 [channels, 1, h, w] of a slice, with strides h and w; None for any other node."""
    constants = [graph.constant(name) for name in node.input[1:]]
    shape = shapes.get(node.input[0], ())
    if node.op_type != "Slice" or len(constants) != 4 or any(each is None for each in constants):
        return None
    starts, ends, axes, steps = ([int(value) for value in each.reshape(-1)] for each in constants if each is not None)
    if len(shape) != 4 or not shape[1] or not any(step > 1 for step in steps):
        return None
    sliced = {_ROWS: (0, 1), _COLUMNS: (0, 1)}
    for start, end, axis, step in zip(starts, ends, (axis % 4 for axis in axes), steps, strict=True):
        if axis not in sliced or step < 1 or not 0 <= start < step or end < shape[axis] or shape[axis] % step:
            return None
        sliced[axis] = (start, step)
    (row, rows), (column, columns) = sliced[_ROWS], sliced[_COLUMNS]
    kernel = np.zeros((shape[1], 1, rows, columns), np.float32)
    kernel[:, :, row, column] = 1
    return kernel

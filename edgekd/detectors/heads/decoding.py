"""Decoding of raw outputs as part of the graph: ONNX operators that compute one output which the agent can decode.

A network with several outputs, with boxes as distances, distributions, anchors or fractions, becomes one with a single
output of kind `yolo` (boxes in pixels and scores of classes) or `end2end` (finished detections). Parity checks,
quantization, engines, the agent and the C++ parsers support only these kinds. The nodes compute in float: only
convolutions and matrix products are quantized.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekd.core.detection.types import NO_GRID, Head
from edgekd.core.errors import SpecError
from edgekd.detectors.heads.completion import cells
from edgekd.detectors.heads.description import HeadDescription
from edgekd.graph.node_writer import NodeWriter
from edgekd.graph.view import Graph

OUTPUT = "detections"
MAX_LOG_FACTOR = np.array(math.log(1000 / 16), np.float32)
"""Largest logarithm of a side relative to its prior, as in torchvision and mmdetection."""


def append_decoding(model: Any, described: HeadDescription, size: tuple[int, int], where: str) -> Head:
    """Replace the outputs of a graph, in place, by one decoded output; return its head.

    described: a complete description; size: height and width of the input; where: start of error messages. Raises
    SpecError if the shapes of outputs contradict the description.
    """
    import onnx

    writer = _Writer(model, where)
    strides = tuple(round(stride) for stride in described.strides) or NO_GRID
    head = Head("end2end", nms=bool(described.nms), strides=strides)
    if described.labels is not None:
        last = _finished(writer, described, size)
        shape: list[int | str] = [1, "detections", 6]
    else:
        last, count = _candidates(writer, described, size)
        head = Head("yolo", nms=bool(described.nms), strides=strides)
        shape = [1, 4 + count, "boxes"]
    writer.add("Identity", [last])
    writer.rename_last(OUTPUT)
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.constants)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))
    return head


class _Writer(NodeWriter):
    """Collects the nodes of a decoding. shapes: shapes of the graph's tensors."""

    def __init__(self, model: Any, where: str) -> None:
        super().__init__("edgekd.head")
        self.shapes = Graph(model).shapes
        self.where = where

    def columns(self, rows: str, start: int, stop: int) -> str:
        """Return the columns from `start` to `stop` - 1 of rows [1, n, c]."""
        limits = [np.array([value], np.int64) for value in (start, stop, 2)]
        return self.add("Slice", [rows, *limits])

    def joined(self, tensors: Sequence[str], axis: int) -> str:
        return self.add("Concat", tensors, axis=axis) if len(tensors) > 1 else tensors[0]


def _finished(writer: _Writer, described: HeadDescription, size: tuple[int, int]) -> str:
    """Return finished detections [1, n, 6] from boxes, scores and labels."""
    boxes = _box_corners(writer, writer.reshape(described.boxes[0], 1, -1, 4), described, size)
    scores = writer.reshape(described.scores[0], 1, -1, 1)
    labels = writer.add("Cast", [writer.reshape(str(described.labels), 1, -1, 1)], to=1)
    if described.background == "first":
        labels = writer.add("Sub", [labels, np.ones(1, np.float32)])
    if described.class_columns:
        table = np.full(max(described.class_columns) + 2, -1, np.float32)  # the last entry is for all larger numbers
        table[list(described.class_columns)] = np.arange(len(described.class_columns))
        zero, most = np.array(0, np.float32), np.array(len(table) - 1, np.float32)
        known = writer.add("Clip", [labels, zero, most])
        labels = writer.add("Gather", [table, writer.add("Cast", [known], to=7)])
        scores = writer.add("Where", [writer.add("Less", [labels, zero]), zero, scores])
        labels = writer.add("Max", [labels, zero])
    return writer.joined([boxes, scores, labels], 2)


def _candidates(writer: _Writer, described: HeadDescription, size: tuple[int, int]) -> tuple[str, int]:
    """Return an output of kind `yolo`, [1, 4 + classes, n], and the number of classes."""
    width = 4 * (described.bins or 1)
    objectness = ""
    if described.predictions:
        rows, total = _rows(writer, described, described.predictions, None)
        widths = {"boxes": width, "objectness": 1}
        scores_width = total - sum(widths.get(part, 0) for part in described.columns)
        starts = np.cumsum([0, *(widths.get(part, scores_width) for part in described.columns)]).tolist()
        parts = {
            part: writer.columns(rows, start, stop)
            for part, start, stop in zip(described.columns, starts, starts[1:], strict=False)
        }
        boxes, scores, objectness = parts["boxes"], parts["scores"], parts.get("objectness", "")
    else:
        boxes, _ = _rows(writer, described, described.boxes, width)
        scores, scores_width = _rows(writer, described, described.scores, None)
        if described.objectness:
            objectness, _ = _rows(writer, described, described.objectness, 1)
    scores, count = _scores(writer, described, scores, scores_width, objectness)
    boxes = _box_centres(writer, boxes, described, size)
    return writer.add("Transpose", [writer.joined([boxes, scores], 2)], perm=[0, 2, 1]), count


def _rows(writer: _Writer, described: HeadDescription, outputs: Sequence[str], columns: int | None) -> tuple[str, int]:
    """Return the outputs of all levels as rows [1, n, columns], and the number of columns. Raises SpecError."""
    anchors = [len(level) // 2 for level in described.anchors] or [1]
    found = [
        _level_rows(writer, described, name, columns, anchors[min(level, len(anchors) - 1)])
        for level, name in enumerate(outputs)
    ]
    widths = {width for _, width in found}
    if len(widths) != 1:
        raise SpecError(f"{writer.where}: {', '.join(outputs)}", expected="as many columns in each", found=str(widths))
    return writer.joined([rows for rows, _ in found], 1), widths.pop()


def _level_rows(
    writer: _Writer, described: HeadDescription, name: str, columns: int | None, anchors: int
) -> tuple[str, int]:
    """Return one output as rows [1, n, columns], and their number of columns. Raises SpecError.

    columns: expected number, None for any; anchors: number per cell of a map.
    """
    shape = writer.shapes[name]
    if len(shape) == 5:  # [1, anchors, h, w, c]
        width = shape[4] or 0
        rows = writer.reshape(name, 1, -1, width)
    elif len(shape) == 4 and columns is not None and shape[3] == columns != shape[1]:  # [1, h, w, c]
        width = columns
        rows = writer.reshape(name, 1, -1, width)
    elif len(shape) == 4:  # [1, anchors * c, h, w]
        width = (shape[1] or 0) // anchors
        if described.coding == "priors":
            by_cell = writer.add("Transpose", [name], perm=[0, 2, 3, 1])
            return writer.reshape(by_cell, 1, -1, width), width
        flat = writer.reshape(name, 1, anchors, width, -1)
        rows = writer.reshape(writer.add("Transpose", [flat], perm=[0, 1, 3, 2]), 1, -1, width)
    elif len(shape) == 3 and _transposed(shape, columns):  # [1, c, n]
        width = shape[1] or 0
        rows = writer.add("Transpose", [name], perm=[0, 2, 1])
    else:
        width = shape[-1] or 0
        rows = writer.reshape(name, 1, -1, width) if len(shape) == 2 else name
    if not width or columns not in (None, width):
        expected = f"{columns or 'a fixed number of'} columns"
        raise SpecError(f"{writer.where}: output {name}", expected=expected, found=str(list(shape)))
    return rows, width


def _transposed(shape: Sequence[int | None], columns: int | None) -> bool:
    """Return whether an output is [1, c, n]. If the number of columns is unknown, n is the larger dimension."""
    if columns is not None:
        return shape[1] == columns != shape[2]
    return (shape[2] or 0) > (shape[1] or 0)


def _scores(writer: _Writer, described: HeadDescription, scores: str, width: int, objectness: str) -> tuple[str, int]:
    """Return scores of classes [1, n, classes] from 0 to 1, and the number of classes. Raises SpecError."""
    first = 1 if described.background == "first" else 0
    wanted = list(range(first, width - (described.background == "last")))
    if described.class_columns:
        if max(described.class_columns) >= len(wanted):
            expected = f"numbers below {len(wanted)}, the columns of scores without the background"
            found = str(max(described.class_columns))
            raise SpecError(f"{writer.where}: class_columns", expected=expected, found=found)
        wanted = [wanted[column] for column in described.class_columns]
    if described.activation == "softmax":
        scores = writer.add("Softmax", [scores], axis=2)
    if wanted != list(range(width)):
        scores = writer.add("Gather", [scores, np.array(wanted, np.int64)], axis=2)
    if described.activation == "sigmoid":
        scores = writer.add("Sigmoid", [scores])
    if objectness:
        objectness = writer.add("Sigmoid", [objectness]) if described.activation == "sigmoid" else objectness
        scores = writer.add("Mul", [scores, objectness])
    return scores, len(wanted)


def _box_centres(writer: _Writer, boxes: str, described: HeadDescription, size: tuple[int, int]) -> str:
    """Return boxes [1, n, 4] cx, cy, w, h in pixels of the input."""
    if described.coding == "cxcywh":
        return _in_pixels(writer, boxes, described, size)
    if described.coding in ("grid", "anchors"):
        return _grid_boxes(writer, boxes, described, size)
    if described.coding == "priors":
        return _prior_boxes(writer, boxes, described, size)
    first, second = _corners(writer, boxes, described, size)
    half = np.array([0.5], np.float32)
    centre = writer.add("Mul", [writer.add("Add", [first, second]), half])
    return writer.joined([centre, writer.add("Sub", [second, first])], 2)


def _box_corners(writer: _Writer, boxes: str, described: HeadDescription, size: tuple[int, int]) -> str:
    """Return boxes [1, n, 4] x1, y1, x2, y2 in pixels of the input."""
    boxes = _in_pixels(writer, boxes, described, size)
    if described.coding == "xyxy":
        return boxes
    centre, sides = writer.columns(boxes, 0, 2), writer.columns(boxes, 2, 4)
    half = writer.add("Mul", [sides, np.array([0.5], np.float32)])
    return writer.joined([writer.add("Sub", [centre, half]), writer.add("Add", [centre, half])], 2)


def _corners(writer: _Writer, boxes: str, described: HeadDescription, size: tuple[int, int]) -> tuple[str, str]:
    """Return the top left and bottom right corners [1, n, 2] in pixels of boxes with coding `xyxy` or `ltrb`."""
    if described.coding == "xyxy":
        boxes = _in_pixels(writer, boxes, described, size)
        return writer.columns(boxes, 0, 2), writer.columns(boxes, 2, 4)
    bins = described.bins or 1
    if bins > 1:
        likely = writer.add("Softmax", [writer.reshape(boxes, 1, -1, 4, bins)], axis=3)
        weighted = writer.add("Mul", [likely, np.arange(bins, dtype=np.float32)])
        boxes = writer.add("ReduceSum", [weighted, np.array([3], np.int64)], keepdims=0)
    boxes = _in_pixels(writer, boxes, described, size)
    corners, strides = grid(size, described.strides)
    points = corners + (described.cell_offset or 0.0) * strides
    before, after = writer.columns(boxes, 0, 2), writer.columns(boxes, 2, 4)
    return writer.add("Sub", [points, before]), writer.add("Add", [points, after])


def _grid_boxes(writer: _Writer, boxes: str, described: HeadDescription, size: tuple[int, int]) -> str:
    """Return boxes cx, cy, w, h in pixels from positions relative to cells, as in YOLOX and YOLOv5."""
    corners, strides = grid(size, described.strides, len(described.anchors[0]) // 2 if described.anchors else 1)
    if described.coding == "grid":
        centre = writer.add("Mul", [writer.columns(boxes, 0, 2), strides])
        sides = writer.add("Mul", [writer.add("Exp", [writer.columns(boxes, 2, 4)]), strides])
        return writer.joined([writer.add("Add", [centre, corners]), sides], 2)
    if described.activation == "sigmoid":
        boxes = writer.add("Sigmoid", [boxes])
    # Centres are within a cell or half a cell around it; sides are up to four times the anchor's.
    centre = writer.add("Mul", [writer.columns(boxes, 0, 2), 2 * strides])
    doubled = writer.add("Mul", [writer.columns(boxes, 2, 4), np.array([2], np.float32)])
    sides = writer.add("Mul", [writer.add("Mul", [doubled, doubled]), _anchor_sizes(size, described, writer.where)])
    return writer.joined([writer.add("Add", [centre, corners - strides / 2]), sides], 2)


def _prior_boxes(writer: _Writer, boxes: str, described: HeadDescription, size: tuple[int, int]) -> str:
    """Return boxes cx, cy, w, h in pixels from shifts and logarithms relative to priors, as in SSD and RetinaNet."""
    centres, sides = _priors(size, described, writer.where)
    shapes = [writer.shapes[name] for name in described.boxes]
    found = sum(math.prod(side or 0 for side in shape) for shape in shapes) // 4
    if found not in (0, centres.shape[1]):
        expected = f"{centres.shape[1]} boxes, by `strides` and `anchors` for an input of {size[1]}x{size[0]}"
        raise SpecError(f"{writer.where}: anchors", expected=expected, found=str(found))
    of_shifts, of_logarithms = np.array(described.variances or (1.0, 1.0), np.float32)
    shifts = writer.add("Mul", [writer.columns(boxes, 0, 2), of_shifts * sides])
    logarithms = writer.add("Mul", [writer.columns(boxes, 2, 4), np.array([of_logarithms])])
    factors = writer.add("Exp", [writer.add("Min", [logarithms, MAX_LOG_FACTOR])])
    return writer.joined([writer.add("Add", [shifts, centres]), writer.add("Mul", [factors, sides])], 2)


def _priors(size: tuple[int, int], described: HeadDescription, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return centres and sides of priors in pixels, float32 [1, n, 2] each; all priors of a cell are adjacent."""
    if len(described.anchors) != len(described.strides) or any(len(level) % 2 for level in described.anchors):
        expected = f"widths and heights for each of {len(described.strides)} levels"
        raise SpecError(f"{where}: anchors", expected=expected, found=f"{len(described.anchors)} levels")
    centres, sides = [], []
    for stride, level in zip(described.strides, described.anchors, strict=True):
        of_cell = np.array(level, np.float32).reshape(-1, 2)
        corners, _ = grid(size, (stride,))
        centres.append(
            np.repeat(corners[0] + np.float32((described.cell_offset or 0.0) * stride), len(of_cell), axis=0)
        )
        sides.append(np.tile(of_cell, (corners.shape[1], 1)))
    return np.concatenate(centres)[None], np.concatenate(sides)[None]


def _in_pixels(writer: _Writer, boxes: str, described: HeadDescription, size: tuple[int, int]) -> str:
    """Return boxes or distances [1, n, 4] in pixels of the input."""
    if described.unit == "fraction":
        return writer.add("Mul", [boxes, np.array([size[1], size[0]] * 2, np.float32)])
    if described.unit == "cells":
        return writer.add("Mul", [boxes, grid(size, described.strides)[1]])
    return boxes


def grid(size: tuple[int, int], strides: Sequence[float], boxes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the top left corners of cells in pixels, float32 [1, n, 2] x, y, and their strides, float32 [1, n, 1].

    size: height and width of the input; boxes: number per cell; within a level, all cells of the first box come before
    those of the second.
    """
    corners, steps = [], []
    for stride in strides:
        ys, xs = np.mgrid[: math.ceil(size[0] / stride), : math.ceil(size[1] / stride)]
        corners.append(np.tile(np.stack([xs.ravel(), ys.ravel()], axis=1), (boxes, 1)) * stride)
        steps.append(np.full((boxes * xs.size, 1), stride))
    return np.concatenate(corners).astype(np.float32)[None], np.concatenate(steps).astype(np.float32)[None]


def _anchor_sizes(size: tuple[int, int], described: HeadDescription, where: str) -> np.ndarray:
    """Return width and height in pixels of each box's anchor, float32 [1, n, 2]. Raises SpecError."""
    if len(described.anchors) != len(described.strides) or len({len(level) for level in described.anchors}) != 1:
        expected = f"as many widths and heights for each of {len(described.strides)} levels"
        raise SpecError(f"{where}: anchors", expected=expected, found=str([list(each) for each in described.anchors]))
    sizes = [
        np.repeat(np.array(level, np.float32).reshape(-1, 2), cells(size, (stride,)), axis=0)
        for level, stride in zip(described.anchors, described.strides, strict=True)
    ]
    return np.concatenate(sizes)[None]

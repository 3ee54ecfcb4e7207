"""Replace the input of a graph by a raw frame: colour conversion, layout and normalisation become its first nodes.

Only operators of TensorRT 8.2 are used. From 8.5 on, TensorRT accepts 8-bit inputs whose only reader is a Cast to float
(NvInfer.h at 8.5.2, DataType::kUINT8), so the Cast comes first. Q/DQ starts after these nodes: the former input tensor
keeps its name, and so its scale in a calibration cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.core.detection.nv12 import BLACK, BLUE, LUMA_GAIN, NEUTRAL, RED
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.graph.node_writer import NodeWriter
from edgekd.graph.view import inputs_of, opset_of

MIN_OPSET = 11
"""First opset in which the limits of Clip are inputs, and Resize has `asymmetric` coordinates."""
INPUT = "frame"
"""Name of the new input."""


def take_raw_frames(model: Any, preprocess: Preprocess, where: str) -> None:
    """Make a graph with one input float32 [1, 3, H, W] accept frames in the format of `preprocess.input`, in place.

    where: the graph, for errors. Raises SpecError for an odd height or width with `nv12`, and below MIN_OPSET.
    """
    import onnx

    height, width = preprocess.height, preprocess.width
    if opset_of(model) < MIN_OPSET:
        expected, found = f"opset {MIN_OPSET} or newer", str(opset_of(model))
        raise SpecError(f"{where}: no raw frames", expected=expected, found=found, fix="export the model again")
    if preprocess.input == "nv12" and (height % 2 or width % 2):
        expected, found = "an input of even sides", f"{height} x {width}"
        raise SpecError(f"{where}: no NV12 frames", expected=expected, found=found, fix="choose another size")
    (replaced,) = inputs_of(model)
    writer = NodeWriter("edgekd.frame")
    values = INPUT if preprocess.float_bytes else writer.add("Cast", [INPUT], to=onnx.TensorProto.FLOAT)
    if preprocess.input == "nv12":
        bgr = _bgr_from_nv12(writer, values, height, width)
    else:
        bgr = writer.add("Transpose", [values], perm=[0, 3, 1, 2])
    _normalise(writer, bgr, preprocess)
    writer.rename_last(replaced.name)
    element = onnx.TensorProto.FLOAT if preprocess.float_bytes else onnx.TensorProto.UINT8
    shape = (1, height * 3 // 2, width) if preprocess.input == "nv12" else (1, height, width, 3)
    frame = onnx.helper.make_tensor_value_info(INPUT, element, shape)
    kept = [value for value in model.graph.input if value.name != replaced.name]
    nodes = [*writer.nodes, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend([frame, *kept])
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(writer.constants)


def _normalise(writer: NodeWriter, bgr: str, preprocess: Preprocess) -> None:
    """Add the nodes from a frame [1, 3, H, W] BGR to the network's values, in the order of the host's arithmetic."""
    values = bgr
    if preprocess.color == "rgb":
        values = writer.add("Gather", [values, np.array([2, 1, 0], np.int64)], axis=1)
    std = np.array(preprocess.std)
    values = writer.add("Mul", [values, _by_channel(preprocess.scale / std)])
    if any(preprocess.mean):
        writer.add("Sub", [values, _by_channel(preprocess.mean / std)])


def _bgr_from_nv12(writer: NodeWriter, values: str, height: int, width: int) -> str:
    """Add the nodes from NV12 [1, H * 3 / 2, W] to a frame [1, 3, H, W] BGR, as `core.detection.nv12` converts it."""
    luma = writer.reshape(writer.slice(values, 0, height), 1, 1, height, width)
    luma = writer.add("Max", [writer.add("Sub", [luma, _scalar(BLACK)]), _scalar(0)])
    luma = writer.add("Mul", [luma, _scalar(LUMA_GAIN)])
    pairs = writer.reshape(writer.slice(values, height, height * 3 // 2), 1, height // 2, width // 2, 2)
    planes = writer.add("Sub", [writer.add("Transpose", [pairs], perm=[0, 3, 1, 2]), _scalar(NEUTRAL)])
    nearest: dict[str, Any] = {
        "mode": "nearest",
        "nearest_mode": "floor",
        "coordinate_transformation_mode": "asymmetric",
    }
    planes = writer.add("Resize", [planes, np.empty(0, np.float32), np.array([1, 1, 2, 2], np.float32)], **nearest)
    bgr = luma
    for plane, parts in enumerate((BLUE, RED)):
        chroma = writer.add("Gather", [planes, np.array([plane], np.int64)], axis=1)
        bgr = writer.add("Add", [bgr, writer.add("Mul", [chroma, _by_channel(np.array(parts))])])
    return writer.add("Clip", [bgr, _scalar(0), _scalar(255)])


def _scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _by_channel(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(1, 3, 1, 1)

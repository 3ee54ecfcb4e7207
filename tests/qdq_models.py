"""Small Q/DQ networks for tests, and their outputs by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8


def conv_pair(
    opset: int = 17, *, per_channel: bool = True, zero_point: bool = True, scale: float = 0.01, shared: bool = False
) -> onnx.ModelProto:
    """Build x [1, 8, 6, 6] -> Q/DQ -> first -> Relu -> Q/DQ -> second -> y, both 3x3 with INT8 weights.

    shared: both layers have the same weights.
    """
    random = np.random.default_rng(0)
    nodes, constants = [], {}
    tensor = "x"
    for name, follows in (("first", "relu"), ("second", "")):
        stem = "first" if shared else name
        scales = random.uniform(0.5, 1, CHANNELS if per_channel else 1).astype(np.float32) * np.float32(scale)
        constants.setdefault(f"{stem}/int8", random.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8))
        constants.setdefault(f"{stem}/scale", scales if per_channel else scales.reshape(()))
        constants.setdefault(f"{stem}/zero", np.zeros(constants[f"{stem}/scale"].shape, np.int8))
        constants[f"{tensor}/scale"], constants["zero"] = np.array(0.02, np.float32), np.array(0, np.int8)
        pair = [f"{tensor}/scale", "zero"]
        nodes.append(helper.make_node("QuantizeLinear", [tensor, *pair], [f"{tensor}/int8"], f"{tensor}/quantize"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}/int8", *pair], [f"{tensor}/dq"], f"{tensor}/dq"))
        weights = [f"{stem}/int8", f"{stem}/scale", *([f"{stem}/zero"] if zero_point else [])]
        if not any(f"{stem}/dq" in node.output for node in nodes):
            nodes.append(helper.make_node("DequantizeLinear", weights, [f"{stem}/dq"], f"{stem}/dequantize", axis=0))
        out = f"{name}/out" if follows else "y"
        nodes.append(helper.make_node("Conv", [f"{tensor}/dq", f"{stem}/dq"], [out], name, pads=[1, 1, 1, 1]))
        if follows:
            nodes.append(helper.make_node("Relu", [out], ["hidden"], follows))
        tensor = "hidden"
    graph = helper.make_graph(
        nodes,
        "conv_pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, 6, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """Return ONNX Runtime's output without graph optimizations. feeds: by default fixed noise for `conv_pair`."""
    noise = {"x": np.random.default_rng(1).normal(0, 1, [1, CHANNELS, 6, 6]).astype(np.float32)}
    output: np.ndarray = _session(model).run(None, feeds or noise)[0]
    return output


def every_value(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the inputs and every float tensor of a Q/DQ graph by name, computed without graph optimizations."""
    model = onnx.load(path)
    known = {output.name for output in model.graph.output}
    tensors = [name for node in model.graph.node if node.op_type != "QuantizeLinear" for name in node.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    session = _session(model)
    names = [output.name for output in session.get_outputs()]
    return {**feeds, **dict(zip(names, session.run(names, feeds), strict=True))}


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def int8_constants(model: onnx.ModelProto) -> list[str]:
    """Return the names of INT8 initializers that a DequantizeLinear reads as its data."""
    found = {each.name for each in model.graph.initializer if each.data_type == TensorProto.INT8}
    return [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in found]

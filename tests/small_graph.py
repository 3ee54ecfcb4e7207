"""A small network with every structure that the placement rules cover: residual, concat, pooling, DFL, head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 32
CHANNELS = 8


def small_model(seed: int = 0, bins: int = 16) -> Any:
    """images [1, 3, 32, 32] -> stem -> x; x + conv(x); [that, pooled x] -> neck -> boxes by DFL and scores by sigmoid.

    The output is float32 [1, 3, 256].
    """
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    nodes: list[Any] = []

    def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(name: str, value: np.ndarray) -> str:
        constants[name] = value
        return name

    def conv(source: str, name: str, inputs: int, outputs: int, size: int = 3, **attributes: Any) -> str:
        weight = rng.normal(size=(outputs, inputs, size, size)) / np.sqrt(inputs * size * size)
        names = [
            constant(f"{name}.weight", weight.astype(np.float32)),
            constant(f"{name}.bias", np.zeros(outputs, "f4")),
        ]
        return add("Conv", [source, *names], name, pads=[size // 2] * 4, **attributes)

    x = add("Relu", [conv("images", "stem", 3, CHANNELS, strides=[2, 2])], "stem.relu")
    y = add("Add", [x, add("Relu", [conv(x, "body", CHANNELS, CHANNELS)], "body.relu")], "sum")
    pooled = add("MaxPool", [x], "pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = add("Concat", [y, pooled], "joined", axis=1)
    neck = add("Relu", [conv(joined, "neck", 2 * CHANNELS, CHANNELS)], "neck.relu")
    boxes = add(
        "Reshape", [conv(neck, "boxes", CHANNELS, bins, 1), constant("flat", np.array([1, 1, bins, 256]))], "rows"
    )
    shares = add("Softmax", [add("Transpose", [boxes], "turned", perm=[0, 2, 1, 3])], "shares", axis=1)
    constant("dfl.weight", np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1))
    sides = add(
        "Reshape", [add("Conv", [shares, "dfl.weight"], "dfl"), constant("wide", np.array([1, 1, 256]))], "sides"
    )
    scores = add("Reshape", [conv(neck, "scores", CHANNELS, 2, 1), constant("deep", np.array([1, 2, 256]))], "logits")
    add("Concat", [sides, add("Sigmoid", [scores], "probabilities")], "output0", axis=1)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 3, 256])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def write(model: Any, folder: Path, name: str = "small.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def frames(count: int, seed: int = 1) -> list[np.ndarray]:
    """Return frames float32 [1, 3, 32, 32] from 0 to 1."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(count)]

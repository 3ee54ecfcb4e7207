"""A small network with a LayerNorm between matrix products, as one operator or decomposed, with values of any scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, WIDTH, OUTPUTS = 8, 32, 24


def normalized_model(
    *, size: float = 1.0, spread: float = 1.0, decomposed: bool = False, residual: bool = False, flat: bool = False
) -> Any:
    """images [1, 3, 8, 8] -> output0 [1, 64, 24]: convolution, LayerNorm, two products with ReLU between.

    Args:
        size: Factor of the convolution's outputs, which the LayerNorm cancels.
        spread: Ratio of the largest to the smallest gamma.
        decomposed: Write the LayerNorm as exporters do below opset 17.
        residual: Add the LayerNorm's output to that of the second product.
        flat: Reshape the LayerNorm's output to rows before the first product, and back behind it.
    """
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "stem.weight": size * rng.normal(size=(WIDTH, 3, 1, 1)),
        "stem.bias": size * rng.normal(size=WIDTH),
        "gamma": np.geomspace(1, spread, WIDTH),
        "beta": 0.1 * rng.normal(size=WIDTH),
        "first.weight": rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH) / np.geomspace(1, spread, WIDTH)[:, None],
        "second.weight": rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "head.weight": rng.normal(size=(WIDTH, OUTPUTS)) / np.sqrt(WIDTH),
        "two": np.float32(2),
        "eps": np.float32(1e-5),
    }
    nodes = [
        helper.make_node("Conv", ["images", "stem.weight", "stem.bias"], ["map"], "stem"),
        helper.make_node("Reshape", ["map", "flat"], ["rows"], "rows"),
        helper.make_node("Transpose", ["rows"], ["tokens"], "tokens", perm=[0, 2, 1]),
        *(_decomposed() if decomposed else _one_operator()),
        *(_between_reshapes() if flat else [_first("normal", "hidden")]),
        helper.make_node("Relu", ["hidden"], ["active"], "active"),
        helper.make_node("MatMul", ["active", "second.weight"], ["deep"], "second"),
        helper.make_node("Add", ["deep", "normal"] if residual else ["deep", "beta"], ["sum"], "sum"),
        helper.make_node("MatMul", ["sum", "head.weight"], ["output0"], "head"),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    shapes = {"flat": [1, WIDTH, -1], "last": [-1], "as rows": [-1, WIDTH], "as tokens": [1, -1, WIDTH]}
    initializers += [numpy_helper.from_array(np.array(values), name) for name, values in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "normalized",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, SIDE * SIDE, OUTPUTS])],
        initializers,
    )
    # ONNX's reference implementation has Q/DQ from opset 19 on.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _first(read: str, written: str) -> Any:
    return helper.make_node("MatMul", [read, "first.weight"], [written], "first")


def _between_reshapes() -> list[Any]:
    return [
        helper.make_node("Reshape", ["normal", "as rows"], ["normal/rows"], "to rows"),
        _first("normal/rows", "hidden/rows"),
        helper.make_node("Reshape", ["hidden/rows", "as tokens"], ["hidden"], "to tokens"),
    ]


def _one_operator() -> list[Any]:
    return [helper.make_node("LayerNormalization", ["tokens", "gamma", "beta"], ["normal"], "norm", axis=-1)]


def _decomposed() -> list[Any]:
    return [
        helper.make_node("ReduceMean", ["tokens", "last"], ["mean"], "mean"),
        helper.make_node("Sub", ["tokens", "mean"], ["centred"], "centre"),
        helper.make_node("Pow", ["centred", "two"], ["squares"], "square"),
        helper.make_node("ReduceMean", ["squares", "last"], ["variance"], "variance"),
        helper.make_node("Add", ["variance", "eps"], ["positive"], "positive"),
        helper.make_node("Sqrt", ["positive"], ["deviation"], "deviation"),
        helper.make_node("Div", ["centred", "deviation"], ["unit"], "divide"),
        helper.make_node("Mul", ["unit", "gamma"], ["scaled"], "scale"),
        helper.make_node("Add", ["scaled", "beta"], ["normal"], "shift"),
    ]


def pictures(count: int, seed: int = 1) -> list[np.ndarray]:
    """Return frames float32 [1, 3, 8, 8] from 0 to 1."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(count)]

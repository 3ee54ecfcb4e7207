"""A convolution as a matrix on patches gives what ONNX Runtime's Conv gives, wherever the patches lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekd.compress.graph import Graph
from edgekd.compress.layers import Convolution, layer_of

SMALL = st.integers(1, 3)


def conv_model(weights: np.ndarray, bias: np.ndarray | None, shape: tuple[int, ...], **attributes: Any) -> Any:
    """x of a shape -> conv -> y, with constant weights."""
    constants = {"w": weights} if bias is None else {"w": weights, "b": bias}
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", *constants], ["y"], "conv", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def read(model: Any) -> Convolution:
    graph = Graph(model)
    found = layer_of(graph, graph.nodes[-1])
    assert isinstance(found, Convolution)
    return found


def run(model: Any, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["y"], {"x": values})[0]
    return found


def require_same_as_conv(model: Any, values: np.ndarray) -> None:
    """Every output position, as a product of matrix and patch, against ONNX Runtime."""
    layer, expected = read(model), run(model, values)
    assert layer.positions(*values.shape[2:]) == expected.shape[2:]
    patches = layer.patches(values, np.arange(expected[0, 0].size))
    found = patches @ layer.matrices.transpose(0, 2, 1)  # [groups, n, O / groups]
    outputs = found.transpose(0, 2, 1).reshape(expected.shape[1], -1) + layer.bias[:, None]
    assert outputs == pytest.approx(expected[0].reshape(len(outputs), -1), abs=1e-4)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, np.ndarray]:
    """A Conv of any kind, and what it reads."""
    groups, per_group, outputs = draw(st.tuples(SMALL, SMALL, SMALL))
    kernel, dilations, strides = draw(st.tuples(*[st.tuples(SMALL, SMALL)] * 3))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    height, width = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    reach = [(side - 1) * step + 1 for side, step in zip(kernel, dilations, strict=True)]
    assume(height + pads[0] + pads[2] >= reach[0] and width + pads[1] + pads[3] >= reach[1])
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.normal(size=(groups * outputs, per_group, *kernel)).astype(np.float32)
    bias = rng.normal(size=len(weights)).astype(np.float32) if draw(st.booleans()) else None
    values = rng.normal(size=(1, groups * per_group, height, width)).astype(np.float32)
    how = {"strides": strides, "pads": pads, "dilations": dilations, "group": groups}
    return conv_model(weights, bias, values.shape, **how), values


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_matrix_times_patches_is_what_onnx_runtime_computes(given_: tuple[Any, np.ndarray]) -> None:
    require_same_as_conv(*given_)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("kernel", [2, 3])
def test_padding_by_the_size_of_the_input_is_understood(padding: str, stride: int, side: int, kernel: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 3, kernel, 1)).astype(np.float32)
    values = rng.normal(size=(1, 3, side, side + 3)).astype(np.float32)
    require_same_as_conv(conv_model(weights, None, values.shape, auto_pad=padding, strides=[stride] * 2), values)


def test_a_depthwise_convolution_has_one_small_matrix_for_each_channel() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(6, 1, 3, 3)).astype(np.float32)
    values = rng.normal(size=(1, 6, 5, 5)).astype(np.float32)
    model = conv_model(weights, None, values.shape, group=6, pads=[1] * 4)
    assert read(model).matrices.shape == (6, 1, 9)
    require_same_as_conv(model, values)


def test_positions_are_counted_row_by_row_and_margins_read_zero() -> None:
    values = np.arange(1, 13, dtype=np.float32).reshape(1, 1, 3, 4)
    layer = read(conv_model(np.ones((1, 1, 3, 3), np.float32), None, values.shape, pads=[1] * 4))
    first, inner, last = layer.patches(values, np.array([0, 5, 11])).reshape(3, 9).tolist()
    assert first == [0, 0, 0, 0, 1, 2, 0, 5, 6]
    assert inner == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert last == [7, 8, 0, 11, 12, 0, 0, 0, 0]


def test_a_missing_bias_is_zero() -> None:
    layer = read(conv_model(np.ones((4, 2, 1, 1), np.float32), None, (1, 2, 3, 3)))
    assert layer.bias.dtype == np.float32
    assert layer.bias.tolist() == [0] * 4


@pytest.mark.parametrize("computed", ["w", "b"])
def test_computed_parameters_are_no_matrix(computed: str) -> None:
    model = conv_model(np.ones((4, 2, 1, 1), np.float32), np.ones(4, np.float32), (1, 2, 3, 3))
    node = model.graph.node[0]
    node.input[1 if computed == "w" else 2] = "relu"
    model.graph.node.insert(0, helper.make_node("Relu", [computed], ["relu"], "relu"))
    graph = Graph(model)
    assert layer_of(graph, graph.nodes[-1]) is None


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions_than_two_are_no_matrix(dimensions: int) -> None:
    graph = Graph(conv_model(np.ones((4, 2, *[1] * dimensions), np.float32), None, (1, 2, *[3] * dimensions)))
    assert layer_of(graph, graph.nodes[0]) is None

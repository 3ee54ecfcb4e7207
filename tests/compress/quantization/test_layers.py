"""A layer as a matrix on patches gives what ONNX Runtime's node gives, wherever the patches lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekd.compress.quantization.layers import ConvolutionView, ProductView, is_dfl, is_layer, layer_of
from edgekd.compress.quantization.rewrite import own_parameters
from edgekd.graph.view import Graph

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


def read(model: Any) -> ConvolutionView:
    graph = Graph(model)
    found = layer_of(graph, graph.nodes[-1])
    assert isinstance(found, ConvolutionView)
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


# ------------------------------------------------------------------------------------------------------------- products


def product_model(op: str, shape: tuple[int, ...], constants: dict[str, np.ndarray], **attributes: Any) -> Any:
    """x of a shape -> MatMul and, with a constant `b`, Add, or Gemm -> y."""
    gemm = op == "Gemm"
    nodes = [helper.make_node(op, ["x", *(constants if gemm else ["w"])], ["y"], "product", **attributes)]
    if not gemm and "b" in constants:
        nodes[0].output[0] = "m"
        nodes.append(helper.make_node("Add", ["b", "m"], ["y"], "add"))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@st.composite
def products(draw: st.DrawFn) -> tuple[Any, np.ndarray]:
    """A product with constant weights, as exporters write it, and what it reads."""
    op = draw(st.sampled_from(["Gemm", "MatMul"]))
    inputs, outputs = draw(st.tuples(st.integers(1, 20), st.integers(16, 20)))
    rows = draw(st.lists(st.integers(1, 4), min_size=1, max_size=1 if op == "Gemm" else 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    constants = {"w": rng.normal(size=(inputs, outputs)).astype(np.float32)}
    attributes: dict[str, Any] = {}
    if op == "Gemm":
        attributes = {"transB": draw(st.integers(0, 1)), "alpha": draw(st.sampled_from([1.0, 0.5]))}
        attributes["beta"] = draw(st.sampled_from([1.0, -2.0]))
        constants["w"] = np.ascontiguousarray(constants["w"].T) if attributes["transB"] else constants["w"]
    shapes = [(outputs,), (1, outputs), (1,), ()] if op == "Gemm" else [(outputs,)]
    if draw(st.booleans()):
        constants["b"] = rng.normal(size=draw(st.sampled_from(shapes))).astype(np.float32)
    return product_model(op, (*rows, inputs), constants, **attributes), rng.normal(size=(*rows, inputs)).astype("f4")


@settings(max_examples=150, deadline=None)
@given(products())
def test_a_product_is_a_matrix_on_rows_and_computes_what_it_did(given_: tuple[Any, np.ndarray]) -> None:
    model, values = given_
    expected = run(model, values)
    own_parameters(model)
    assert run(model, values) == pytest.approx(expected, abs=1e-4)
    layer = layer_of(Graph(model), model.graph.node[0])
    assert isinstance(layer, ProductView)
    rows = layer.patches(values, np.arange(layer.count(values.shape)))
    assert (rows @ layer.matrices.transpose(0, 2, 1))[0] + layer.bias == pytest.approx(
        expected.reshape(-1, len(layer.bias)), abs=1e-4
    )
    for name, value in layer.initializers(2 * layer.weights, 2 * layer.bias).items():
        (found,) = (each for each in model.graph.initializer if each.name == name)
        assert list(found.dims) == list(value.shape)
        found.CopyFrom(numpy_helper.from_array(value, name))
    assert run(model, values) == pytest.approx(2 * expected, abs=2e-4)


WEIGHTS = np.ones((16, 16), np.float32)


@pytest.mark.parametrize("attributes", [{"transA": 1}, {"transA": 1, "transB": 1}])
def test_a_turned_input_gives_no_rows(attributes: dict[str, int]) -> None:
    model = product_model("Gemm", (16, 16), {"w": WEIGHTS}, **attributes)
    own_parameters(model)
    assert layer_of(Graph(model), model.graph.node[0]) is None


def test_half_precision_is_left_as_it_is() -> None:
    model = product_model("Gemm", (3, 16), {"w": WEIGHTS.astype(np.float16)}, alpha=2.0)
    before = model.SerializeToString()
    own_parameters(model)
    assert model.SerializeToString() == before
    assert layer_of(Graph(model), model.graph.node[0]) is None


def test_a_summand_for_each_row_is_no_bias() -> None:
    rows = product_model("Gemm", (3, 16), {"w": WEIGHTS, "b": np.ones((3, 16), np.float32)})
    own_parameters(rows)
    assert layer_of(Graph(rows), rows.graph.node[0]) is None
    one = product_model("MatMul", (3, 16), {"w": WEIGHTS, "b": np.ones((3, 16), np.float32)})
    layer = layer_of(Graph(one), one.graph.node[0])
    assert layer is not None
    assert layer.bias_name is None


def test_what_is_added_in_one_of_several_places_is_no_bias() -> None:
    model = product_model("MatMul", (3, 16), {"w": WEIGHTS, "b": np.ones(16, np.float32)})
    layer = layer_of(Graph(model), model.graph.node[0])
    assert layer is not None
    assert layer.bias_name == "b"
    model.graph.node.append(helper.make_node("Relu", ["m"], ["other"]))
    layer = layer_of(Graph(model), model.graph.node[0])
    assert layer is not None
    assert layer.bias_name is None


def test_a_bias_that_two_products_share_becomes_that_of_each() -> None:
    model = product_model("MatMul", (3, 16), {"w": WEIGHTS, "b": np.ones(16, np.float32)})
    model.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["n"], "second"))
    model.graph.node.append(helper.make_node("Add", ["n", "b"], ["z"], "second_add"))
    own_parameters(model)
    graph = Graph(model)
    layers = [layer_of(graph, node) for node in graph.nodes if node.op_type == "MatMul"]
    names = [name for layer in layers if layer for name in (layer.weights_name, layer.bias_name)]
    assert None not in names
    assert len(set(names)) == 4


def test_only_constant_matrices_of_some_size_make_layers() -> None:
    def found(op: str, shape: tuple[int, ...]) -> bool:
        model = product_model(op, (1, shape[0]), {"w": np.ones(shape, np.float32)})
        return is_layer(Graph(model), model.graph.node[0])

    assert found("MatMul", (4, 16))
    assert found("Gemm", (16, 4))
    assert not found("MatMul", (4, 4)), "a conversion of boxes"
    assert not found("MatMul", (16,)), "a sum"
    computed = product_model("MatMul", (1, 16), {"w": WEIGHTS})
    computed.graph.node[0].input[1] = "x"
    assert not is_layer(Graph(computed), computed.graph.node[0])


def test_distances_may_be_summed_by_a_product() -> None:
    values = np.arange(17, dtype=np.float32)[:, None]
    model = product_model("MatMul", (4, 17), {"w": values})
    assert is_dfl(Graph(model), model.graph.node[0])
    model = product_model("MatMul", (4, 17), {"w": values + 1})
    assert not is_dfl(Graph(model), model.graph.node[0])

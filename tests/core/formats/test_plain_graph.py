"""A Q/DQ graph taken apart computes the same once the scales in TensorRT's calibration cache are put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from real_graphs import real_graph, swept

from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.core.formats.calibration_cache import from_text, to_text
from edgekd.core.formats.plain_graph import PlainGraph, plain_graph
from edgekd.core.formats.qdq_graph import COMPUTING
from edgekd.detectors.export import probe

PAIR = ("QuantizeLinear", "DequantizeLinear")


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime gives, node by node as they are written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def with_scales(plain: PlainGraph) -> onnx.ModelProto:
    """The plain graph as TensorRT takes it with a calibration cache: what layers and sums read is rounded to INT8."""
    model, scales = onnx.load_from_string(plain.onnx), from_text(to_text(plain.scales, "8.5.2"))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type in (*COMPUTING, "Add") and node.name not in plain.float_layers:
            nodes += rounded(model.graph, scales, node)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def rounded(graph: onnx.GraphProto, scales: dict[str, float], node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The pair before each activation that a layer reads; the layer reads from it afterwards."""
    for index, name in enumerate(list(node.input)):
        if name in scales:
            stem = f"{node.name}/{index}"
            graph.initializer.append(numpy_helper.from_array(np.array(scales[name], np.float32), f"{stem}/scale"))
            graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), f"{stem}/zero"))
            yield helper.make_node(PAIR[0], [name, f"{stem}/scale", f"{stem}/zero"], [f"{stem}/codes"])
            yield helper.make_node(PAIR[1], [f"{stem}/codes", f"{stem}/scale", f"{stem}/zero"], [f"{stem}/rounded"])
            node.input[index] = f"{stem}/rounded"


@pytest.mark.slow
@pytest.mark.parametrize("name", swept("yolo11n.pt", "yolox_nano.onnx"))
def test_with_the_calibration_cache_a_real_detector_computes_the_same(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph, quantized = real_graph(name, shared, tmp_path_factory), tmp_path / "quantized.onnx"
    images = probe(graph.exported.spec)
    done = quantize(graph.path, quantized, [images], Quantize())
    found = plain_graph(quantized.read_bytes())
    assert found.scales.items() <= done.scales.items(), "as they are in the bundle's cache"
    model = onnx.load_from_string(found.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert not any(node.op_type in PAIR for node in model.graph.node)
    feeds = {model.graph.input[0].name: images}
    expected = run(onnx.load(quantized), **feeds)[0]
    np.testing.assert_array_equal(run(with_scales(found), **feeds)[0], expected)
    assert np.abs(run(model, **feeds)[0] - expected).max() > 0, "without the scales it is another network"


def pair(tensor: str, out: str, zero: str = "zero", scale: str = "scale") -> list[onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear of a tensor."""
    return [
        helper.make_node(PAIR[0], [tensor, scale, zero], [f"{out}/codes"]),
        helper.make_node(PAIR[1], [f"{out}/codes", scale, zero], [out]),
    ]


def model_of(*nodes: onnx.NodeProto, scale_type: type = np.float32) -> bytes:
    """A network x [2, 3] to y with constants of Q/DQ: weights [3, 4] in INT8 by column."""
    constants = {
        "scale": np.array(0.1, scale_type),
        "other": np.array(0.2, scale_type),
        "zero": np.array(0, np.int8),
        "one": np.array(1, np.int8),
        "codes": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
        "scales": np.array([1, 2, 3, 0.5], scale_type),
        "zeros": np.zeros(4, np.int8),
    }
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(scale_type))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, [2, 3])],
        [helper.make_tensor_value_info("y", kind, ["rows", "columns"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info("x/rounded", kind, [2, 3])],
    )
    opset = helper.make_opsetid("", 19)
    content: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    return content


def weights(axis: int = -1, zero: str = "zeros") -> onnx.NodeProto:
    """The constants, dequantized by column."""
    return helper.make_node(PAIR[1], ["codes", "scales", zero], ["w"], axis=axis)


PRODUCT = helper.make_node("MatMul", ["x/rounded", "w"], ["y"], "product")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("axis", [1, -1])
def test_constants_become_what_they_stand_for_in_the_type_of_their_scales(kind: type, axis: int) -> None:
    found = plain_graph(model_of(*pair("x", "x/rounded"), weights(axis), PRODUCT, scale_type=kind))
    model = onnx.load_from_string(found.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    assert [each.name for each in model.graph.initializer] == ["w"]
    expected = (np.arange(-6, 6).reshape(3, 4) * [1, 2, 3, 0.5]).astype(kind)
    value = numpy_helper.to_array(model.graph.initializer[0])
    assert value.dtype == kind
    np.testing.assert_array_equal(value, expected)
    assert found.scales == {"x": float(kind(0.1))}
    assert found.float_layers == ()
    assert not model.graph.value_info, "what it said of tensors that are gone"


def test_a_layer_with_one_float_operand_is_float() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    assert plain_graph(model_of(weights(), product)).float_layers == ("product",)


def test_a_tensor_that_is_quantized_twice_has_one_scale() -> None:
    twice = [*pair("x", "x/rounded"), *pair("x/rounded", "again"), weights()]
    product = helper.make_node("MatMul", ["again", "w"], ["y"], "product")
    assert dict(plain_graph(model_of(*twice, product)).scales) == {"x": pytest.approx(0.1)}


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([*pair("x", "x/rounded", zero="one"), weights(), PRODUCT], "zero point 0, for x"),
        ([*pair("x", "x/rounded"), weights(zero="x"), PRODUCT], "constants for Q/DQ, found x"),
        ([*pair("x", "x/rounded"), *pair("x", "z", scale="other"), weights(), PRODUCT], "one scale for x"),
        (pair("x", "y"), "outputs that are not quantized, found y"),
    ],
)
def test_what_cannot_be_taken_apart_is_said(nodes: list[onnx.NodeProto], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plain_graph(model_of(*nodes))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_is_a_value_error_or_another_graph(data: st.DataObject) -> None:
    content = bytearray(model_of(*pair("x", "x/rounded"), weights(), PRODUCT))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        plain_graph(bytes(content[: data.draw(st.integers(0, len(content)))]))

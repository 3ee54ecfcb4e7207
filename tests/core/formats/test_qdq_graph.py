"""A Q/DQ graph in the forms that builders take computes the same, and no weight changes its code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from qdq_models import conv_pair, int8_constants, run
from real_graphs import real_graph, swept

from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.core.formats.qdq_graph import DEQUANTIZE, QUANTIZE, QdqGraph, dequantized, require_same_codes
from edgekd.detectors.export import probe

ALL_CODES = np.arange(-127, 128, dtype=np.int8)
LARGEST = np.finfo(np.float32).max / 127
SCALE_COUNT = 100_000
CHUNK = 20_000  # scales at a time: 20 MB of weights


def all_scales() -> np.ndarray:
    """Positive float32 of every magnitude, by random bits, from denormal numbers to the largest that fits."""
    largest = np.float32(LARGEST)
    while not np.isfinite(largest * np.float32(127)):
        largest = np.nextafter(largest, np.float32(0))
    bits = np.random.default_rng(0).integers(1, int(largest.view(np.int32)), SCALE_COUNT - 4, dtype=np.int32)
    smallest = np.nextafter(np.float32(0), np.float32(1))
    ends = np.array([smallest, smallest * 3, np.finfo(np.float32).tiny, largest], np.float32)
    return np.concatenate([bits.view(np.float32), ends])


def quantizer(channels: int) -> onnxruntime.InferenceSession:
    """QuantizeLinear of weights [channels, 255] by channel, by ONNX Runtime."""
    node = helper.make_node(QUANTIZE, ["w", "s", "z"], ["codes"], axis=0)
    graph = helper.make_graph(
        [node],
        "quantize",
        [
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [channels, 255]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [channels]),
        ],
        [helper.make_tensor_value_info("codes", TensorProto.INT8, [channels, 255])],
        [numpy_helper.from_array(np.zeros(channels, np.int8), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_every_code_survives_every_scale() -> None:
    scales, runtime = all_scales(), quantizer(CHUNK)
    assert len(scales) == SCALE_COUNT
    assert (scales < np.finfo(np.float32).tiny).sum() > 100, "denormal scales are among them"
    assert (scales > 1e30).sum() > 100, "and huge ones"
    for start in range(0, SCALE_COUNT, CHUNK):
        part = scales[start : start + CHUNK]
        codes = np.broadcast_to(ALL_CODES, (CHUNK, 255))
        weights = dequantized(codes, part, axis=0)
        require_same_codes(weights, codes, part, axis=0)
        np.testing.assert_array_equal(runtime.run(None, {"w": weights, "s": part})[0], codes)


def test_a_reciprocal_gives_the_same_codes() -> None:
    """A builder may multiply by 1 / scale; that is as exact, wherever 1 / scale is a normal number."""
    scales = all_scales()
    scales = scales[(scales > 2.0**-126) & (scales < 2.0**126)]
    for start in range(0, len(scales), CHUNK):
        part = scales[start : start + CHUNK]
        weights = dequantized(np.broadcast_to(ALL_CODES, (len(part), 255)), part, axis=0)
        found = np.rint(weights * (np.float32(1) / part)[:, None])
        assert (found == ALL_CODES).all()


@given(arrays(np.int8, st.tuples(*[st.integers(1, 5)] * 4)), st.integers(0, 3), st.data())
@settings(max_examples=100, deadline=None)
def test_codes_survive_on_any_axis(codes: np.ndarray, axis: int, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, codes.shape[axis]]))
    positive = st.floats(2.0**-149, float(np.float32(LARGEST) / 2), width=32, exclude_min=False)
    scales = np.array(data.draw(st.lists(positive, min_size=size, max_size=size)), np.float32)
    require_same_codes(dequantized(codes, scales, axis), codes, scales, axis)


def test_weights_beyond_float32_are_refused() -> None:
    graph = QdqGraph(conv_pair(scale=3e38).SerializeToString())
    with pytest.raises(ValueError, match=r"expected scales whose weights fit float32, found 2\.8"):
        graph.form(int8_constants=False).content()


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("per_channel", [True, False])
def test_fp32_weights_compute_the_same(opset: int, *, per_channel: bool) -> None:
    source = conv_pair(opset=opset, per_channel=per_channel)
    assert int8_constants(source), "else there is nothing to change"
    file = QdqGraph(source.SerializeToString()).form(int8_constants=False)
    content = file.content()
    assert len(content) == file.length
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert int8_constants(model) == []
    np.testing.assert_array_equal(run(model), run(source))


def test_int8_constants_stay_where_they_are_taken() -> None:
    source = conv_pair()
    model = onnx.load_from_string(QdqGraph(source.SerializeToString()).form().content())
    assert int8_constants(model) == int8_constants(source)
    np.testing.assert_array_equal(run(model), run(source))


@pytest.mark.parametrize("keep_int8", [True, False])
def test_a_layer_leaves_int8_alone(*, keep_int8: bool) -> None:
    source = conv_pair()
    graph = QdqGraph(source.SerializeToString())
    assert graph.int8_layers() == ("first", "second")
    model = onnx.load_from_string(graph.form(["second"], int8_constants=keep_int8).content())
    onnx.checker.check_model(model, full_check=True)
    found = QdqGraph(model.SerializeToString())
    assert found.int8_layers() == ("first",)
    assert run(model) != pytest.approx(run(source), abs=1e-9), "second no longer rounds what it reads"
    both = onnx.load_from_string(graph.form(["first", "second"], int8_constants=keep_int8).content())
    assert not {node.op_type for node in both.graph.node} & {QUANTIZE, DEQUANTIZE}
    plain = onnx.load_from_string(graph.without_qdq().content())
    np.testing.assert_array_equal(run(both), run(plain))


def test_a_weight_that_two_layers_share_is_kept_for_the_one_in_int8() -> None:
    source = conv_pair(shared=True)
    graph = QdqGraph(source.SerializeToString())
    for keep_int8 in (True, False):
        model = onnx.load_from_string(graph.form(["first"], int8_constants=keep_int8).content())
        onnx.checker.check_model(model, full_check=True)
        assert QdqGraph(model.SerializeToString()).int8_layers() == ("second",)
        values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        codes, scales = (graph.value(f"first/{part}") for part in ("int8", "scale"))
        np.testing.assert_array_equal(values["first/dq/float"], codes * scales.reshape(-1, 1, 1, 1))
        run(model)


def test_a_missing_or_scalar_zero_point_becomes_one_for_each_scale() -> None:
    """TensorRT 8 requires a zero point for each scale (onnx-tensorrt 8.2-GA: zeroPointSize == scaleSize)."""
    source = conv_pair(zero_point=False)
    model = onnx.load_from_string(QdqGraph(source.SerializeToString()).form(int8_constants=False).content())
    onnx.checker.check_model(model, full_check=True)
    sizes = {each.name: numpy_helper.to_array(each).size for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            assert len(node.input) == 3
            assert sizes[node.input[2]] == sizes[node.input[1]]
    np.testing.assert_array_equal(run(model), run(source))


def test_an_axis_is_written_out() -> None:
    """For several scales without `axis` TensorRT takes axis 0 and ONNX axis 1 (onnx-tensorrt 8.2-GA to 10.0-GA)."""
    source = conv_pair()
    for node in source.graph.node:
        if node.name == "first/dequantize":
            del node.attribute[:]
    model = onnx.load_from_string(QdqGraph(source.SerializeToString()).form(int8_constants=False).content())
    onnx.checker.check_model(model, full_check=True)
    axes = {node.name: [each.i for each in node.attribute if each.name == "axis"] for node in model.graph.node}
    assert axes["first/dequantize"] == axes["first/int8/quantize"] == [1]
    assert axes["second/dequantize"] == axes["second/int8/quantize"] == [0]
    np.testing.assert_array_equal(run(model), run(source))


def test_a_residual_stays_in_int8_without_its_convolution() -> None:
    """The form still has Q/DQ, of which the builder has to know."""
    source = conv_pair()
    source.graph.node.append(helper.make_node("Add", ["x/dq", "y"], ["sum"], "add"))
    source.graph.output[0].name = "sum"
    file = QdqGraph(source.SerializeToString()).form(["first", "second"])
    assert file.quantized
    assert not QdqGraph(source.SerializeToString()).without_qdq().quantized


def test_transposed_weights_leave_int8_with_their_product() -> None:
    codes, scales = np.arange(-6, 6, dtype=np.int8).reshape(4, 3), np.array([1, 2, 3, 0.5], np.float32)
    constants = {"codes": codes, "scales": scales, "zeros": np.zeros(4, np.int8), "scale": np.array(0.1, np.float32)}
    constants["zero"] = np.array(0, np.int8)
    nodes = [
        helper.make_node(QUANTIZE, ["x", "scale", "zero"], ["x8"], "q"),
        helper.make_node(DEQUANTIZE, ["x8", "scale", "zero"], ["xd"], "dq"),
        helper.make_node(DEQUANTIZE, ["codes", "scales", "zeros"], ["w"], "weights", axis=0),
        helper.make_node("Transpose", ["w"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "turned"], ["y"], "product"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, n]) for name, n in (("x", 3), ("y", 4))]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", ports[:1], ports[1:], weights)
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert QdqGraph(source.SerializeToString()).int8_layers() == ("product",)
    file = QdqGraph(source.SerializeToString()).form(["product"], int8_constants=False)
    model = onnx.load_from_string(file.content())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Transpose", "MatMul"]
    assert not file.quantized


def test_constants_of_a_subgraph_are_kept() -> None:
    source = conv_pair()
    source.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "captured"))
    source.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    out = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [3])
    branch = helper.make_graph([helper.make_node("Identity", ["captured"], ["chosen"])], "branch", [], [out])
    source.graph.node.append(
        helper.make_node("If", ["condition"], ["extra"], "if", then_branch=branch, else_branch=branch)
    )
    model = onnx.load_from_string(QdqGraph(source.SerializeToString()).form(int8_constants=False).content())
    assert {"captured", "condition"} <= {each.name for each in model.graph.initializer}
    np.testing.assert_array_equal(run(model), run(source))


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="expected names of nodes, found nothing"):
        QdqGraph(conv_pair().SerializeToString()).form(["nothing"])


def test_a_file_is_written_piece_by_piece(tmp_path: Path) -> None:
    file = QdqGraph(conv_pair().SerializeToString()).form(int8_constants=False)
    with (tmp_path / "graph.onnx").open("wb") as stream:
        file.write(stream)
    assert (tmp_path / "graph.onnx").read_bytes() == file.content()


@pytest.mark.parametrize("name", swept("yolo26n.pt", "yolox_nano.onnx"))
def test_a_real_detector_computes_the_same_with_fp32_weights(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph, quantized = real_graph(name, shared, tmp_path_factory), tmp_path / "quantized.onnx"
    frames = probe(graph.exported.spec)
    quantize(graph.path, quantized, [frames], Quantize())
    source = onnx.load(quantized)
    model = onnx.load_from_string(QdqGraph(quantized.read_bytes()).form(int8_constants=False).content())
    onnx.checker.check_model(model, full_check=True)
    assert len(int8_constants(source)) > 50
    assert int8_constants(model) == []
    feeds = {source.graph.input[0].name: frames}
    np.testing.assert_array_equal(run(model, feeds), run(source, feeds))

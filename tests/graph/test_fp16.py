"""A graph in float16 computes about the same, decodes in float32, and is taken by a strongly typed builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from real_graphs import real_graph, swept

from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.core.errors import CompressError
from edgekd.core.formats import nvfp4
from edgekd.detectors.export import probe
from edgekd.graph.fp16 import MIN_OPSET, decoding, half
from edgekd.graph.nvfp4 import IR_VERSION, OPSET, dequantizers
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead

CLOSE = 0.02
"""Root of the squared differences by that of the values: of float16 in place of float32."""
NAMES = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")


def output(graph: Path, batch: np.ndarray) -> np.ndarray:
    """What ONNX Runtime gives."""
    with ONNXRUNTIME_CPU.load(graph) as session:
        return session.run(batch)


def types(model: Any) -> dict[str, int]:
    """The type of every tensor that ONNX can tell."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


@pytest.mark.parametrize("name", swept(*NAMES))
def test_a_float_detector_computes_about_the_same(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph, out = real_graph(name, shared, tmp_path_factory), tmp_path / "half.onnx"
    assert half(graph.path, out) == MIN_OPSET
    model, frame = onnx.load(out), probe(graph.exported.spec)
    expected = output(graph.path, frame)
    assert np.linalg.norm(output(out, frame) - expected) < CLOSE * np.linalg.norm(expected)
    kinds = types(model)
    layers = [node.output[0] for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    assert {kinds[each] for each in layers} == {TensorProto.FLOAT16}
    assert out.stat().st_size < 0.55 * graph.path.stat().st_size


@pytest.mark.parametrize("name", swept(*NAMES))
def test_boxes_are_decoded_in_float32_without_a_step_through_float16(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph, out = real_graph(name, shared, tmp_path_factory).path, tmp_path / "half.onnx"
    wide = set(decoding(onnx.load(graph).graph))
    half(graph, out)
    model = onnx.load(out)
    kinds, nodes = types(model), {node.output[0]: node for node in model.graph.node}
    assert len(wide) > 10
    decoders = [node for node in model.graph.node if node.name in wide]
    assert {kinds[node.output[0]] for node in decoders} == {TensorProto.FLOAT}
    casts = [node for node in nodes.values() if node.op_type == "Cast"]
    assert not [cast for cast in casts if cast.input[0] in nodes and nodes[cast.input[0]].op_type == "Cast"]
    assert types(model)[model.graph.output[0].name] == TensorProto.FLOAT


def test_a_quantized_detector_keeps_its_codes_and_its_description(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = real_graph("yolox_nano.onnx", shared, tmp_path_factory)
    quantize(graph.path, tmp_path / "int8.onnx", [probe(graph.exported.spec)], Quantize())
    half(tmp_path / "int8.onnx", tmp_path / "half.onnx")
    before, after = (onnx.load(tmp_path / name) for name in ("int8.onnx", "half.onnx"))
    assert after.metadata_props == before.metadata_props
    codes = [
        {each.name: each.raw_data for each in model.graph.initializer if each.data_type == TensorProto.INT8}
        for model in (before, after)
    ]
    assert codes[0] == codes[1]
    assert len(codes[0]) > 150
    kinds = types(after)
    found = {node.op_type: kinds[node.output[0]] for node in after.graph.node}
    assert found["DequantizeLinear"] == found["Conv"] == TensorProto.FLOAT16


@pytest.mark.slow
@pytest.mark.skipif(not TENSORRT_RTX.available().usable, reason="tensorrt-rtx is not installed")
def test_a_strongly_typed_builder_takes_it(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = real_graph("yolo26n.pt", shared, tmp_path_factory).path
    half(graph, tmp_path / "half.onnx")
    narrow = compile_ahead(tmp_path / "half.onnx", ["SM86"], tmp_path / "engine")
    wide = compile_ahead(graph, ["SM86"], tmp_path / "wide")
    assert narrow.bytes < 0.8 * wide.bytes, "its weights are in float16"


def test_nvfp4_weights_stay_in_four_bits(tmp_path: Path) -> None:
    weights = nvfp4.quantize(np.random.default_rng(0).normal(size=(32, 64)))
    nodes, initializers = dequantizers(weights, "w")
    nodes.append(helper.make_node("Gemm", ["x", "w/dq"], ["y"], "product", transB=1))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, side]) for name, side in (("x", 64), ("y", 32)))
    graph = helper.make_graph(nodes, "graph", [x], [y], initializers)
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION), tmp_path / "wide.onnx")
    assert half(tmp_path / "wide.onnx", tmp_path / "half.onnx") == OPSET
    kinds = {each.data_type for each in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert TensorProto.FLOAT4E2M1 in kinds
    batch = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    expected = output(tmp_path / "wide.onnx", batch)
    np.testing.assert_allclose(output(tmp_path / "half.onnx", batch), expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("last", ["y", "rounded"])
def test_a_step_through_whole_numbers_stays(last: str, tmp_path: Path) -> None:
    def convolution(source: str, out: str) -> Any:
        return helper.make_node("Conv", [source, "one"], [out], out)

    nodes = [
        convolution("x", "a"),
        helper.make_node("Cast", ["a"], ["whole"], "to whole numbers", to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["rounded"], "and back", to=TensorProto.FLOAT),
        convolution("rounded", "y"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2]) for name in ("x", last))
    one = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one")
    graph = helper.make_graph(nodes[: 4 if last == "y" else 3], "graph", [x], [y], [one])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", MIN_OPSET)], ir_version=9), tmp_path / "wide"
    )
    half(tmp_path / "wide", tmp_path / "half")
    found = output(tmp_path / "half", np.array([[[[0.25, 1.5], [-2.75, 3]]]], np.float32))
    assert found.ravel().tolist() == [0, 1, -2, 3]


def test_what_cannot_be_converted_is_a_user_error(tmp_path: Path) -> None:
    node = helper.make_node("Grunt", ["x"], ["y"], "grunt", domain="no.such")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([node], "graph", [x], [y], [numpy_helper.from_array(np.zeros(1, np.float32), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "odd.onnx")
    with pytest.raises(CompressError, match=r"odd\.onnx: cannot be converted to float16"):
        half(tmp_path / "odd.onnx", tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()

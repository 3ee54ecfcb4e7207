"""A transformer, and networks of products alone, are quantized as convolutions are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from transformer import LAYERS, pictures, write_transformer

from edgekd.compress.quantization.mixed_precision import choices, ladder, measure_costs, plan_for
from edgekd.compress.quantization.plan import require_fits
from edgekd.compress.quantization.qdq import read_layers
from edgekd.compress.quantization.quantize import QuantizationResult, quantize
from edgekd.compress.quantization.rewrite import weights_pair
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.errors import CompressError
from edgekd.core.formats import fp4x, nvfp4
from edgekd.core.formats.int8 import dequantize_channels
from edgekd.core.formats.packed_graph import pack, sections, unpack
from edgekd.detectors.generic_onnx import output_errors
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.graph.view import Graph

pytest.importorskip("torch")
SEEN, FRESH = pictures(16), pictures(32, seed=9)


@pytest.fixture(scope="module", params=[True, False], ids=["norm-first", "norm-last"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformer(tmp_path_factory.mktemp("transformer") / "float.onnx", request.param)


@pytest.fixture(scope="module")
def int8(network: Path) -> tuple[Path, QuantizationResult]:
    out = network.with_name("int8.onnx")
    return out, quantize(network, out, SEEN, Quantize())


def error(before: Path, after: Path) -> float:
    """Root of noise by signal on pictures that nothing was fitted on."""
    return output_errors(before, after, iter(FRESH))["scores"].relative_error


def in_fp4x(done: QuantizationResult) -> dict[str, WeightFormat]:
    return {name: "fp4x" if form == "int8" else form for name, form in done.forms.items()}


def test_every_layer_but_the_head_is_int8_and_little_is_lost(
    network: Path, int8: tuple[Path, QuantizationResult]
) -> None:
    out, done = int8
    assert len(done.forms) == done.layers == LAYERS
    assert [name for name, form in done.forms.items() if form == "float16"] == ["/head/Gemm"]
    assert error(network, out) < 0.015
    assert len(pack(out.read_bytes())) < network.stat().st_size / 3


def test_the_graph_has_what_tensorrt_asks_for(int8: tuple[Path, QuantizationResult]) -> None:
    graph = Graph(onnx.load(int8[0]))
    quantized = 0
    for node in graph.nodes:
        pair = weights_pair(graph, node) if node.op_type in ("Gemm", "MatMul") else None
        if pair is None:
            continue
        quantized += 1
        codes, scales, zero = (graph.constant(name) for name in pair.input)
        assert (codes.dtype, codes.ndim, scales.shape) == (np.int8, 2, (len(codes),))
        assert codes.min() >= -127
        assert not zero.any()
        assert [(entry.name, entry.i) for entry in pair.attribute] == [("axis", 0)]
        assert graph.producers.get(node.input[0]).op_type == "DequantizeLinear"
    assert quantized == LAYERS - 2, "all but the embedding, a convolution, and the head"
    attention = [node for node in graph.nodes if node.op_type == "MatMul" and weights_pair(graph, node) is None]
    assert len(attention) == 4
    assert all(graph.producers.get(name).op_type != "DequantizeLinear" for node in attention for name in node.input)


def test_the_runtime_computes_what_the_graph_says(int8: tuple[Path, QuantizationResult]) -> None:
    """Fused kernels that saturate would not be what TensorRT computes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    as_written = onnxruntime.InferenceSession(str(int8[0]), options, providers=["CPUExecutionProvider"])
    usual = onnxruntime.InferenceSession(str(int8[0]), providers=["CPUExecutionProvider"])
    for frame in FRESH[:4]:
        assert usual.run(None, {"images": frame})[0] == pytest.approx(
            as_written.run(None, {"images": frame})[0], abs=1e-4
        )


def test_four_bits_lose_more_but_much_less_than_rounding_to_the_nearest(
    network: Path, int8: tuple[Path, QuantizationResult], tmp_path: Path
) -> None:
    out, done = int8
    quantize(network, tmp_path / "fp4x.onnx", SEEN, Quantize(), in_fp4x(done))
    nearest(network, done, tmp_path / "nearest.onnx")
    assert 0.8 * error(network, out) < error(network, tmp_path / "fp4x.onnx") < 0.03
    assert error(network, tmp_path / "fp4x.onnx") < error(network, tmp_path / "nearest.onnx") / 2
    packed = pack((tmp_path / "fp4x.onnx").read_bytes())
    assert len(packed) < 0.6 * len(pack(out.read_bytes()))
    assert sum(section.encoding == "fp4x" for section in sections(packed)) == LAYERS - 1


def in_nearest_fp4x(weights: np.ndarray) -> np.ndarray:
    return dequantize_channels(*fp4x.quantize(weights))


def nearest(
    network: Path,
    done: QuantizationResult,
    out: Path,
    rounded: Callable[[np.ndarray], np.ndarray] = in_nearest_fp4x,
    form: str = "int8",
) -> None:
    """The float graph with the weights of those layers that are in a form rounded to the nearest."""
    model = onnx.load(network)
    read = {node.input[1] for node in model.graph.node if done.forms.get(node.name) == form}
    for initializer in model.graph.initializer:
        if initializer.name in read:
            weights = numpy_helper.to_array(initializer)
            turned = weights.T if weights.ndim == 2 and "MatMul" in initializer.name else weights
            values = rounded(turned)
            values = values.T if turned is not weights else values
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), initializer.name))
    onnx.save(model, out)


def test_plans_are_made_for_products_and_give_what_they_promise(network: Path, tmp_path: Path) -> None:
    costs = measure_costs(network, SEEN, Quantize(formats=("int8", "fp4x")))
    assert [len(layer.options) for layer in costs.layers] == [2] * (LAYERS - 1) + [1]
    for layer in costs.layers[:-1]:
        first, second = layer.options
        assert (first.form, second.form) == ("int8", "fp4x")
        assert second.bytes < 0.65 * first.bytes
        assert 0 < first.error < second.error
    for number, plan in enumerate(ladder(costs, 3)):
        require_fits(plan, choices(network))
        out = tmp_path / f"{number}.onnx"
        quantize(network, out, SEEN, Quantize(), plan.forms)
        assert len(pack(out.read_bytes())) == pytest.approx(plan.predicted_bytes, rel=0.05)
        assert error(network, out) < 0.03


def in_nvfp4(done: QuantizationResult) -> dict[str, WeightFormat]:
    """The products in NVFP4, and the embedding, a convolution, in INT8."""
    return {name: "nvfp4" if form == "int8" and "embed" not in name else form for name, form in done.forms.items()}


def test_products_may_be_nvfp4_with_float_activations(
    network: Path, int8: tuple[Path, QuantizationResult], tmp_path: Path
) -> None:
    plan = in_nvfp4(int8[1])
    done = quantize(network, tmp_path / "nvfp4.onnx", SEEN, Quantize(), plan)
    assert done.forms == plan
    assert done.int8 == ("/embed/Conv",)
    model = onnx.load(tmp_path / "nvfp4.onnx")
    codes = [each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT4E2M1]
    assert len(codes) == LAYERS - 2
    assert all(each.dims[1] in (64, 256) and len(each.raw_data) == each.dims[0] * each.dims[1] // 2 for each in codes)
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert [node.input[0] for node in quantizers] == ["images"], "no activation but the frame"
    assert error(network, tmp_path / "nvfp4.onnx") < 0.03
    without = tmp_path / "nearest.onnx"
    nearest(network, done, without, lambda weights: nvfp4.quantize(weights).values, "nvfp4")
    assert error(network, tmp_path / "nvfp4.onnx") < error(network, without) / 2
    packed = pack((tmp_path / "nvfp4.onnx").read_bytes())
    assert len(packed) < 0.7 * len(pack(int8[0].read_bytes()))
    assert unpack(packed) == (tmp_path / "nvfp4.onnx").read_bytes()


def test_a_network_may_be_nvfp4_alone(tmp_path: Path) -> None:
    source = perceptron(tmp_path)
    plan: dict[str, WeightFormat] = {"fc0": "nvfp4", "fc1": "nvfp4", "fc2": "float16"}
    done = quantize(source, tmp_path / "out.onnx", vectors(256, 1), Quantize(), plan)
    assert (done.forms, done.scales, done.int8) == (plan, {}, ())
    found = output_errors(source, tmp_path / "out.onnx", iter(vectors(200, 2)))
    assert next(iter(found.values())).relative_error < 0.1


def test_nvfp4_is_planned_where_it_is_asked_for_and_for_products_alone(network: Path, tmp_path: Path) -> None:
    costs = measure_costs(network, SEEN, Quantize(formats=("int8", "fp4x", "nvfp4")))
    offered = {layer.name: [option.form for option in layer.options] for layer in costs.layers}
    assert offered["/embed/Conv"] == ["int8", "fp4x"]
    assert offered["/head/Gemm"] == ["float16"]
    others = [forms for name, forms in offered.items() if name.startswith("/blocks")]
    assert others == [["int8", "fp4x", "nvfp4"]] * 8
    for layer in costs.layers[1:-1]:
        _, small, large = layer.options
        assert small.bytes < large.bytes < 1.2 * small.bytes
        assert 0 < large.error < 3 * small.error
    best = plan_for(costs)
    assert "nvfp4" in best.forms.values()
    quantize(network, tmp_path / "planned.onnx", SEEN, Quantize(), best.forms)
    assert len(pack((tmp_path / "planned.onnx").read_bytes())) == pytest.approx(best.predicted_bytes, rel=0.05)
    assert "nvfp4" in choices(network)["/blocks/layers.0/linear1/MatMul"], "a plan may say so by hand"


def test_training_refuses_what_it_would_take_for_float(int8: tuple[Path, QuantizationResult]) -> None:
    with pytest.raises(CompressError, match="8 matrix products, too; fix: use recipe ptq or mixed"):
        read_layers(int8[0])


def test_tensorrt_for_rtx_builds_it(int8: tuple[Path, QuantizationResult], tmp_path: Path) -> None:
    if not TENSORRT_RTX.available():
        pytest.skip("tensorrt-rtx is not installed")
    assert compile_ahead(int8[0], ["SM120"], tmp_path / "engine").bytes > 0


# --------------------------------------------------------------------------------------------------- a few rows of each


def perceptron(folder: Path, widths: tuple[int, ...] = (64, 256, 256, 10), op: str = "Gemm") -> Path:
    """x [1, widths[0]] -> products with ReLU between them -> y; one row of each frame. MatMul has no bias here."""
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {}
    last = "x"
    for at, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        sizes = rng.lognormal(0, 0.5, inputs)[:, None] * np.sqrt(2 / inputs)
        weights = (rng.normal(size=(inputs, outputs)) * sizes).astype(np.float32)
        constants[f"w{at}"] = weights
        biases = [f"b{at}"] if op == "Gemm" else []
        constants.update({name: rng.normal(0, 0.1, outputs).astype(np.float32) for name in biases})
        nodes.append(helper.make_node(op, [last, f"w{at}", *biases], [f"y{at}"], f"fc{at}"))
        last = f"y{at}"
        if at < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"r{at}"], f"relu{at}"))
            last = f"r{at}"
    described = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, widths[0]])]
    ends = [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, widths[-1]])]
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "perceptron", described, ends, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "perceptron.onnx")
    return folder / "perceptron.onnx"


def vectors(count: int, seed: int) -> list[np.ndarray]:
    """Rows float32 [1, 64] that vary in 16 directions, and a little in all, about a mean that is not zero."""
    mixed = np.random.default_rng(0).normal(size=(16, 64)) / 4
    rng = np.random.default_rng(seed)
    rows = 0.5 + rng.normal(size=(count, 16)) @ mixed + rng.normal(0, 0.3, (count, 64))
    return list(rows.astype(np.float32)[:, None])


PERCEPTRON: Mapping[str, WeightFormat] = {"fc0": "fp4x", "fc1": "fp4x", "fc2": "float16"}


@pytest.mark.parametrize(("op", "limits"), [("Gemm", (0.03, 0.1)), ("MatMul", (0.03, 0.1))])
def test_a_layer_that_reads_one_row_of_a_frame_is_fitted_on_many_frames(
    op: str, limits: tuple[float, float], tmp_path: Path
) -> None:
    source = perceptron(tmp_path, op=op)
    errors = {}
    for plan in (None, PERCEPTRON):
        for count in (12, 256):
            quantize(source, tmp_path / "out.onnx", vectors(count, 1), Quantize(), plan)
            found = output_errors(source, tmp_path / "out.onnx", iter(vectors(200, 2)))
            errors[plan is None, count] = next(iter(found.values())).relative_error
    assert errors[True, 256] < limits[0]
    assert errors[False, 256] < limits[1]
    assert errors[False, 256] < 0.8 * errors[False, 12], "though Quantize() asks for twelve"


def test_a_single_product_is_the_head_and_nothing_is_left(tmp_path: Path) -> None:
    source = perceptron(tmp_path, (64, 10))
    with pytest.raises(CompressError, match=r"nothing to quantize; expected .*products.* found 1, with none before"):
        quantize(source, tmp_path / "out.onnx", vectors(4, 1), Quantize())

"""The rules of the fakes' parser and builder against what is known of TensorRT, version by version."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from fake_graphs import dequantized, float_chain, model, planned, quantized_chain, scales, succeeded, tensor
from fake_tensorrt_builder import Request, total_ms
from fake_tensorrt_inspector import inspected
from fake_tensorrt_parser import parse_error
from onnx import TensorProto, helper, numpy_helper
from tensorrt_tables import VERSIONS, numbers

NEW = [version for version in VERSIONS if numbers(version) >= (10,)]
WEAKLY_TYPED = [version for version in VERSIONS if numbers(version) < (11,)]
BOTH = frozenset({"FP16", "INT8"})
PREFER = "PREFER_PRECISION_CONSTRAINTS"


# ----------------------------------------------------------------------------------------------------------- the parser


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_in_int8_are_refused_before_10(version: str) -> None:
    error = parse_error(quantized_chain("a", constants=True), version)
    if version in NEW:
        assert error is None
    else:
        assert error
        assert error.description == "Invalid Node - a.weight/DQ\na.weight/int8: invalid weights type of Int8"
        assert error.logged == "a.weight/int8: invalid weights type of Int8"
    assert parse_error(quantized_chain("a", "b"), version) is None, "in FP32 with Q and DQ they are taken"


@pytest.mark.parametrize("operator", ["Identity", "Cast"])
def test_an_int8_constant_is_refused_wherever_it_is_not_a_zero_point(operator: str) -> None:
    options = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
    graph = model([helper.make_node(operator, ["w"], ["y"], "node", **options)], [tensor("w", (2,), np.int8)])
    assert "invalid weights type of Int8" in getattr(parse_error(graph, "8.5.2.2"), "description", "")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_missing_zero_point_is_taken_from_10_on(version: str) -> None:
    error = parse_error(dequantized(tensor("w", (2, 2, 1, 1)), tensor("s", ()), None), version)
    assert (error is None) is (version in NEW)
    if error:
        assert ("vector::_M_range_check" in error.description) is (numbers(version) >= (8, 6))


@pytest.mark.parametrize(
    ("scale", "zero", "options", "text"),
    [
        (tensor("s", (2,)), tensor("z", (), np.int8, 0), {"axis": 0}, "must have the same size"),
        (tensor("s", (2,)), tensor("z", (2,), np.int8, 1), {"axis": 0}, "symmetric quantization"),
        (tensor("s", (3,)), tensor("z", (3,), np.int8, 0), {"axis": 0}, "number of output channels"),
        (tensor("s", (2,)), tensor("z", (2,), np.int8, 0), {"axis": 1}, "number of output channels"),
        (tensor("s", (), value=0), tensor("z", (), np.int8, 0), {}, "must all be positive"),
        (tensor("s", (2,), value=-1), tensor("z", (2,), np.int8, 0), {"axis": 0}, "must all be positive"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_scales_and_zero_points_that_no_version_takes(
    version: str, scale: onnx.TensorProto, zero: onnx.TensorProto, options: dict[str, int], text: str
) -> None:
    error = parse_error(dequantized(tensor("w", (2, 5, 1, 1)), scale, zero, **options), version)
    assert error
    assert text in error.description


@pytest.mark.parametrize("version", VERSIONS)
def test_without_an_axis_several_scales_are_for_axis_0(version: str) -> None:
    zero = tensor("z", (2,), np.int8, 0)
    assert parse_error(dequantized(tensor("w", (2, 5, 1, 1)), tensor("s", (2,)), zero), version) is None
    assert parse_error(dequantized(tensor("w", (5, 2, 1, 1)), tensor("s", (2,)), zero), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_scales_in_half_are_misread_before_10(version: str) -> None:
    half = tensor("s", (2,), np.float16)
    graph = dequantized(tensor("w", (2, 2, 1, 1), np.float16), half, tensor("z", (2,), np.int8, 0), axis=0)
    assert (parse_error(graph, version) is None) is (version in NEW)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bias_in_int32_is_refused(version: str) -> None:
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], "bias/DQ")]
    graph = model(nodes, [tensor("w", (2,), np.int32), tensor("s", ()), tensor("z", (), np.int32, 0)])
    assert "only activation types allowed" in getattr(parse_error(graph, version), "description", "")


def test_types_that_a_version_lacks_are_refused() -> None:
    eight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT8E4M3FN, dims=[1], raw_data=b"\0")
    four = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT4E2M1, dims=[2], raw_data=b"\0")
    nodes = [helper.make_node("Identity", ["x"], ["y"], "node")]
    assert [version for version in VERSIONS if not parse_error(model(nodes, [eight]), version)] == NEW
    assert [version for version in VERSIONS if not parse_error(model(nodes, [four]), version)] == NEW[1:]


def test_an_operator_without_importer_is_refused() -> None:
    error = parse_error(float_chain(), "8.5.2", ("Sigmoid",))
    assert error
    assert (error.code, error.node) == ("UNSUPPORTED_NODE", 1)
    assert "a/Sigmoid (Sigmoid)" in error.description


# ---------------------------------------------------------------------------------------------------------- the builder


@pytest.mark.parametrize("version", WEAKLY_TYPED)
def test_a_convolution_is_int8_only_where_data_and_weights_come_through_q_dq(version: str) -> None:
    made = succeeded(quantized_chain("b"), Request(version, BOTH))
    assert (made.precisions["a"], made.precisions["b"]) == ("FP16", "INT8")
    graph = quantized_chain("b")
    (node,) = (each for each in graph.graph.node if each.name == "b")
    node.input[0] = "a/y"
    assert succeeded(graph, Request(version, BOTH)).precisions["b"] == "FP16"


@pytest.mark.parametrize("version", WEAKLY_TYPED)
def test_q_dq_needs_the_flag_int8(version: str) -> None:
    made, log = planned(quantized_chain("a"), Request(version, frozenset({"FP16"})))
    assert made is None
    assert any("Int8 precision has been set for a layer or layer output" in text for text in log.at("ERROR"))


def test_from_11_on_the_graph_alone_decides() -> None:
    assert succeeded(quantized_chain("a"), Request("11.4.1")).precisions["a"] == "INT8"
    assert succeeded(quantized_chain("a"), Request("11.4.1")).precisions["b"] == "FP32"


@pytest.mark.parametrize("version", WEAKLY_TYPED)
def test_each_tensor_without_a_scale_is_warned_of_and_keeps_its_layers_from_int8(version: str) -> None:
    graph = float_chain()
    complete, log = planned(graph, Request(version, BOTH, scales(graph)))
    assert complete
    assert complete.missing == ()
    assert {complete.precisions[name] for name in "ab"} == {"INT8"}
    assert log.at("WARNING") == []
    partial, log = planned(graph, Request(version, BOTH, scales(graph, "b/c")))
    assert partial
    assert partial.missing == ("b/c",)
    assert (partial.precisions["a"], partial.precisions["b"]) == ("INT8", "FP16")
    (warning,) = log.at("WARNING")
    assert warning.startswith("Missing scale and zero-point for tensor b/c, expect fall back to non-int8")


def test_ranges_of_tensors_are_scales() -> None:
    graph = float_chain()
    made, log = planned(graph, Request("8.5.2", BOTH, ranges=scales(graph)))
    assert made
    assert made.precisions["a"] == "INT8"
    assert log.at("WARNING")[0].startswith("Calibrator is not being used.")


@pytest.mark.parametrize("cache", [None, {}, {"another": 0.1}])
def test_int8_without_any_scale_is_refused(cache: dict[str, float] | None) -> None:
    made, log = planned(float_chain(), Request("8.5.2", BOTH, cache))
    assert made is None
    assert "Calibration failure occurred with no scaling factors detected" in log.at("ERROR")[0]


@pytest.mark.parametrize("constraint", ["STRICT_TYPES", PREFER, "OBEY_PRECISION_CONSTRAINTS", None])
def test_the_precision_of_a_layer_counts_where_a_flag_says_so(constraint: str | None) -> None:
    graph = float_chain()
    asked = BOTH | ({constraint} if constraint else set())
    made = succeeded(graph, Request("8.5.2", frozenset(asked), scales(graph), half=frozenset({"b"})))
    assert made.precisions["b"] == ("FP16" if constraint else "INT8")
    refused, log = planned(graph, Request("8.5.2", frozenset({"INT8"}), scales(graph), half=frozenset({"b"})))
    assert refused is None
    assert "fp16 is not configured in the builder" in log.at("ERROR")[0]


def test_a_calibration_cache_does_not_count_with_q_dq() -> None:
    made, log = planned(quantized_chain("a"), Request("8.5.2", BOTH, scales(float_chain())))
    assert made
    assert (made.precisions["b"], made.missing) == ("FP16", ())
    assert log.at("WARNING")[0].startswith("Calibrator won't be used in explicit precision mode.")


def test_activations_have_one_scale() -> None:
    graph = quantized_chain("a")
    for each in graph.graph.initializer:
        if each.name in ("x/scale", "x/zero"):
            each.CopyFrom(numpy_helper.from_array(np.full(2, numpy_helper.to_array(each)), each.name))
    made, log = planned(graph, Request("8.5.2", BOTH))
    assert made is None
    assert "only for weight inputs" in log.at("ERROR")[0]


@pytest.mark.parametrize(
    ("version", "capability", "built"),
    [("10.16.0", (8, 7), False), ("10.16.0", (8, 9), True), ("11.4.1", (11, 0), True)],
)
def test_fp8_needs_hardware(version: str, capability: tuple[int, int], built: bool) -> None:
    graph = quantized_chain("a")
    graph.graph.initializer.append(
        onnx.TensorProto(name="w", data_type=TensorProto.FLOAT8E4M3FN, dims=[1], raw_data=b"\0")
    )
    made, log = planned(graph, Request(version, BOTH), compute_capability=capability)
    assert (made is not None) is built
    assert built or "require hardware with FP8 support" in log.at("ERROR")[0]


# ------------------------------------------------------------------------------------------ layers without INT8 kernels


@pytest.mark.parametrize("version", WEAKLY_TYPED)
def test_a_layer_without_an_int8_implementation_is_named(version: str) -> None:
    options: dict[str, Any] = {"without_int8_kernel": ("b",), "fused_names": True}
    made, log = planned(quantized_chain("a", "b"), Request(version, BOTH), **options)
    assert made is None
    quantize = "b.weight/Q_quantize_scale_node" if version == "8.2.1" else "b.weight/Q"
    fused = f"b.weight + {quantize} + b + PWN(PWN(b/Sigmoid), b/Mul)"
    errors = log.at("ERROR")
    place = "IBuilder::buildSerializedNetwork: " if version in NEW else "10: [optimizer.cpp::computeCosts::3728] "
    assert f"{place}Error Code 10: Internal Error (Could not find any implementation for node {fused}.)" in errors
    assert ("Assertion engine != nullptr failed" in errors[-1]) is (numbers(version) < (8, 6))
    assert succeeded(quantized_chain("a"), Request(version, BOTH), **options), "in FP16 there is one"


def test_a_node_without_a_name_is_called_after_its_output() -> None:
    graph = float_chain()
    graph.graph.node[0].name = ""
    _, log = planned(graph, Request("8.6.1", BOTH, scales(graph)), without_int8_kernel=("node_of_a/c",))
    assert log.at("ERROR")[0] == "10: Could not find any implementation for node node_of_a/c."


def test_calibrated_layers_have_fused_names_too() -> None:
    graph = float_chain()
    _, log = planned(graph, Request("8.6.1", BOTH, scales(graph)), without_int8_kernel=("a",), fused_names=True)
    assert log.at("ERROR")[0] == ("10: Could not find any implementation for node a + PWN(PWN(a/Sigmoid), a/Mul).")
    _, log = planned(graph, Request("8.6.1", BOTH, scales(graph)), without_int8_kernel=("a",))
    assert log.at("ERROR")[0] == "10: Could not find any implementation for node a."


# ------------------------------------------------------------------------------------------------------------- DLA


DLA = BOTH | {"GPU_FALLBACK", PREFER}


@pytest.mark.parametrize("version", WEAKLY_TYPED)
def test_the_dla_takes_no_q_dq_before_11(version: str) -> None:
    made, log = planned(quantized_chain("a"), Request(version, DLA, dla_core=0))
    assert made is None
    assert "not supported on DLA" in log.at("ERROR")[0]
    assert succeeded(quantized_chain("a"), Request("11.4.1", dla_core=0)).on_dla


def test_the_dla_computes_fp16_where_a_scale_is_missing_and_the_layers_do_not_show_it() -> None:
    graph = float_chain()
    complete = succeeded(graph, Request("8.5.2", DLA, scales(graph), dla_core=0))
    partial = succeeded(graph, Request("8.5.2", DLA, scales(graph, "a/c", "b/c"), dla_core=0))
    assert {complete.precisions[name] for name in "ab"} == {"INT8"}
    assert {partial.precisions[name] for name in "ab"} == {"FP16"}
    names = [(layer.name, layer.precision) for layer in complete.layers]
    assert names == [("{ForeignNode[a...b/Mul]}", "FP16")]
    assert names == [(layer.name, layer.precision) for layer in partial.layers]
    assert total_ms(complete.layers) < total_ms(partial.layers)
    assert inspected(complete.layers, "8.5.2") == inspected(partial.layers, "8.5.2")


def test_without_fp16_a_layer_without_scales_leaves_the_dla() -> None:
    graph = float_chain()
    request = Request("8.5.2", DLA - {"FP16"}, scales(graph, "a/s"), dla_core=0)
    made, log = planned(graph, request)
    assert made
    assert {"a/Sigmoid", "a/Mul"}.isdisjoint(made.on_dla)
    assert any("cannot run in INT8 mode due to missing scale and zero point" in text for text in log.at("WARNING"))


def test_what_the_dla_does_not_take_falls_back_or_is_refused() -> None:
    graph = model([helper.make_node("Softmax", ["x"], ["y"], "soft")], [])
    made, log = planned(graph, Request("8.5.2", frozenset({"FP16", "GPU_FALLBACK"}), dla_core=0))
    assert made
    assert made.on_dla == ()
    assert log.at("WARNING") == ["Default DLA is enabled but layer soft is not supported on DLA, falling back to GPU."]
    refused, log = planned(graph, Request("8.5.2", frozenset({"FP16"}), dla_core=0))
    assert refused is None
    assert "falling back to GPU is not enabled" in log.at("ERROR")[0]


# -------------------------------------------------------------------------------------------------- times and reformats


def test_int8_pays_by_the_times_of_layers_and_the_reformats_between() -> None:
    times = {"a": (1.0, 3.0), "b": (2.0, 1.0)}

    def ms(*quantized: str) -> float:
        request = Request("8.5.2", BOTH)
        return total_ms(succeeded(quantized_chain(*quantized), request, times=times, reformat_ms=0.5).layers)

    rest = 4 * 0.1
    assert ms("a") == pytest.approx(1 + 1 + 2 * 0.5 + rest), "in before a, out before b"
    assert ms("b") == pytest.approx(3 + 2 + 2 * 0.5 + rest), "in before b, out at the end"
    assert ms("a", "b") == pytest.approx(1 + 2 + 2 * 0.5 + rest), "none between a and b"

"""In which precision ONNX Runtime and OpenVINO compute a layer, and what it takes, read from what they say. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.agent.runtimes.onnxruntime import profiled_layers as onnxruntime_layers
from edgekd.agent.runtimes.openvino import profiled_layers as openvino_layers
from edgekd.agent.runtimes.precision import realized


def event(index: int, operator: str, us: int, kind: str = "float") -> dict[str, Any]:
    """Return an event of ONNX Runtime's profiler for one run of a node."""
    told = {"node_index": str(index), "op_name": operator, "parameter_size": "8", "output_size": "16"}
    shapes = [{kind: [1, 3, 8, 8]}]
    return {"cat": "Node", "name": f"/{operator}_kernel_time", "dur": us, "args": {**told, "input_type_shape": shapes}}


@pytest.mark.parametrize(
    ("operator", "kind", "precision"),
    [
        ("Conv", "float", "fp32"),
        ("FusedConv", "float16", "fp16"),
        ("QLinearConv", "uint8", "int8"),
        ("QGemm", "uint8", "int8"),
        ("MatMulIntegerToFloat", "uint8", "int8"),
        ("MaxPool", "uint8", "int8"),
        ("QuantizeLinear", "float", "reformat"),
        ("DequantizeLinear", "int8", "reformat"),
        ("ReorderOutput", "float", "reformat"),
        ("Gather", "int64", "int64"),
        ("Conv", "complex64", "unknown"),
    ],
)
def test_onnxruntime_says_the_precision_by_operator_and_input(operator: str, kind: str, precision: str) -> None:
    (layer,) = onnxruntime_layers([event(0, operator, 10, kind)], 0)
    assert (layer.kind, layer.precision, layer.name) == (operator, precision, f"/{operator}")


def test_onnxruntime_counts_the_least_time_of_a_node_and_no_warm_up() -> None:
    runs = [event(0, "Conv", us) for us in (5, 900, 30, 20)]
    others = [{"cat": "Session", "name": "model_run", "dur": 1}, {**event(0, "Conv", 1), "name": "Conv_fence_before"}]
    layers = onnxruntime_layers([*others, *runs, event(1, "Conv", 7), event(1, "Conv", 8)], 1)
    found = [(layer.ms, layer.weight_bytes, layer.activation_bytes) for layer in layers]
    assert found == [
        (0.02, 8, 16),
        (0.008, 8, 16),
    ]


def described(
    name: str, order: int, kind: str, primitive: str, fused: str = "", written: str = "f32"
) -> dict[str, Any]:
    """Return what OpenVINO's runtime model says of a layer."""
    told = {"execOrder": str(order), "layerType": kind, "primitiveType": primitive, "outputPrecisions": written}
    return {"name": name, "elements": 10, "originalLayersNames": fused, **told}


@pytest.mark.parametrize(
    ("kind", "primitive", "precision"),
    [
        ("Convolution", "brgconv_avx512_I8", "int8"),
        ("Convolution", "brgconv_avx512_1x1_f32", "fp32"),
        ("Convolution", "brgconv_avx512_amx_BF16", "bf16"),
        ("MatMul", "gemm_acl_f16", "fp16"),
        ("Concatenation", "ref_u8", "int8"),
        ("Reorder", "jit_uni_I8", "reformat"),
        ("FakeQuantize", "jit_avx512_f32", "reformat"),
        ("Const", "unknown_f32", "none"),
        ("Something", "undef", "unknown"),
    ],
)
def test_openvino_says_the_precision_by_kind_and_primitive(kind: str, primitive: str, precision: str) -> None:
    (layer,) = openvino_layers([described("conv", 0, kind, primitive)], [{}])
    assert layer.precision == precision


def test_openvino_layers_are_in_order_with_the_names_of_what_is_fused() -> None:
    told = [
        described("second", 2, "Convolution", "brgconv_avx512_I8", "second/WithoutBiases,second,act", "u8,f32"),
        described("first", 1, "Reorder", "jit_uni_I8"),
    ]
    layers = openvino_layers(told, [{"first": 2.0, "second": 5.0}, {"first": 3.0, "second": 4.0}, {"first": 9.0}])
    assert [(layer.name, layer.ms) for layer in layers] == [
        ("first", 2.0),
        ("second/WithoutBiases + second + act", 0.0),
    ]
    assert [layer.activation_bytes for layer in layers] == [40, 10]
    assert realized(layers).layers == {"int8": 1, "reformat": 1}

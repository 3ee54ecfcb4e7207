"""What the engine inspector says is read as it is, in the words of each generation. Runs on cameras' Pythons, too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekd.agent.runtimes.precision import Realized, Shares, layers_of, precision_named, realized

# Written after what is published: TensorRT's developer guide (8.2 to 10), NVIDIA/TensorRT issue 4020 (10.1), the
# migration guide to 11, in which a tensor's type and its layout are told apart.
CONVOLUTION = {
    "Name": "res4_0_branch2a_1 + res4_0_branch2a_bn_2",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "res3_3_branch2c_bn_3",
            "Dimensions": [1, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [
        {
            "Name": "res4_0_branch2a_bn_2",
            "Dimensions": [1, 256, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
    "TacticValue": "0x11bde0e1d9f2f35d",
}
REFORMAT = {
    "Name": "Reformatting CopyNode for Input Tensor 0 to resnetv15_conv0_fwd",
    "LayerType": "Reformat",
    "Inputs": [{"Name": "data", "Dimensions": [1, 3, 224, 224], "Format/Datatype": "Row major linear FP32"}],
    "Outputs": [{"Name": "Reformatted", "Dimensions": [1, 3, 224, 224], "Format/Datatype": "Row major Int8 format"}],
    "Origin": "REFORMAT",
}
NEWEST = {
    "Name": "model.0.conv",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {"Name": "x", "Dimensions": [1, 3, 8, 8], "Format": "Row major linear FP16 (kLINEAR)", "DataType": "Half"}
    ],
    "Outputs": [
        {"Name": "y", "Dimensions": [1, 4, 8, 8], "Format": "Row major linear FP16 (kLINEAR)", "DataType": "Half"}
    ],
    "Weights": {"Type": "Half", "Count": 108},
}


def layer(**told: Any) -> str:
    """An inspector's JSON with one layer."""
    return json.dumps({"Layers": [told], "Bindings": ["images", "output0"]})


def tensors(*formats: str) -> list[dict[str, Any]]:
    return [{"Name": f"t{at}", "Dimensions": [1, 4, 2, 2], "Format/Datatype": told} for at, told in enumerate(formats)]


def test_a_convolution_has_the_precision_of_its_weights_and_its_bytes() -> None:
    (found,) = layers_of(json.dumps({"Layers": [CONVOLUTION]}))
    assert (found.precision, found.kind) == ("int8", "CaskConvolution")
    assert found.weight_bytes == 131072 + 256 * 4
    assert found.activation_bytes == 256 * 28 * 28


def test_the_newest_generation_says_type_and_layout_apart() -> None:
    (found,) = layers_of(json.dumps({"Layers": [NEWEST], "I/O Tensors": [{"Name": "x", "IOMode": "Input"}]}))
    assert found.precision == "fp16"
    assert (found.weight_bytes, found.activation_bytes) == (216, 4 * 64 * 2)


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        ({"LayerType": "Reformat", "Inputs": tensors("Int8"), "Outputs": tensors("Row major linear FP32")}, "reformat"),
        ({"LayerType": "Constant", "Outputs": tensors("Row major linear FP32")}, "none"),
        ({"LayerType": "NoOp", "Inputs": tensors("Row major linear FP16 format")}, "none"),
        (
            {"LayerType": "DLA", "Name": "{ForeignNode[conv1]}", "Inputs": tensors("Row major Int8 format")},
            "dla",
        ),
        ({"LayerType": "Myelin", "Name": "{ForeignNode[a...b]}", "Inputs": tensors("Half")}, "unknown"),
        ({"LayerType": "PoolingV2", "Inputs": tensors("Int8"), "Outputs": tensors("Int8")}, "int8"),
        (
            {"LayerType": "PointWiseV2", "Inputs": tensors("Int8"), "Outputs": tensors("Channel major FP16")},
            "fp16",
        ),
        ({"LayerType": "kgen", "Inputs": tensors("Half", "Float"), "Outputs": tensors("Half")}, "fp32"),
        ({"LayerType": "gemm", "Inputs": tensors("Half"), "TacticName": "sm87_xmma_gemm_i8f32_i8i32_f32_tn_n"}, "int8"),
        ({"LayerType": "CaskGemmMatrixMultiply", "TacticName": "ampere_h16816gemm_128x64_nn"}, "fp16"),
        ({"LayerType": "Shuffle", "Inputs": tensors("N/A due to dynamic shapes")}, "unknown"),
        ({"LayerType": "CaskConvolution", "Weights": {"Type": "Half", "Count": 9}, "Inputs": tensors("Int8")}, "fp16"),
        ({"LayerType": "CaskConvolution", "Weights": {"Type": "Int8", "Count": 0}, "Inputs": tensors("Half")}, "fp16"),
        ({}, "unknown"),
    ],
)
def test_what_a_layer_computes_in(told: dict[str, Any], precision: str) -> None:
    (found,) = layers_of(layer(**told))
    assert found.precision == precision


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        ("Channel major FP16 format where channel % 4 == 0", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear BFloat16 format", "bf16"),
        ("FP8E4M3", "fp8"),
        ("Int64", "int64"),
        ("N/A due to dynamic shapes", None),
        ("", None),
    ],
)
def test_formats_are_words(told: str, precision: str | None) -> None:
    assert precision_named(told) == precision


def test_where_only_names_are_said_nothing_is_known() -> None:
    """As it is at the default verbosity: NVIDIA/TensorRT issue 4020."""
    found = layers_of(json.dumps({"Layers": ["conv0 + relu0", "conv1"], "Bindings": ["data", "out"]}), {"conv1": 2.0})
    assert [each.precision for each in found] == ["unknown", "unknown"]
    assert realized(found).share.time == {"unknown": 1.0}


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"Layers": 3}', "not JSON", '"Layers"', "null"])
def test_what_is_no_inspection_is_said(told: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        layers_of(told)


@pytest.mark.parametrize("odd", [None, 3, [], {"Inputs": 3}, {"Outputs": [3, {"Dimensions": ["x", None, True]}]}])
def test_odd_entries_are_no_error(odd: Any) -> None:
    (found,) = layers_of(json.dumps({"Layers": [odd]}))
    assert found.precision == "unknown"
    assert found.activation_bytes == 0


def test_shares_are_of_layers_of_bytes_and_of_time() -> None:
    engine = json.dumps(
        {"Layers": [CONVOLUTION, REFORMAT, {**CONVOLUTION, "Name": "slow", "Weights": {"Type": "Half", "Count": 4}}]}
    )
    found = realized(layers_of(engine, {CONVOLUTION["Name"]: 1.0, "slow": 2.0, REFORMAT["Name"]: 1.0}))  # type: ignore[dict-item]
    assert found.layers == {"fp16": 1, "int8": 1, "reformat": 1}
    assert found.share.time == {"fp16": 0.5, "int8": 0.25, "reformat": 0.25}
    assert sum(found.share.bytes.values()) == pytest.approx(1, abs=1e-3)
    assert found.share_of("int8") == ("time", 0.25)
    assert found.share_of("dla") == ("time", 0.0)


def test_where_no_time_was_taken_bytes_count() -> None:
    found = realized(layers_of(json.dumps({"Layers": [CONVOLUTION]})))
    assert found.share.time is None
    assert found.share_of("int8") == ("bytes", 1.0)


def test_an_engine_without_layers_has_no_shares() -> None:
    found = realized(layers_of('{"Layers": []}'))
    assert found == Realized({}, Shares({}, {}, None))
    assert found.share_of("int8") == ("bytes", 0.0)

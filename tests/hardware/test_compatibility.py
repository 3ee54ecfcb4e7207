"""What a target refuses or minds in a graph: one small graph per rule, and one graph that passes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from normalized_graph import normalized_model
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.errors import SpecError
from edgekd.graph.pins import pin
from edgekd.hardware.compatibility import check_graph, check_request
from edgekd.hardware.compatibility_rules import Finding
from edgekd.hardware.target import load_target

FP8, FP4, INT4 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1, TensorProto.INT4


def tensor(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def zeros(name: str, code: int, *dims: int) -> onnx.TensorProto:
    return helper.make_tensor(name, code, dims, np.zeros(dims))


def model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto] | None = None,
    *,
    opset: int = 13,
    shape: tuple[Any, ...] = (1, 16, 8, 8),
) -> onnx.ModelProto:
    """A graph from `x` to the output of the last node."""
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    given = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "test", [taken], [given], constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def one(op: str, *inputs: str, **attributes: Any) -> onnx.ModelProto:
    return model([helper.make_node(op, list(inputs) or ["x"], ["y"], **attributes)])


def convolution(
    activations: int = TensorProto.INT8,
    weights: int = TensorProto.INT8,
    *,
    zero: tuple[int, int] = (0, 0),
    scales: int = 16,
    group: int = 1,
    op: str = "Conv",
) -> onnx.ModelProto:
    """A Q/DQ convolution (or MatMul) with the number formats, zero points and count of weight scales asked for."""
    dims = (16, 16 // group, 3, 3) if op == "Conv" else (16, 16)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], name="x_q"),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], name="x_dq"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], name="w_dq", axis=0),
        helper.make_node(op, ["xd", "wd"], ["y"], name="it", **({"group": group} if op == "Conv" else {})),
    ]
    per_channel = [scales] if scales > 1 else []
    constants = [
        tensor("sx", 0.1),
        helper.make_tensor("zx", activations, [], [zero[0]]),
        zeros("w", weights, *dims),
        tensor("sw", np.full(per_channel, 0.01)),
        helper.make_tensor("zw", weights, per_channel, [zero[1]] * scales),
    ]
    return model(nodes, constants, opset=23)


def nms(limit_is_constant: bool = True) -> onnx.ModelProto:
    shape = [1, 8, 4]
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "axis"], ["scores"]),
        helper.make_node("Identity", ["k"], ["computed"]),
        helper.make_node(
            "NonMaxSuppression", ["x", "scores", "k" if limit_is_constant else "computed"], ["y"], name="n"
        ),
    ]
    constants = [tensor(name, [value], np.int64) for name, value in (("zero", 0), ("one", 1), ("axis", 1), ("k", 10))]
    return model(nodes, constants, shape=tuple(shape))


def topk(k: int | None) -> onnx.ModelProto:
    inner = helper.make_node("Identity", ["c"], ["k"], name="computed")
    node = helper.make_node("TopK", ["x", "c" if k else "k"], ["y", "i"], name="best")
    return model([node] if k else [inner, node], [tensor("c", [k or 5], np.int64)], shape=(1, 8400))


def found(graph: onnx.ModelProto, target: str, level: str, words: str, **options: Any) -> Finding:
    """The one finding of a level whose reason holds the words."""
    findings = [f for f in check_graph(graph, load_target(target), **options) if f.level == level and words in f.what]
    assert len(findings) == 1, check_graph(graph, load_target(target), **options)
    return findings[0]


def clean(graph: onnx.ModelProto, target: str) -> bool:
    return not [f for f in check_graph(graph, load_target(target)) if f.level != "note"]


def test_an_opset_above_the_maximum_says_which_to_export_with() -> None:
    graph = model([helper.make_node("Relu", ["x"], ["y"])], opset=18)
    assert "opset 17 is required: export again with opset=17" in found(graph, "xavier", "impossible", "opset 18").change
    assert "opset 13 is required" in found(graph, "nano", "impossible", "TensorRT 8.2.1 takes at most 13").change
    assert clean(graph, "orin-nx")
    assert clean(graph, "cpu")


def test_an_opset_below_9_is_refused_from_tensorrt_10_on() -> None:
    graph = model([helper.make_node("Relu", ["x"], ["y"])], opset=8)
    found(graph, "orin-nx", "impossible", "at least 9")
    assert clean(graph, "xavier")


@pytest.mark.parametrize(
    ("op", "refused", "accepted"),
    [
        ("Trilu", "nano", "xavier"),
        ("GridSample", "tx2", "xavier-nx"),
        ("RoiAlign", "nano", "xavier"),
        ("Mod", "nano", "xavier"),
        ("NonZero", "nano", "xavier"),
        ("LayerNormalization", "xavier", "orin-nano"),
        ("IsInf", "xavier", "orin-nano"),
        ("STFT", "agx-orin", "thor"),
        ("Attention", "thor", "t4"),
        ("Unique", "t4", "cpu"),
        ("MaxUnpool", "rtx-40", "cpu"),
    ],
)
def test_an_operator_is_refused_before_the_version_that_brought_it(op: str, refused: str, accepted: str) -> None:
    finding = found(one(op), refused, "impossible", op)
    assert finding.where.startswith(op)
    assert clean(one(op), accepted)


def test_integer_operators_are_to_be_replaced_by_qdq() -> None:
    graph = one("QLinearConv", *"x s z w s z s z".split())
    assert "Q/DQ" in found(graph, "xavier", "impossible", "QLinearConv").change
    assert clean(graph, "cpu")


def test_operators_of_another_domain_run_only_where_they_belong() -> None:
    contributed = one("FusedConv", domain="com.microsoft")
    found(contributed, "agx-orin", "impossible", "FusedConv")
    assert clean(contributed, "cpu")
    plugin = one("PillarScatter_TRT")
    assert clean(plugin, "agx-orin")
    found(plugin, "rtx-40", "impossible", "no plugins")
    found(plugin, "cpu", "impossible", "onnxruntime does not have")


def test_a_function_that_the_model_defines_is_not_foreign() -> None:
    graph = one("Mine", domain="mine")
    body = [helper.make_node("Relu", ["a"], ["b"])]
    graph.functions.append(helper.make_function("mine", "Mine", ["a"], ["b"], body, [helper.make_opsetid("", 13)]))
    assert clean(graph, "agx-orin")


def test_nms_in_the_graph_is_judged_by_version() -> None:
    assert "raw head" in found(nms(), "nano", "slow", "fixed, padded output").change
    found(nms(limit_is_constant=False), "nano", "impossible", "have to be constants")
    found(nms(limit_is_constant=False), "xavier", "slow", "size depends on the frame")
    found(nms(), "rtx-50", "impossible", "cannot build it")
    assert clean(nms(), "cpu")


def test_efficient_nms_is_judged_by_version() -> None:
    found(one("EfficientNMS_TRT"), "xavier", "note", "ties the graph")
    found(one("EfficientNMS_TRT"), "thor", "note", "deprecated from TensorRT 10.12")
    found(one("EfficientNMS_ONNX_TRT"), "thor", "impossible", "gone from TensorRT 10.16")
    found(one("EfficientNMS_TRT"), "rtx-40", "impossible", "no EfficientNMS plugin")
    found(one("EfficientNMS_TRT"), "cpu", "impossible", "no EfficientNMS plugin")


def test_topk_has_a_limit_everywhere_and_is_constant_on_old_tensorrt() -> None:
    found(topk(3841), "agx-orin", "impossible", "K is 3841")
    found(topk(3841), "rtx-40", "impossible", "K is 3841")
    assert clean(topk(3840), "agx-orin")
    assert clean(topk(5000), "cpu")
    found(topk(None), "xavier", "impossible", "needs it constant")
    assert clean(topk(None), "orin-nx")


def test_a_dynamic_batch_is_taken_from_one_frame_up_and_one_frame_at_a_time_by_the_dla() -> None:
    graph = model([helper.make_node("Relu", ["x"], ["y"])], shape=("batch", 16, 8, 8))
    for target in ("nano", "xavier", "orin-nano", "thor"):
        found(graph, target, "note", "takes several frames at once")
    found(graph, "xavier", "note", "for one frame at a time", dla=True)
    assert clean(graph, "cpu")


@pytest.mark.parametrize("shape", [("batch", 16, None, 8), (1, 3, None, None)])
def test_dynamic_shapes_are_slow_and_impossible_on_the_dla(shape: tuple[Any, ...]) -> None:
    graph = model([helper.make_node("Relu", ["x"], ["y"])], shape=shape)
    assert "dynamic=False" in found(graph, "orin-nano", "slow", "input x").change
    found(graph, "xavier", "note", "the DLA takes fixed shapes only")
    found(graph, "xavier", "impossible", "the DLA takes fixed shapes only", dla=True)
    assert clean(graph, "cpu")


def test_bytes_as_input_need_tensorrt_8_5() -> None:
    graph = model([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)])
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert "pass the bytes as float32" in found(graph, "nano", "impossible", "input x is UINT8").change
    assert clean(graph, "xavier")
    assert clean(graph, "cpu")


@pytest.mark.parametrize("target", ["nano", "tx2"])
def test_int8_is_impossible_without_the_hardware(target: str) -> None:
    graph = convolution()
    graph.opset_import[0].version = 13
    finding = found(graph, target, "impossible", "in int8")
    assert "use fp16" in finding.change
    assert finding.where == "Conv it"


@pytest.mark.parametrize("target", ["xavier", "orin-nx", "t4", "cpu"])
def test_a_symmetric_per_channel_int8_convolution_is_fine(target: str) -> None:
    graph = convolution()
    graph.opset_import[0].version = 13
    assert clean(graph, target)
    assert not [f for f in check_graph(graph, load_target(target)) if "scale" in f.what and "DLA" not in f.what]


@pytest.mark.parametrize("target", ["thor", "rtx-50", "gb10", "h100", "xavier", "cpu"])
def test_fp4_convolutions_are_impossible_everywhere(target: str) -> None:
    finding = found(convolution(FP8, FP4), target, "impossible", "no hardware runs FP4 convolutions")
    assert "fp4x" in finding.change


def test_int4_convolutions_are_impossible() -> None:
    found(convolution(weights=INT4), "thor", "impossible", "INT4 is for the weights of MatMul")


def test_fp4_matrix_products_run_on_blackwell_only() -> None:
    graph = convolution(FP4, FP4, op="MatMul")
    assert clean(graph, "thor")
    found(graph, "agx-orin", "impossible", "NVFP4 needs sm 10.0")


def test_fp8_needs_the_hardware_and_rtx_takes_it_for_matrices_only() -> None:
    found(convolution(FP8, FP8), "agx-orin", "impossible", "FP8 needs sm 8.9")
    found(convolution(FP8, FP8), "rtx-40", "impossible", "for MatMul and Gemm only")
    assert clean(convolution(FP8, FP8), "thor")
    assert clean(convolution(FP8, FP8, op="MatMul"), "rtx-40")


def test_grouped_fp8_convolutions_are_slow() -> None:
    assert "INT8" in found(convolution(FP8, FP8, group=16), "thor", "slow", "grouped and depthwise").change
    assert clean(convolution(group=16), "thor")


def test_dynamic_fp4_needs_tensorrt_11() -> None:
    graph = one("TRT_FP4DynamicQuantize", domain="trt")
    found(graph, "thor", "impossible", "needs TensorRT 11.0")


@pytest.mark.parametrize("zero", [(3, 0), (0, 1)])
def test_a_zero_point_other_than_0_is_refused_by_tensorrt(zero: tuple[int, int]) -> None:
    found(convolution(zero=zero), "thor", "impossible", "zero point other than 0")
    assert clean(convolution(zero=zero), "cpu")


def test_unsigned_activations_are_refused_by_tensorrt() -> None:
    found(convolution(activations=TensorProto.UINT8, zero=(128, 0)), "thor", "impossible", "UINT8")
    unstated = model(
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        ],
        [tensor("s", 0.1)],
    )
    finding = found(unstated, "xavier", "impossible", "UINT8")
    assert "DequantizeLinear and QuantizeLinear" in finding.where


def test_one_scale_for_all_weights_is_noted() -> None:
    assert "per output channel" in found(convolution(scales=1), "thor", "note", "one scale").change
    assert not check_graph(convolution(scales=16), load_target("thor"))


def test_int8_convolutions_may_run_in_float_on_tensorrt_rtx() -> None:
    found(convolution(), "rtx-40", "slow", "weight-only GEMM")
    assert clean(convolution(), "t4")


def test_qdq_reaches_the_xavier_dla_as_a_calibration_cache() -> None:
    graph = convolution()
    graph.opset_import[0].version = 17
    assert "derived" in found(graph, "xavier", "note", "calibration cache", dla=True).change
    assert not [f for f in check_graph(graph, load_target("thor")) if "DLA" in f.what]


@pytest.mark.parametrize("shape", [(1, 16, 8193), (4097, 16, 8, 8)])
def test_sizes_beyond_the_dla_fall_back(shape: tuple[int, ...]) -> None:
    graph = model([helper.make_node("Relu", ["x"], ["y"])], shape=shape)
    found(graph, "xavier", "slow", "exceeds", dla=True)
    inside = model([helper.make_node("Relu", ["x"], ["y"])], shape=(1, 16, 8192))
    assert not check_graph(inside, load_target("xavier"), dla=True)


def test_convolutions_beyond_the_dla_fall_back() -> None:
    def conv(kernel: int, stride: int) -> onnx.ModelProto:
        node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", strides=[stride, stride])
        return model([node], [tensor("w", np.zeros((4, 16, kernel, kernel)))], shape=(1, 16, 64, 64))

    found(conv(33, 1), "xavier", "slow", "kernels reach 32", dla=True)
    found(conv(3, 9), "agx-orin", "slow", "kernels reach 32", dla=True)
    assert not check_graph(conv(32, 8), load_target("xavier"), dla=True)


def test_what_a_dla_has_no_layer_for_falls_back_with_its_share_of_the_work() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Softmax", ["c"], ["s"], name="soft", axis=1),
        helper.make_node("MatMul", ["s", "s"], ["y"], name="attention"),
    ]
    graph = model(nodes, [tensor("w", np.zeros((16, 16, 1, 1)))])
    # Products: 16 * 16 for each of 64 places; 16 times 8 x 8 x 8.
    share = 16 * 8**3 / (16 * 8**3 + 64 * 16 * 16)
    oldest = found(graph, "xavier", "slow", f"with {share:.1%} of the multiply-adds", dla=True)
    assert oldest.where == "MatMul and Softmax soft, attention"
    assert found(graph, "agx-orin", "slow", "no layer", dla=True).where == "MatMul attention", "Orin has Softmax"
    assert not [each for each in check_graph(graph, load_target("xavier")) if "no layer" in each.what]


def test_the_share_of_what_falls_back_is_left_out_where_sizes_are_not_fixed() -> None:
    graph = model([helper.make_node("HardSwish", ["x"], ["y"])], shape=(1, "c", 8, 8), opset=14)
    assert found(graph, "xavier", "slow", "no layer", dla=True).what.endswith("falls back to the GPU")


def test_large_windows_fall_back_from_the_dla() -> None:
    def pool(size: int) -> onnx.ModelProto:
        return one("MaxPool", kernel_shape=[size, size])

    found(pool(9), "xavier", "slow", "no layer", dla=True)
    assert not check_graph(pool(8), load_target("xavier"), dla=True)


def test_a_padded_transposed_convolution_falls_back_from_the_dla() -> None:
    def upsample(pad: int) -> onnx.ModelProto:
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[pad] * 4)
        return model([node], [tensor("w", np.zeros((16, 4, 4, 4)))])

    found(upsample(1), "xavier", "slow", "transposed", dla=True)
    assert not check_graph(upsample(0), load_target("xavier"), dla=True)


def test_nodes_in_nested_graphs_count() -> None:
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Unique", ["x"], ["t"])], "then", [], [value])
    graph = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], [tensor("c", True, bool)]
    )
    found(graph, "thor", "impossible", "Unique")


def test_the_worst_comes_first() -> None:
    graph = convolution(zero=(3, 0), scales=1)
    levels = [finding.level for finding in check_graph(graph, load_target("rtx-40"))]
    assert levels == sorted(levels, key=["impossible", "slow", "note"].index)
    assert set(levels) == {"impossible", "slow", "note"}


def test_asked_for_precisions_are_judged_before_there_is_a_graph() -> None:
    assert not check_request(load_target("xavier"), precision="int8", dla=True)
    assert "INT8 needs" in check_request(load_target("nano"), precision="int8")[0].what
    for target in ("thor", "rtx-50", "xavier"):
        (finding,) = check_request(load_target(target), precision="nvfp4")
        assert finding.level == "impossible"
        assert "no hardware runs FP4 convolutions" in finding.what


def test_the_dla_of_thor_does_not_exist() -> None:
    assert not check_request(load_target("thor"), precision="int8", products="nvfp4")
    (finding,) = check_request(load_target("agx-orin"), precision="int8", products="nvfp4")
    assert "NVFP4 needs sm 10.0" in finding.what
    (finding,) = check_request(load_target("thor"), dla=True)
    assert (finding.level, "no DLA" in finding.what) == ("impossible", True)


@pytest.mark.parametrize("name", ["agx-orin", "orin-nx", "orin-nano", "orin-nano-super"])
def test_orin_runs_no_fp8_and_no_fp4_with_jetpack_7_either(name: str) -> None:
    target = load_target(name)
    assert target.software.tensorrt.value[1] == "10.16.2"
    assert {finding.level for finding in check_request(target, precision="fp8", products="nvfp4")} == {"impossible"}
    found(convolution(FP8, FP8), name, "impossible", "FP8 needs sm 8.9")


def test_a_range_of_tensorrt_that_ends_without_a_dla_is_said() -> None:
    (finding,) = check_request(load_target("agx-orin"), dla=True)
    assert (finding.level, "10.3.0 to 10.16.2" in finding.what) == ("slow", True)
    assert not check_request(load_target("agx-orin"), precision="int8")


def test_an_unknown_precision_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"unknown precision 'int-8'.*did you mean 'int8'"):
        check_request(load_target("xavier"), precision="int-8")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=r"broken\.onnx: cannot be read as an ONNX model"):
        check_graph(file, load_target("xavier"))


def test_a_real_detector_has_nothing_impossible(shared: Path) -> None:
    path = shared / "models" / "yolox_nano.onnx"
    assert check_graph(path, load_target("nano")) == []
    assert [f for f in check_graph(path, load_target("xavier"), dla=True) if f.level == "impossible"] == []


def test_weights_in_another_file_are_not_needed(shared: Path, tmp_path: Path) -> None:
    whole = onnx.load(shared / "models" / "yolox_nano.onnx")
    onnx.save(whole, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    assert check_graph(tmp_path / "split.onnx", load_target("nano")) == []


def test_checking_needs_no_torch_and_importing_needs_no_onnx(tmp_path: Path) -> None:
    onnx.save(convolution(), tmp_path / "model.onnx")
    code = f"""
import sys
from pathlib import Path
from edgekd.hardware.compatibility import check_graph
from edgekd.hardware.target import load_target
assert not {{"onnx", "numpy"}} & set(sys.modules)
assert check_graph(Path({str(tmp_path / "model.onnx")!r}), load_target("nano"))
assert not {{"torch", "onnxruntime", "cv2"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nodes_that_float16_cannot_hold_are_named_and_are_impossible_on_the_dla() -> None:
    graph = normalized_model()
    assert clean(graph, "agx-orin")
    pin(graph, {"stem": 1.2e5, "norm": 3e4})
    finding = found(graph, "agx-orin", "note", "2 nodes have values up to 1.2e+05")
    assert finding.where == "Conv and LayerNormalization stem, norm"
    found(graph, "agx-orin", "impossible", "2 nodes need float32", dla=True)
    assert check_graph(graph, load_target("cpu")) == []


@pytest.mark.parametrize(("target", "change"), [("orin-nano", "export with opset 17"), ("xavier", "quantize:")])
def test_a_decomposed_normalization_is_to_be_one_operator_where_tensorrt_has_it(target: str, change: str) -> None:
    graph = normalized_model(decomposed=True)
    assert change in found(graph, target, "note", "squares may overflow").change
    assert not [each for each in check_graph(normalized_model(), load_target(target)) if "squares" in each.what]


def test_a_transformer_is_noted_before_tensorrt_10_6() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["a"], name="norm"),
        helper.make_node("Softmax", ["a"], ["y"]),
    ]
    graph = model(nodes, [tensor("scale", np.ones(8))], opset=17)
    assert "TensorRT 10.3.0" in found(graph, "agx-orin", "note", "before TensorRT 10.6").what
    assert not [each for each in check_graph(graph, load_target("thor")) if "10.6" in each.what]
    without = [each for each in check_graph(model(nodes[1:]), load_target("agx-orin")) if "10.6" in each.what]
    assert not without

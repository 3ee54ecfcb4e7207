"""NVFP4 in ONNX: what the nodes stand for is what is scored, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgekd.core.errors import DeviceError
from edgekd.core.formats.nvfp4 import Nvfp4, quantize
from edgekd.graph.nvfp4 import IR_VERSION, OPSET, dequantizers, expanded, runnable
from edgekd.graph.opset import raise_for_nvfp4
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead

ROWS, INPUTS, OUTPUTS = 3, 64, 32


def tensor(seed: int = 0) -> Nvfp4:
    """Weights of all sizes, so that block scales are, too."""
    rng = np.random.default_rng(seed)
    return quantize(rng.normal(size=(OUTPUTS, INPUTS)) * rng.lognormal(0, 3, (OUTPUTS, 1)))


def product(weights: Nvfp4, op: str = "Gemm", end: str = "y") -> Any:
    """x [3, 64] -> Gemm or MatMul with the weights -> y; end: what the graph gives."""
    nodes, initializers = dequantizers(weights, "w")
    if op == "MatMul":
        nodes.append(helper.make_node("Transpose", ["w/dq"], ["turned"], "turn", perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", ["x", "turned"], ["y"], "product"))
    else:
        nodes.append(helper.make_node("Gemm", ["x", "w/dq"], ["y"], "product", transB=1))
    shapes = {"y": [ROWS, OUTPUTS], "w/dq": [OUTPUTS, INPUTS]}
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, INPUTS])],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, shapes[end])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def frame() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, INPUTS)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_the_nodes_stand_for_the_values_of_the_format(seed: int) -> None:
    weights = tensor(seed)
    (found,) = ReferenceEvaluator(product(weights, end="w/dq")).run(None, {"x": frame()})
    assert found.dtype == np.float32
    assert np.array_equal(found, weights.values)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_an_expanded_graph_has_the_same_values_and_no_four_bits(op: str) -> None:
    weights = tensor()
    model = product(weights, op)
    found = expanded(model)
    onnx.checker.check_model(found, full_check=True)
    (values,) = found.graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(values), weights.values)
    assert "DequantizeLinear" not in {node.op_type for node in found.graph.node}
    assert len(model.graph.initializer) == 3, "the graph itself is as it was"


def test_the_engine_runs_it_and_the_runtime_alone_does_not(tmp_path: Path) -> None:
    """If the second half fails, ONNX Runtime has learned it, and `runnable` can go."""
    import onnxruntime

    onnx.save(product(tensor()), tmp_path / "product.onnx")
    with ONNXRUNTIME_CPU.load(tmp_path / "product.onnx") as session:
        expected = frame() @ tensor().values.T
        assert session.run(frame()) == pytest.approx(expected, rel=1e-5, abs=1e-5 * float(np.abs(expected).max()))
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(str(tmp_path / "product.onnx"), providers=["CPUExecutionProvider"])


def test_other_files_are_loaded_as_they_are(tmp_path: Path) -> None:
    onnx.save(expanded(product(tensor())), tmp_path / "plain.onnx")
    assert runnable(tmp_path / "plain.onnx") == str(tmp_path / "plain.onnx")


def test_an_older_graph_gets_the_opset_and_keeps_names_and_notes() -> None:
    weights = expanded(product(tensor()))
    old = helper.make_model(weights.graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    old.metadata_props.add(key="edgekd", value="detector")
    found = raise_for_nvfp4(old, "old.onnx")
    assert [entry.version for entry in found.opset_import] == [OPSET]
    assert found.ir_version == IR_VERSION
    assert [(entry.key, entry.value) for entry in found.metadata_props] == [("edgekd", "detector")]
    assert [node.name for node in found.graph.node] == ["product"]


@pytest.mark.skipif(not TENSORRT_RTX.available().usable, reason="tensorrt-rtx is not installed")
def test_tensorrt_for_rtx_builds_it_for_blackwell_alone_and_keeps_four_bits(tmp_path: Path) -> None:
    large = quantize(np.random.default_rng(0).normal(size=(1024, 2048)))
    nodes, initializers = dequantizers(large, "w")
    nodes.append(helper.make_node("Gemm", ["x", "w/dq"], ["y"], "product", transB=1))
    described = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, side]) for name, side in (("x", 2048), ("y", 1024))
    ]
    graph = helper.make_graph(nodes, "large", described[:1], described[1:], initializers)
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION), tmp_path / "large.onnx")
    built = compile_ahead(tmp_path / "large.onnx", ["SM120"], tmp_path / "engine")
    assert large.nibbles.size * 4.5 / 8 < built.bytes < large.nibbles.size * 6 / 8
    with pytest.raises(DeviceError, match="fp4_e2m1"):
        compile_ahead(tmp_path / "large.onnx", ["SM89"], tmp_path / "engine")

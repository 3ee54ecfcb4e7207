"""Layers behind a TopK are refitted on the same rows of both graphs, although noise changes which rows are selected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.compress.quantization.layerwise import Walk, levels_of
from edgekd.compress.quantization.quantize import prepared, quantize
from edgekd.compress.steps import Quantize
from edgekd.core.formats.int8 import dequantize_channels
from edgekd.graph.view import Graph

SIDE, WIDTH, KEPT, OUTPUTS = 8, 32, 24, 20


def selecting_model() -> Any:
    """images [1, 3, 8, 8] -> output0 [1, 24, 20]: the rows with the best scores, through a product."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (WIDTH, 3, 1, 1), "score": (WIDTH, 16), "deep": (WIDTH, WIDTH), "head": (WIDTH, OUTPUTS)}
    constants = {name: (rng.normal(size=shape) / np.sqrt(WIDTH)).astype(np.float32) for name, shape in shapes.items()}
    constants |= {"flat": np.array([1, WIDTH, -1]), "k": np.array([KEPT]), "last": np.array([-1])}
    nodes = [
        helper.make_node("Conv", ["images", "stem"], ["map"], "stem_layer"),
        helper.make_node("Reshape", ["map", "flat"], ["columns"], "columns"),
        helper.make_node("Transpose", ["columns"], ["rows"], "rows", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "score"], ["scores"], "score_layer"),
        helper.make_node("ReduceMax", ["scores"], ["best"], "best", axes=[-1], keepdims=0),
        helper.make_node("TopK", ["best", "k"], ["values", "indices"], "select"),
        helper.make_node("Squeeze", ["indices"], ["order"], "order"),
        helper.make_node("Gather", ["rows", "order"], ["chosen"], "choose", axis=1),
        helper.make_node("MatMul", ["chosen", "deep"], ["hidden"], "deep_layer"),
        helper.make_node("Relu", ["hidden"], ["active"], "active"),
        helper.make_node("MatMul", ["active", "head"], ["output0"], "head_layer"),
    ]
    graph = helper.make_graph(
        nodes,
        "selecting",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, KEPT, OUTPUTS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(count)]


def test_a_walk_takes_the_selection_of_another_one(tmp_path: Path) -> None:
    onnx.save(selecting_model(), tmp_path / "float.onnx")
    graph = prepared(tmp_path / "float.onnx")
    levels = levels_of(graph)
    assert levels["choose"] == levels["select"] + 1
    ours, theirs = (Walk(graph, [frame]) for frame in pictures(2))
    for level in range(1, levels["select"] + 1):
        ours.advance(level)
        theirs.advance(level)
    (before,), (wanted,) = ours.values("indices"), theirs.values("indices")
    assert not np.array_equal(before, wanted)
    ours.select_as(theirs)
    assert np.array_equal(ours.values("indices")[0], wanted)


def test_weights_behind_a_selection_are_not_fitted_to_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(selecting_model(), tmp_path / "float.onnx")
    original = Graph(selecting_model()).constant("deep")
    assert original is not None

    def change() -> float:
        quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", pictures(12), Quantize(min_snr_db=-1000))
        graph = Graph(onnx.load(tmp_path / "int8.onnx"))
        codes, scales = (graph.constant(f"deep/deep_layer/{part}") for part in ("int8", "scale"))
        assert codes is not None
        assert scales is not None
        return float(np.linalg.norm(dequantize_channels(codes, scales).T - original) / np.linalg.norm(original))

    aligned = change()
    monkeypatch.setattr(Walk, "select_as", lambda self, other: None)
    assert aligned < 0.5 * change()

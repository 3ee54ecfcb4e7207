"""Builds of detectors with several outputs, and with inputs beside the image: one command, one short file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper
from onnx_families import FAMILIES
from running import Built, EdgeKD

from edgekd.core.bundle.archive import verify
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

HEADS = Path(__file__).parents[3] / "docs" / "reference" / "heads.md"

RAW = 'boxes = ["by.column"]\nscores = ["logits"]\ncoding = "cxcywh"\nunit = "pixels"\nclasses = ["red", "green"]\n'


def with_raw_outputs(model: Path, out: Path) -> Path:
    """Write the tiny detector with boxes and logits as two outputs."""
    graph = onnx.load(model)
    del graph.graph.node[-2:]  # sigmoids, and one output for all
    graph.graph.node.append(helper.make_node("Identity", ["boxes"], ["by.column"], "by.column.node"))
    del graph.graph.output[:]
    for name, rows in (("by.column", 4), ("logits", len(tiny.CLASSES))):
        shape = [1, rows, tiny.CELLS]
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save(graph, out)
    return out


def with_finished_detections(model: Path, out: Path) -> Path:
    """Write the tiny detector as DETRs are exported: the best pairs, for a frame of the size of a second input."""
    graph = onnx.load(with_raw_outputs(model, out)).graph
    weights = {
        "side": np.float32(tiny.SIDE),
        "half": np.float32(0.5),
        "count": np.array([30], np.int64),
        "columns": np.array(len(tiny.CLASSES), np.int64),
        "flat": np.array([-1], np.int64),
        "first": np.array([0], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in weights.items())
    steps = [
        ("Transpose", ["logits"], ["by.box"], {"perm": [0, 2, 1]}),
        ("Sigmoid", ["by.box"], ["probable"], {}),
        ("Reshape", ["probable", "flat"], ["all"], {}),
        ("TopK", ["all", "count"], ["best", "places"], {}),
        ("Div", ["places", "columns"], ["queries"], {}),
        ("Mod", ["places", "columns"], ["classes"], {}),
        ("Unsqueeze", ["best", "first"], ["scores"], {}),
        ("Unsqueeze", ["classes", "first"], ["labels"], {}),
        ("Transpose", ["by.column"], ["by.row"], {"perm": [0, 2, 1]}),
        ("Gather", ["by.row", "queries"], ["chosen"], {"axis": 1}),
        ("Split", ["chosen"], ["centre", "extent"], {"axis": 2}),
        ("Mul", ["extent", "half"], ["reach"], {}),
        ("Sub", ["centre", "reach"], ["top"], {}),
        ("Add", ["centre", "reach"], ["bottom"], {}),
        ("Concat", ["top", "bottom"], ["corners"], {"axis": 2}),
        ("Div", ["corners", "side"], ["fractions"], {}),
        ("Cast", ["orig_target_sizes"], ["size"], {"to": TensorProto.FLOAT}),
        ("Concat", ["size", "size"], ["sizes"], {"axis": 1}),
        ("Mul", ["fractions", "sizes"], ["found"], {}),
    ]
    graph.node.extend(helper.make_node(op, ins, outs, outs[0] + ".node", **more) for op, ins, outs, more in steps)
    graph.input.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2]))
    del graph.output[:]
    for name, kind, shape in (
        ("labels", TensorProto.INT64, [1, 30]),
        ("found", TensorProto.FLOAT, [1, 30, 4]),
        ("scores", TensorProto.FLOAT, [1, 30]),
    ):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    model_of_all = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model_of_all, {"names": str(dict(enumerate(tiny.CLASSES)))})
    onnx.save(model_of_all, out)
    return out


@pytest.mark.slow
def test_raw_outputs_become_a_bundle(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tiny_build: Built, tmp_path: Path
) -> None:
    model = with_raw_outputs(tiny_model, tmp_path / "raw.onnx")
    (tmp_path / "head.toml").write_text(RAW, "ascii")
    ran = edgekd("build", model, "--head", tmp_path / "head.toml", "--data", tiny_data, "--out", tmp_path, "--json")
    assert ran.code == 0, ran.err
    bundle = Path(ran.json["bundle"])
    evidence, usual = verify(bundle).evidence, verify(tiny_build.bundle).evidence
    assert evidence.before.map50_95 == usual.before.map50_95 > 0.5
    assert evidence.after.map50_95 > 0.98 * usual.after.map50_95
    scored = edgekd("eval", bundle, "--data", tiny_data, "--json").json
    assert scored["map50_95"] == evidence.after.map50_95


@pytest.mark.slow
def test_six_outputs_of_three_levels_become_a_bundle(edgekd: EdgeKD, tiny_data: Path, tmp_path: Path) -> None:
    """NanoDet's, by the description in docs/reference/heads.md: it decodes as the shipped one does."""
    family = next(each for each in FAMILIES if each.names == "NanoDet")
    model, head = family.write(tmp_path / "nanodet.onnx"), tmp_path / "head.toml"
    (text,) = re.findall(r"```toml\n(boxes = .*?)```", HEADS.read_text("utf-8"), re.DOTALL)
    assert len(onnx.load(model).graph.output) == 6
    assert len(text.splitlines()) <= 15
    head.write_text(text.replace('["person", "helmet"]', str(list(tiny.CLASSES))), "ascii")
    frame = np.random.default_rng(0).normal(0, 1, (1, 3, *family.size)).astype(np.float32)
    outputs = []
    for name in (str(head), family.head):
        export(load(model, name), tmp_path / "decoded.onnx", 17)
        with ONNXRUNTIME_CPU.load(tmp_path / "decoded.onnx") as session:
            outputs.append(session.run(frame))
    np.testing.assert_array_equal(*outputs)
    ran = edgekd("build", model, "--head", head, "--data", tiny_data, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert verify(Path(ran.json["bundle"])).detector["classes"] == tiny.CLASSES


@pytest.mark.slow
def test_finished_detections_for_a_second_input_become_a_bundle(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tiny_build: Built, tmp_path: Path
) -> None:
    model = with_finished_detections(tiny_model, tmp_path / "finished.onnx")
    ran = edgekd("build", model, "--data", tiny_data, "--out", tmp_path, "--json")
    assert ran.code == 0, ran.err
    evidence, usual = verify(Path(ran.json["bundle"])).evidence, verify(tiny_build.bundle).evidence
    # Overlapping boxes of neighbouring cells are not suppressed here.
    assert 0.3 < evidence.before.map50_95 <= usual.before.map50_95
    assert evidence.after.map50_95 > 0.95 * evidence.before.map50_95

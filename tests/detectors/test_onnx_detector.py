"""An ONNX graph's head is recognised where its shapes can only mean one thing, and asked for where not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from real_graphs import real_graph

from edgekd.core.detection.types import DetectorSpec, Head, Keypoints, Preprocess
from edgekd.core.errors import SpecError
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.detectors.keypoints import keypoints_of
from edgekd.detectors.onnx import SPEC_KEY, OnnxDetector, describe, describe_in
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import load_graph

CELLS = 64 + 16 + 4
HERE = Path("model.onnx")
Shape = list[Any]


def model_of(
    output: Shape | None,
    size: Shape = [64, 64],  # noqa: B006
    names: object = None,
    op: str = "Sigmoid",
    opset: int = 17,
    **metadata: str,
) -> Any:
    """A graph whose output has the given shape; sides that are strings are dynamic. It only averages its input."""
    fixed = [side if isinstance(side, int) else 1 for side in output or [1]]
    weights = [
        numpy_helper.from_array(np.array(fixed, np.int64), "shape"),
        numpy_helper.from_array(np.array([1, 1, 1, 1][: len(fixed)] or [1], np.int64), "one"),
    ]
    nodes = [
        helper.make_node(op, ["images"], ["a"], "a"),
        helper.make_node("ReduceMean", ["a"], ["mean"], "mean", keepdims=0),
        helper.make_node("Reshape", ["mean", "one"], ["single"], "single"),
        helper.make_node("Expand", ["single", "shape"], ["output0"], "expand"),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, output)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    entries = {**metadata, **({"names": str(names)} if names else {})}
    if entries:
        helper.set_model_props(model, entries)
    return model


def head_file(folder: Path, text: str) -> str:
    (folder / "head.toml").write_text(text, "utf-8")
    return str(folder / "head.toml")


def refusal(model: Any, head: str | None = None, names: tuple[str, ...] = ()) -> str:
    with pytest.raises(SpecError) as caught:
        describe(model, HERE, head, names)
    return str(caught.value)


def test_an_ultralytics_head_is_recognised_with_its_class_names() -> None:
    spec = describe(model_of([1, 6, CELLS], names={0: "a", 1: "b"}), HERE)
    assert spec == DetectorSpec(("a", "b"), Preprocess(64, 64), Head("yolo"))


def test_a_yolox_head_is_recognised_with_its_way_of_preprocessing() -> None:
    spec = describe(model_of([1, CELLS, 7]), HERE)
    assert spec.head == Head("yolox")
    assert spec.preprocess == Preprocess(64, 64, color="bgr", scale=1.0, center=False)
    assert spec.classes == ("class0", "class1")


def test_an_end_to_end_head_is_recognised_and_needs_no_nms() -> None:
    spec = describe(model_of([1, 300, 6], names={0: "a"}), HERE)
    assert spec.head == Head("end2end", nms=False)


POSE = {"names": {0: "a", 1: "b"}, "task": "pose", "kpt_shape": "[5, 3]"}
"""Ultralytics' metadata of a detector of two classes with five keypoints."""


@pytest.mark.parametrize(
    ("output", "kind"), [([1, 21, CELLS], "yolo"), ([1, CELLS, 22], "yolox"), ([1, 300, 21], "end2end")]
)
def test_keypoints_are_recognised_in_the_metadata(output: Shape, kind: str) -> None:
    spec = describe(model_of(output, **POSE), HERE)
    assert (spec.classes, spec.head.kind) == (("a", "b"), kind)
    assert spec.head.keypoints == Keypoints((0.2,) * 5, 3)


def test_keypoints_may_be_described(tmp_path: Path) -> None:
    text = 'kind = "yolo"\nkeypoints = [2, 2]\nkeypoint_sigmas = [0.1, 0.3]\nclasses = ["a"]\n'
    spec = describe(model_of([1, 9, CELLS]), HERE, head_file(tmp_path, text))
    assert spec.head.keypoints == Keypoints((0.1, 0.3), 2)
    assert "expected [1, 10, 84]; found [1, 9, 84]" in refusal(
        model_of([1, 9, CELLS]), head_file(tmp_path, text.replace('["a"]', '["a", "b"]'))
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("keypoints = [2, 4]", "numbers of a keypoint; expected 2 or 3; found 4"),
        ("keypoints = [0, 3]", "shape of keypoints; expected a number"),
        ("keypoints = [2, 2]\nkeypoint_sigmas = [0.1]", "sigmas of keypoints; expected 2 above 0; found (0.1,)"),
        ("keypoints = [2, 2]\nkeypoint_sigmas = [0.1, -1.0]", "sigmas of keypoints; expected 2 above 0"),
    ],
)
def test_keypoints_that_cannot_be_are_refused(text: str, named: str, tmp_path: Path) -> None:
    assert named in refusal(model_of([1, 9, CELLS]), head_file(tmp_path, f'kind = "yolo"\n{text}\n'))


@pytest.mark.parametrize("sigmas", [np.array([0.1, 0.2]), {0.1, 0.2}, "0.1", [0.1, float("nan")], [0.1, "0.2"], 0.1])
def test_sigmas_of_a_checkpoint_are_a_list_of_numbers(sigmas: object) -> None:
    with pytest.raises(SpecError, match="sigmas of keypoints; expected 2 above 0"):
        keypoints_of([2, 3], sigmas, "checkpoint")
    assert keypoints_of([2, 3], [], "checkpoint").sigmas == (0.5, 0.5)


def test_keypoints_beside_roles_of_outputs_are_refused(tmp_path: Path) -> None:
    assert "keypoints; expected beside `kind`" in refusal(
        model_of([1, 9, CELLS]), head_file(tmp_path, "keypoints=[2, 2]")
    )


@pytest.mark.parametrize(("output", "kind"), [([1, 7, CELLS], "yolo"), ([1, 300, 7], "end2end")])
def test_rotated_boxes_are_recognised_in_the_metadata(output: Shape, kind: str) -> None:
    model = model_of(output, names={0: "a", 1: "b"}, task="obb")
    spec = describe(model, HERE)
    assert spec.head == Head(kind, nms=kind == "yolo", rotated=True)  # type: ignore[arg-type]
    describe_in(model, spec)
    assert next(entry.value for entry in model.metadata_props if entry.key == "task") == "obb"
    assert describe(model, HERE) == spec


def test_rotated_boxes_may_be_described(tmp_path: Path) -> None:
    described = head_file(tmp_path, 'kind = "yolo"\nrotated = true\n')
    assert describe(model_of([1, 7, CELLS], names={0: "a", 1: "b"}), HERE, described).head.rotated
    assert "rotated; expected beside `kind`" in refusal(model_of([1, 7, CELLS]), head_file(tmp_path, "rotated=true"))


@pytest.mark.parametrize("task", ["semantic", "classify"])
def test_another_task_is_refused_in_one_line(task: str) -> None:
    found = refusal(model_of([1, 7, CELLS], names={0: "a"}, task=task))
    named = "its task is not supported; expected task detect or pose or obb or segment"
    assert f"{named}; found {task}; fix: export a detector" in found


def test_a_pose_without_the_shape_of_its_keypoints_is_refused() -> None:
    assert "shape of keypoints" in refusal(model_of([1, 21, CELLS], names={0: "a"}, task="pose"))


def test_a_graph_with_keypoints_describes_itself() -> None:
    model = model_of([1, 21, CELLS], **POSE)
    spec = describe(model, HERE)
    describe_in(model, spec)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["task"], metadata["kpt_shape"]) == ("pose", "[5, 3]")
    assert describe(model, HERE) == spec


def test_an_oblong_input_is_height_before_width() -> None:
    spec = describe(model_of([1, 6, 2 * CELLS], size=[64, 128]), HERE)
    assert (spec.preprocess.height, spec.preprocess.width) == (64, 128)


def test_a_fourth_level_is_recognised() -> None:
    spec = describe(model_of([1, 6, CELLS + 1]), HERE)
    assert spec.head.strides == (8, 16, 32, 64)


def test_names_may_be_passed_where_the_graph_has_none() -> None:
    assert describe(model_of([1, 6, CELLS]), HERE, names=("x", "y")).classes == ("x", "y")
    assert describe(model_of([1, 6, CELLS], names={0: "a", 1: "b"}), HERE, names=("x", "y")).classes == ("a", "b")


@pytest.mark.parametrize("names", ["{0: 'a', 1: 'b'}", '{"1": "b", "0": "a"}', "['a', 'b']", "('a', 'b')"])
def test_names_are_read_as_dictionary_or_list(names: str) -> None:
    assert describe(model_of([1, 6, CELLS], names=names), HERE).classes == ("a", "b")


def test_numbered_names_are_sorted_as_numbers() -> None:
    names = {str(index): f"n{index}" for index in range(12)}
    assert describe(model_of([1, 16, CELLS], names=json.dumps(names)), HERE).classes[:3] == ("n0", "n1", "n2")


@pytest.mark.parametrize("names", ["nonsense (", "5", "{'x': 1}", "__import__('os')"])
def test_names_that_cannot_be_read_are_numbered(names: str) -> None:
    assert describe(model_of([1, 6, CELLS], names=names), HERE).classes == ("class0", "class1")


def test_a_decoded_yolox_is_not_taken_for_an_undecoded_one() -> None:
    assert "--head" in refusal(model_of([1, CELLS, 7], op="Exp"))


def test_a_small_decoded_yolox_of_one_class_is_not_taken_for_end_to_end() -> None:
    assert "--head" in refusal(model_of([1, CELLS, 6], op="Exp"))


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ([1, 6, CELLS + 5], None),  # other cells
        ([1, 56, CELLS], {0: "person"}),  # key points behind the class
        ([1, "n", 7], None),
        (["batch", "rows", "columns"], None),
        ([1, 6], None),
        (None, None),  # nothing known
        ([1, 300, 7], {0: "a"}),
        ([1, 252, 86], None),
    ],
)
def test_any_other_output_is_asked_for(output: Shape | None, names: object) -> None:
    message = refusal(model_of(output, names=names))
    assert "--head" in message
    assert "recognised" in message


def test_several_outputs_are_refused_by_name() -> None:
    model = model_of([1, 6, CELLS])
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, []))
    assert "mean" in refusal(model)
    assert "mean" in refusal(model, head="yolo")


def test_end_to_end_without_names_asks_for_them(tmp_path: Path) -> None:
    assert "classes" in refusal(model_of([1, 300, 6]))
    named = describe(model_of([1, 300, 6]), HERE, head_file(tmp_path, 'kind = "end2end"\nclasses = ["a"]'))
    assert named.classes == ("a",)


@pytest.mark.parametrize("kind", ["yolo", "yolox"])
def test_a_dynamic_output_without_names_asks_for_them(kind: str) -> None:
    assert "classes" in refusal(model_of([1, "a", "b"]), head=kind)
    assert "wrong outputs" in refusal(model_of(None), head=kind, names=("a",))


def test_a_dynamic_output_with_names_is_taken_at_its_word() -> None:
    spec = describe(model_of([1, "a", "b"]), HERE, "yolo", ("a", "b", "c"))
    assert spec.head == Head("yolo")
    assert spec.classes == ("a", "b", "c")


def test_a_dynamic_input_takes_the_size_in_the_metadata() -> None:
    spec = describe(model_of([1, 6, CELLS], size=["h", "w"], imgsz="[64, 64]"), HERE)
    assert (spec.preprocess.height, spec.preprocess.width) == (64, 64)


@pytest.mark.parametrize("metadata", [{}, {"imgsz": "640"}, {"imgsz": "nonsense["}, {"imgsz": "['a', 'b']"}])
def test_a_dynamic_input_of_unknown_size_is_refused(metadata: dict[str, str]) -> None:
    assert "dynamic" in refusal(model_of([1, 6, CELLS], size=["h", "w"], **metadata))


def test_other_inputs_are_refused() -> None:
    half = model_of([1, 6, CELLS])
    half.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert "float16" in refusal(half)
    last = model_of([1, 6, CELLS])
    last.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 64, 64, 3]))
    assert "[1, 64, 64, 3]" in refusal(last)
    two = model_of([1, 6, CELLS])
    two.graph.input.append(helper.make_tensor_value_info("size", TensorProto.FLOAT, [2]))
    assert "size" in refusal(two)


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = model_of([1, 6, CELLS])
    model.graph.input.insert(0, helper.make_tensor_value_info("shape", TensorProto.INT64, [3]))
    onnx.save(model, tmp_path / "old.onnx")
    assert OnnxDetector(tmp_path / "old.onnx").export(tmp_path / "out.onnx", 17).head.kind == "yolo"
    assert [value.name for value in onnx.load(tmp_path / "out.onnx").graph.input] == ["images"]


def test_a_head_may_be_named() -> None:
    spec = describe(model_of([1, CELLS, 7], op="Exp"), HERE, "yolox")
    assert spec.head.kind == "yolox"


def test_a_head_that_the_shape_contradicts_is_refused() -> None:
    message = refusal(model_of([1, 6, CELLS]), head="yolox")
    assert f"[1, {CELLS}" in message
    assert f"[1, 6, {CELLS}]" in message


def test_a_head_file_says_everything(tmp_path: Path) -> None:
    text = """
        kind = "yolo"
        nms = false
        strides = [16, 32]
        classes = ["x", "y"]
        color = "bgr"
        scale = 1
        mean = [1.0, 2.0, 3.0]
        std = [4.0, 5.0, 6.0]
        pad_value = 0
        center = false
        upscale = false
    """
    assert describe(model_of([1, 6, 20]), HERE, head_file(tmp_path, text)) == DetectorSpec(
        ("x", "y"),
        Preprocess(64, 64, "bgr", 1.0, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0, False, False),
        Head("yolo", nms=False, strides=(16, 32)),
    )


def test_a_head_file_changes_only_what_it_says(tmp_path: Path) -> None:
    spec = describe(model_of([1, CELLS, 7]), HERE, head_file(tmp_path, 'kind = "yolox"\nscale = 0.5'))
    assert spec.preprocess == Preprocess(64, 64, color="bgr", scale=0.5, center=False)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('kind = "ssd"', "ssd"),
        ('kind = "yolo"\nstride = [8]', "stride"),
        ('kind = "yolo"\nstrides = 8', "strides"),
        ('kind = "yolo"\nstrides = [0]', "strides"),
        ('kind = "yolo"\nclasses = "abc"', "classes"),
        ('kind = "yolo"\nnms = 1', "nms"),
        ('kind = "yolo"\ncolor = "gray"', "gray"),
        ('kind = "yolo"\nmean = [1.0, 2.0]', "mean"),
        ('kind = "yolo"\nstd = [1.0, 0.0, 1.0]', "std"),
        ('kind = "yolo"\npad_value = 256', "pad_value"),
        ('kind = "yolo"\nheight = 3', "height"),
        ("kind = ", "TOML"),
    ],
)
def test_a_head_file_with_a_mistake_names_it(text: str, named: str, tmp_path: Path) -> None:
    path = head_file(tmp_path, text)
    message = refusal(model_of([1, 6, CELLS]), head=path)
    assert message.startswith(path)
    assert named in message


@pytest.mark.parametrize("head", ["ssd", "yolov4", "head.json"])
def test_an_unknown_head_is_refused(head: str) -> None:
    assert head in refusal(model_of([1, 6, CELLS]), head=head)


def test_a_missing_head_file_is_named(tmp_path: Path) -> None:
    assert "none.toml" in refusal(model_of([1, 6, CELLS]), head=str(tmp_path / "none.toml"))


def test_a_graph_says_later_what_was_once_said_of_it() -> None:
    model = model_of([1, "a", "b"])
    spec = DetectorSpec(("a", "b"), replace(Preprocess(32, 64), mean=(0.1, 0.2, 0.3)), Head("yolo", False, (8,)))
    describe_in(model, spec)
    assert describe(model, HERE) == spec
    assert describe(model, HERE, "yolo", ()).classes == ("a", "b")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"classes": 3}', '{"classes": [], "preprocess": {}, "head": {}}'])
def test_a_damaged_description_is_refused(text: str) -> None:
    assert SPEC_KEY in refusal(model_of([1, 6, CELLS], **{SPEC_KEY: text}))


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\x08\x12"])
def test_a_file_that_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"bad\.onnx"):
        load_graph(path)


def test_a_truncated_graph_is_refused(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes((shared / "models" / "yolox_nano.onnx").read_bytes()[:100_000])
    with pytest.raises(SpecError, match="complete"):
        load_graph(path)


def test_only_known_kinds_of_file_are_models(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").touch()
    with pytest.raises(SpecError, match="tflite"):
        load(tmp_path / "model.tflite")
    with pytest.raises(SpecError, match="no such file"):
        load(tmp_path / "model.onnx")


def test_a_dynamic_batch_becomes_one_and_the_size_is_fixed(tmp_path: Path) -> None:
    model = model_of([1, 6, CELLS], size=["h", "w"], imgsz="[64, 64]")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "in.onnx")
    OnnxDetector(tmp_path / "in.onnx").export(tmp_path / "out.onnx", 17)
    shape = onnx.load(tmp_path / "out.onnx").graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim] == [1, 3, 64, 64]


@pytest.mark.parametrize(("found", "most", "expected"), [(17, 13, 13), (11, 17, 13), (15, 17, 15), (17, 17, 17)])
def test_the_opset_becomes_one_that_the_target_reads(found: int, most: int, expected: int, tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model_of([1, 6, CELLS], opset=found), source)
    detector = OnnxDetector(source)
    detector.export(out, most)
    assert onnx.load(out).opset_import[0].version == expected
    frame = np.random.default_rng(0).uniform(0, 1, (1, 3, 64, 64)).astype(np.float32)
    with ONNXRUNTIME_CPU.load(out) as session:
        np.testing.assert_allclose(session.run(frame), detector.reference(frame), rtol=1e-5)


def test_an_opset_that_cannot_be_lowered_is_refused(tmp_path: Path) -> None:
    model = model_of([1, 6, CELLS], opset=18)
    model.graph.node[0].op_type = "Mish"  # since opset 18
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(SpecError, match="opset 13"):
        OnnxDetector(tmp_path / "in.onnx").export(tmp_path / "out.onnx", 13)


@pytest.mark.slow
def test_a_real_graph_of_opset_17_becomes_one_of_13(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = real_graph("yolo11n.pt", shared, tmp_path_factory)
    lowered = export(OnnxDetector(graph.path), tmp_path / "out.onnx", 13)
    assert lowered.opset == 13
    assert lowered.spec == graph.exported.spec
    assert lowered.error < 1e-5


def test_a_real_yolox_is_recognised_whole(shared: Path) -> None:
    path = shared / "models" / "yolox_nano.onnx"
    spec = describe(load_graph(path), path)
    assert spec.head == Head("yolox")
    assert len(spec.classes) == 80
    assert (spec.preprocess.height, spec.preprocess.width, spec.preprocess.color) == (416, 416, "bgr")

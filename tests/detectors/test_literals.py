"""Metadata of ONNX graphs is read without Python's parser, which some texts keep busy for minutes or crash."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekd.core.errors import DataError, SpecError
from edgekd.core.toml import read_toml
from edgekd.detectors import generic_onnx, load
from edgekd.detectors.literals import MAX_TEXT, read_literal
from edgekd.detectors.onnx import SPEC_KEY, describe
from edgekd.detectors.ultralytics.detector import class_names, input_size

SCALARS = st.text() | st.integers(-999_999_999, 999_999_999)


@given(SCALARS | st.lists(SCALARS) | st.dictionaries(SCALARS, SCALARS))
def test_what_python_writes_is_read_back(value: Any) -> None:
    assert read_literal(repr(value)) == value


@given(st.text(alphabet="[](){}'\",:0a\\x -", max_size=30))
def test_other_text_is_none_or_what_python_reads(text: str) -> None:
    value = read_literal(text)
    if value is not None:
        read = ast.literal_eval(text.strip())
        assert value in (read, [read], list(read) if isinstance(read, tuple) else None)  # (0) is no tuple in Python


BOMBS = [
    "-" * 1_000_000 + "1",
    "[" * 1_000_000,
    "[" * 90 + "]" * 90,
    "{" + "0:" * 100_000 + "}",
    "9" * 5_000,
    "{" + "9" * 5_000 + ": 'a'}",
    "{0: " + "9" * 5_000 + "}",
    "'" + "a" * (MAX_TEXT + 1) + "'",
    "'a' " * 100_000,
    "0" + "+0j" * 100_000,
    "{0: '\\N{" + "a" * 1_000 + "}'}",
    "['\\x']",
    "\0",
    "{'²': 'a'}",
    "{0: 'a', 0.5: 'b'}",
    "{-1: 'a'}",
]


def graph_with(output: list[int], **metadata: str) -> Any:
    ports = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64]),
        helper.make_tensor_value_info("output0", TensorProto.FLOAT, output),
    ]
    model = helper.make_model(helper.make_graph([], "g", ports[:1], ports[1:]))
    helper.set_model_props(model, metadata)
    return model


@pytest.mark.parametrize("text", BOMBS)
def test_names_and_sizes_that_are_no_literals_are_left_out(text: str) -> None:
    assert describe(graph_with([1, 6, 84], names=text, imgsz=text), Path("m.onnx")).classes == ("class0", "class1")
    with pytest.raises(SpecError, match="imgsz"):
        input_size({"imgsz": text}, 32)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5_000, '{"classes": ' + "9" * 5_000 + "}", "NaN", '{"head": []}', "null"],
)
def test_a_description_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(SpecError, match=SPEC_KEY) as caught:
        describe(graph_with([1, 6, 84], **{SPEC_KEY: text}), Path("m.onnx"))
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("rows", [2**31, 2**62, -5])
def test_an_output_of_billions_of_classes_is_an_error(rows: int) -> None:
    with pytest.raises(SpecError):
        describe(graph_with([1, rows, 84]), Path("m.onnx"))
    with pytest.raises(SpecError):
        describe(graph_with([1, 84, rows]), Path("m.onnx"), "yolox")


def test_an_unknown_type_of_input_is_an_error() -> None:
    model = graph_with([1, 6, 84])
    model.graph.input[0].type.tensor_type.elem_type = 1_000
    with pytest.raises(SpecError, match="type 1000"):
        describe(model, Path("m.onnx"))


@pytest.mark.parametrize(
    "names", [None, {}, [], {"a": "b"}, {0: None}, {0: b"a"}, {0: "a\nb"}, {None: "a"}, {0: "a", "1": "b"}, 5, "abc"]
)
def test_class_names_of_a_checkpoint_that_no_manifest_can_hold_are_refused(names: Any) -> None:
    with pytest.raises(SpecError, match="names"):
        class_names(type("Network", (), {"names": names}))
    assert class_names(type("Network", (), {"names": {1: "b", 0: 5}})) == ("5", "b")


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), 10**9, [], [640, "x"], {}, True, "[1, 2"])
def test_a_size_of_training_without_a_meaning_is_refused(size: Any) -> None:
    if size in (0, [], {}):  # as None: the default
        assert input_size({"imgsz": size}, 32) == (640, 640)
        return
    with pytest.raises(SpecError, match="imgsz"):
        input_size({"imgsz": size}, 32)


ENDLESS = [
    "a." * 100_000 + "b = 1",
    '"a" . ' * 100_000 + "b = 1",
    "a = " + "[" * 100_000,
    "a = " + "9" * 5_000,
    'kind = "yolo"\nstrides = [0x' + "f" * 9_000 + "]",
]


@pytest.mark.parametrize("text", ENDLESS)
def test_toml_without_an_end_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "head.toml").write_text(text)
    with pytest.raises(SpecError, match="head"):
        describe(graph_with([1, 6, 84]), Path("m.onnx"), str(tmp_path / "head.toml"))


@pytest.mark.parametrize("name", ["a" * 5_000, "nul\0"])
def test_a_path_that_no_file_system_takes_is_an_error(name: str) -> None:
    for suffix in (".onnx", ".pt"):
        with pytest.raises(SpecError, match="no such file"):
            load(Path(name + suffix))
    with pytest.raises(SpecError, match="cannot read"):
        read_toml(Path(name))


def test_an_array_that_is_longer_than_the_input_is_not_loaded(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    wanted = generic_onnx.Input("x", (1, 3))
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(1 << 24))
    np.save(tmp_path / "long.npy", np.zeros(1 << 16))
    header = json.dumps({"descr": "<f8", "fortran_order": False, "shape": []}).replace("[]", f"({1 << 50},)")
    header = header.replace("false", "False").ljust(117) + "\n"
    (tmp_path / "giant.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    for name in ("zeros.npz", "long.npy", "giant.npy"):
        with pytest.raises(DataError, match=name):
            generic_onnx.read_frame(tmp_path / name, wanted)
    np.savez(tmp_path / "good.npz", x=np.ones(3), y=np.zeros(9))
    assert generic_onnx.read_frame(tmp_path / "good.npz", wanted).tolist() == [[1, 1, 1]]

"""Files that are generated from a detector's description, compiled or parsed by their real readers.

A hostile description is refused where it comes in. tests/evaluation/report/test_report.py does the same for pages.
"""

from __future__ import annotations

import ast
import configparser
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess, spec_from_json
from edgekd.core.documents import to_plain
from edgekd.core.errors import SpecError
from edgekd.core.toml import toml_text
from edgekd.deploy.converters import contract, deepstream
from edgekd.deploy.firmware.types import camera_script
from edgekd.detectors.onnx import SPEC_KEY, describe, describe_in

CODE = "8}; int main() { system(0); } //"
HOSTILE = [
    CODE,
    "a\nb",
    "a;b\n[property]\ncustom-lib-path=/x.so",
    "$(id)",
    "`id`",
    "'; id; '",
    "</script><script>x</script>",
    "\x00",
    "‮",
    "\ud800",
    "",
]
PLAIN = asdict(DetectorSpec(("a", "b"), Preprocess(64, 64), Head("yolo")))
VALUES = st.one_of(
    st.sampled_from(HOSTILE),
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.sampled_from(HOSTILE) | st.integers(-1, 70000), max_size=4),
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable)
SPECS = st.builds(
    DetectorSpec,
    st.lists(NAMES | st.sampled_from([name for name in HOSTILE if name.isprintable() and name]), min_size=1).map(tuple),
    st.builds(
        Preprocess,
        st.integers(1, 8192),
        st.integers(1, 8192),
        st.sampled_from(("rgb", "bgr")),
        st.floats(1e-9, 1e9),
        st.tuples(*[st.floats(-1e9, 1e9)] * 3),
        st.floats(1e-9, 1e9).map(lambda std: (std, std, std)),
        st.integers(0, 255),
    ),
    st.builds(
        Head,
        st.sampled_from(("yolo", "yolox", "end2end")),
        st.booleans(),
        st.lists(st.integers(1, 65536), min_size=1, max_size=16).map(tuple),
    ),
)


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a description."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield (*path, key)
        yield from fields(item, (*path, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a document with another value in one place."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = with_value(document[path[0]], path[1:], value)
    return copy


def graph_with(metadata: dict[str, str]) -> Any:
    """Return a model whose metadata describes it."""
    ports = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64]),
        helper.make_tensor_value_info("output0", TensorProto.FLOAT, None),
    ]
    model = helper.make_model(helper.make_graph([], "g", ports[:1], ports[1:]))
    helper.set_model_props(model, metadata)
    return model


def texts(spec: DetectorSpec) -> dict[str, str]:
    return dict(deepstream._text_files(spec, deepstream._EngineBuild(deepstream._FP16), "name", ()))


def compiled(header: str, folder: Path) -> None:
    """Compile a header with g++, and require that it declares nothing but its three macros."""
    words = [line.split(maxsplit=2)[:2] for line in header.splitlines() if not line.startswith("//")]
    assert words == [["#define", f"EDGEKD_{name}"] for name in ("CLASSES", "STRIDES", "PARSE")]
    compiler = shutil.which("g++")
    if compiler is None:
        return
    source = folder / "main.cpp"
    source.write_text(
        f"{header}\nvoid parse_yolo(){{}} void parse_yolox(){{}} void parse_end2end(){{}}\n"
        "const int strides[] = EDGEKD_STRIDES; unsigned classes = EDGEKD_CLASSES; int main() { EDGEKD_PARSE(); }\n"
    )
    subprocess.run([compiler, "-fsyntax-only", "-Werror", source], check=True, capture_output=True)


@given(st.sampled_from(list(fields(PLAIN))), VALUES)
@example(("head", "strides"), [CODE])
@example(("head", "strides", 0), CODE)
@example(("head", "kind"), CODE)
@example(("classes", 0), "a\nb")
@example(("preprocess", "pad_value"), CODE)
@example(("preprocess", "height"), 2**40)
@example(("head", "strides"), [])
def test_metadata_with_any_value_is_refused_or_can_be_written(path: tuple[Any, ...], value: Any) -> None:
    document = json.dumps(with_value(PLAIN, path, value))
    try:
        spec = describe(graph_with({SPEC_KEY: document}), Path("m.onnx"))
    except SpecError:
        return
    written = texts(spec)
    header = written[deepstream.HEAD]
    assert all(ord(letter) < 127 for letter in header)
    assert len(header.splitlines()) == 4
    assert set(header.splitlines()[2].split("{")[1].rstrip("}")) <= set("0123456789, ")
    assert written[deepstream.LABELS].splitlines() == list(spec.classes)


@pytest.mark.parametrize("value", HOSTILE)
def test_names_of_classes_with_control_characters_are_refused_in_every_source(value: str, tmp_path: Path) -> None:
    if value.isprintable() and value:
        return
    named = str({0: value, 1: "b"})
    model = graph_with({"names": named})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, 84]))
    with pytest.raises(SpecError, match="printable"):
        describe(model, Path("m.onnx"))
    if "\ud800" not in value and "\0" not in value:
        head = tmp_path / "head.toml"
        head.write_text(toml_text({"kind": "yolo", "classes": [value, "b"]}), "utf-8")
        with pytest.raises(SpecError, match="printable"):
            describe(model, Path("m.onnx"), str(head))
    spec = replace(spec_from_json(PLAIN), classes=(value,))
    (tmp_path / contract.NAME).write_text(
        json.dumps({"format": "onnx", "entry": "m", "engine": None, "detector": to_plain(spec)})
    )
    with pytest.raises(SpecError, match="printable"):
        contract.read_contract(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "9" * 5_000,
        "[]",
        "null",
        json.dumps({"format": "x", "entry": "m", "engine": ["x"], "detector": PLAIN}),
        json.dumps({"format": "x", "entry": 5, "engine": None, "detector": PLAIN}),
        json.dumps({"format": "x", "entry": "m", "engine": None, "detector": {**PLAIN, "head": []}}),
    ],
)
def test_a_damaged_contract_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / contract.NAME).write_text(text)
    with pytest.raises(SpecError, match=r"edgekd\.json"):
        contract.read_contract(tmp_path)


@given(SPECS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_header_compiles_and_defines_three_macros(tmp_path: Path, spec: DetectorSpec) -> None:
    compiled(deepstream._head(checked_spec(spec, "spec")), tmp_path)


@given(SPECS)
def test_configuration_labels_and_contract_are_read_back(spec: DetectorSpec) -> None:
    checked_spec(spec, "spec")
    written = texts(spec)
    read = configparser.ConfigParser(interpolation=None, strict=True)
    read.read_string(written[deepstream.CONFIG])
    assert read.sections() == ["property", "class-attrs-all"]
    assert read["property"]["custom-lib-path"] == "./libedgekd_parser.so"
    assert int(read["property"]["num-detected-classes"]) == len(spec.classes)
    assert written[deepstream.LABELS].split("\n") == [*spec.classes, ""]
    metadata = yaml.safe_load(contract._metadata(spec))
    assert metadata["names"] == dict(enumerate(spec.classes))
    assert metadata["imgsz"] == [spec.preprocess.height, spec.preprocess.width]
    assert spec_from_json(tomllib.loads(toml_text(to_plain(spec)))) == spec


@given(SPECS)
def test_metadata_of_a_graph_is_read_back(spec: DetectorSpec) -> None:
    model = graph_with({})
    describe_in(model, spec)
    assert describe(model, Path("m.onnx")) == spec
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert ast.literal_eval(entries["names"]) == dict(enumerate(spec.classes))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + len(spec.classes), 84])
    )
    assert describe(model, Path("m.onnx"), "yolo").classes == spec.classes


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
@example("'; touch /x; '")
@example("$(id)`id`\n\\")
@settings(max_examples=25)
def test_settings_of_a_camera_script_stay_one_word(state: str) -> None:
    script = camera_script("rauc", state=state)
    subprocess.run(["sh", "-n"], input=script, check=True)
    common = (resources.files("edgekd.deploy.firmware") / "camera" / "common.sh").read_bytes()
    setting = script[: script.index(common)].removeprefix(b"#!/bin/sh\n")
    shown = subprocess.run(["sh", "-c", setting.decode() + '\nprintf "%s" "$state"'], capture_output=True, check=True)
    assert shown.stdout.decode() == state

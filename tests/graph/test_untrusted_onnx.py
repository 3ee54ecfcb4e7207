"""ONNX files that name other files, expand without end or have giant tensors: refused before a library reads them."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from untrusted_graphs import DOMAIN, PLACES, VALUES, in_branch, model_of, outside

import edgekd
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.formats.protobuf import field
from edgekd.core.limited_process import run_limited
from edgekd.graph import rehearsal
from edgekd.graph.model_file import read_model, require_safe
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import load_graph, load_view


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, match: str, monkeypatch: pytest.MonkeyPatch, *, for_shapes: bool = False) -> None:
    """Require that every way to read the file refuses it, and none asks a library.

    for_shapes: also the one that needs no values of constants.
    """

    def unsafe(*_: Any, **__: Any) -> None:
        raise AssertionError("a library got the file")

    monkeypatch.setattr(onnx, "load", unsafe)
    monkeypatch.setattr("onnxruntime.InferenceSession", unsafe)
    for read in (require_safe, load_graph, read_model, *((load_view,) if for_shapes else ())):
        with pytest.raises(SpecError, match=match):
            read(path)
    with pytest.raises(DeviceError, match=match):
        ONNXRUNTIME_CPU.load(path)


def symlink(secret: Path, folder: Path) -> None:
    (folder / "w.bin").symlink_to(secret)


def link_of_a_folder(secret: Path, folder: Path) -> None:
    (folder / "sub").symlink_to(secret.parent)


def hardlink(secret: Path, folder: Path) -> None:
    os.link(secret, folder / "w.bin")


def pipe(_: Path, folder: Path) -> None:
    os.mkfifo(folder / "w.bin")


def subfolder(_: Path, folder: Path) -> None:
    (folder / "w.bin").mkdir()


def mark_of_memory(_: Path, folder: Path) -> None:
    """ONNX Runtime takes this location for a place in its memory, and `offset` for the address."""
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(VALUES.tobytes())


def copy(secret: Path, folder: Path) -> None:
    (folder / "w.bin").write_bytes(secret.read_bytes())


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("../secret/w.bin", copy),
        ("sub/../w.bin", copy),
        ("/etc/hostname", copy),
        ("", copy),
        (".", copy),
        ("w.bin/", copy),
        ("./w.bin", copy),
        ("..\\w.bin", copy),
        ("w.bin\n", copy),
        ("none.bin", copy),
        ("w.bin", symlink),
        ("sub/w.bin", link_of_a_folder),
        ("w.bin", hardlink),
        ("w.bin", pipe),
        ("w.bin", subfolder),
        ("*/_ORT_MEM_ADDR_/*", mark_of_memory),
    ],
)
def test_external_data_elsewhere_is_refused_before_a_library_reads_the_file(
    location: str,
    place: Callable[[Path, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret, folder = tmp_path / "secret" / "w.bin", tmp_path / "model"
    secret.parent.mkdir()
    folder.mkdir()
    secret.write_bytes(VALUES.tobytes())
    place(secret, folder)
    refused(saved(outside(location), folder), "cannot be read as an ONNX model", monkeypatch)


@pytest.mark.parametrize("nest", PLACES)
def test_external_data_is_found_wherever_a_tensor_is(
    nest: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(saved(nest(outside("/etc/hostname")), tmp_path), "external data", monkeypatch)


@pytest.mark.parametrize(
    "told",
    [
        {"offset": 4},
        {"offset": 40, "length": 48},
        {"length": 44},
        {"length": -1},
        {"offset": "1e3"},
        {"offset": "9" * 4000},
        {"dims": (1 << 20,)},
    ],
)
def test_external_data_that_is_not_there_is_refused(
    told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    refused(saved(outside("w.bin", **told), tmp_path), "external data", monkeypatch)


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin"])
def test_external_data_beside_the_model_is_read(location: str, tmp_path: Path) -> None:
    (tmp_path / location).parent.mkdir(exist_ok=True)
    (tmp_path / location).write_bytes(VALUES.tobytes())
    path = saved(outside(location), tmp_path)
    assert np.array_equal(numpy_helper.to_array(load_graph(path).graph.initializer[0]), VALUES)
    with ONNXRUNTIME_CPU.load(path) as session:
        assert np.array_equal(session.run(VALUES), 2 * VALUES)


def functions(count: int, calls: int, first: str = "Relu") -> list[Any]:
    """Return functions, each of which calls the one before several times."""
    made = []
    for index in range(count):
        operator, domain = (f"f{index - 1}", DOMAIN) if index else (first, DOMAIN if first != "Relu" else "")
        steps = [f"t{index}_{step}" for step in range(calls - 1)]
        nodes = [
            helper.make_node(operator, [source], [result], domain=domain)
            for source, result in zip(["a", *steps], [*steps, "b"], strict=True)
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        made.append(helper.make_function(DOMAIN, f"f{index}", ["a"], ["b"], nodes, imports))
    return made


def call(name: str) -> list[Any]:
    return [helper.make_node(name, ["x"], ["y"], domain=DOMAIN)]


def giant(dims: list[int], data: bytes = b"\0" * 48) -> Any:
    return model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=data)],
    )


def sparse() -> Any:
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])])
    values, indices = numpy_helper.from_array(VALUES, "w"), numpy_helper.from_array(np.arange(12), "i")
    model.graph.sparse_initializer.add(values=values, indices=indices, dims=[1 << 20, 1 << 20])
    return model


def nested(depth: int) -> Any:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    for _ in range(depth):
        model = in_branch(model)
    return model


def training() -> Any:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    model.training_info.add()
    return model


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (model_of(call("f12"), functions=functions(13, 10)), "once its functions are expanded"),
        (model_of(call("f3"), functions=functions(4, 2, first="f3")), "call themselves"),
        (giant([1 << 40]), "more than"),
        (giant([1 << 20]), "its data has"),
        (giant([-1]), "more than"),
        (giant([1] * 100, b"\0\0\0\0"), "dimensions"),
        (sparse(), "sparse"),
        (nested(20), "nested"),
        (training(), "training"),
    ],
)
def test_graphs_that_expand_without_end_are_refused(
    model: Any, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(saved(model, tmp_path), match, monkeypatch, for_shapes=True)


@pytest.mark.parametrize(
    "model",
    [
        model_of(call("f2"), functions=functions(3, 3)),
        nested(3),
        model_of([helper.make_node("Relu", ["x"], ["y"])], [numpy_helper.from_array(np.zeros((0, 4)), "none")]),
        model_of(
            [helper.make_node("Relu", ["x"], ["y"])], [helper.make_tensor("s", TensorProto.STRING, [2], [b"", b""])]
        ),
        model_of(
            [helper.make_node("Relu", ["x"], ["y"])], [helper.make_tensor("i", TensorProto.INT64, [3], [0, 0, 0])]
        ),
    ],
)
def test_ordinary_graphs_are_read(model: Any, tmp_path: Path) -> None:
    load_graph(saved(model, tmp_path))


def test_a_chain_of_functions_is_counted_in_time_that_grows_with_its_length(tmp_path: Path) -> None:
    """Of 9,000 it took minutes."""
    load = saved(model_of(call("f8999"), functions=functions(9000, 1)), tmp_path)
    require_safe(load)


@pytest.mark.parametrize(
    ("graph", "match"),
    [
        (field(1, b"") * 200_000, "too many nodes"),
        (field(5, field(1, b"\1" * 60) + field(9, b"x")) * 20_000, "too many nodes"),
        (b"".join(field(1, field(4, b"%d" % number)) for number in range(30_000)), "different operators"),
        (field(1, field(4, b"a" * 10_000)), "a name of 10000 bytes"),
        (field(5, b"".join(field(13, field(1, b"%d" % number)) for number in range(100))), "more than 16 entries"),
        (field(5, field(1, b"\1" * 5000) + field(9, b"x")), "dimensions"),
    ],
    ids=["nodes", "shapes", "operators", "names", "entries", "dimensions"],
)
def test_files_that_take_long_to_look_at_are_refused(graph: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(field(7, graph))
    with pytest.raises(SpecError, match=match):
        require_safe(path)


@pytest.mark.parametrize("number", [0, 7 | 1 << 29])
def test_numbers_of_fields_that_libraries_read_as_others_are_refused(number: int, tmp_path: Path) -> None:
    """C++ drops the bits above 32 of a number with its wire type: this would be the graph."""
    path = tmp_path / "model.onnx"
    path.write_bytes(field(number, outside("/etc/hostname").graph.SerializeToString()))
    with pytest.raises(SpecError, match="no field"):
        require_safe(path)


def test_pipes_folders_and_long_names_are_no_models(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", tmp_path, tmp_path / ("a" * 5000), tmp_path / "nul\0.onnx"):
        with pytest.raises(SpecError, match="cannot read") as caught:
            read_model(path)
        assert len(str(caught.value)) < 1000


def test_every_graph_is_read_by_the_module_that_checks_it() -> None:
    package = Path(edgekd.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "model_file.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert ast.unparse(node.func) not in ("onnx.load", "onnx.load_model"), path


# -------------------------------------------------------------------------------------------------------- rehearsals


@pytest.fixture
def rehearse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Rehearse in a child, as no other test does; with less time, for graphs that never end."""
    monkeypatch.setattr(rehearsal, "run_limited", run_limited)
    monkeypatch.setattr(rehearsal, "_records", lambda: tmp_path / "rehearsed")
    monkeypatch.setattr(rehearsal, "CPU_SECONDS", 5)
    return rehearsal.rehearse


def constant_of_shape() -> Any:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return model_of(nodes, [numpy_helper.from_array(np.array([1 << 33]), "s")])


def endless_loop() -> Any:
    scalar = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9), ("o", 9))]
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [12]) for name in ("a", "b")]
    steps = [helper.make_node("Identity", ["c"], ["o"]), helper.make_node("Neg", ["a"], ["b"])]
    body = helper.make_graph(steps, "body", [*scalar[:2], state[0]], [scalar[2], state[1]])
    count = numpy_helper.from_array(np.array(1 << 60), "n")
    return model_of([helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], [count])


@pytest.mark.parametrize("make", [constant_of_shape, endless_loop])
def test_a_graph_that_takes_all_memory_or_time_is_refused(
    make: Callable[[], Any], rehearse: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="too much memory or time"):
        rehearse(saved(make(), tmp_path))


def test_ordinary_graphs_pass_a_rehearsal(
    rehearse: Callable[[Path], None], tiny_model: Path, tmp_path: Path, shared: Path
) -> None:
    rehearse(tiny_model)
    rehearse(shared / "models" / "yolox_nano.onnx")
    unknown = model_of([helper.make_node("Plugin", ["x"], ["y"], domain=DOMAIN)])
    rehearse(saved(unknown, tmp_path))


def test_a_rehearsal_imports_nothing_from_the_current_folder(
    rehearse: Callable[[Path], None], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    (tmp_path / "onnx.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *filter(None, sys.path)])
    monkeypatch.chdir(tmp_path)
    rehearse(tiny_model)


def test_the_module_is_the_one_that_commands_use() -> None:
    from edgekd.deploy import artifact
    from edgekd.detectors import generic_onnx
    from edgekd.detectors import onnx as onnx_detector

    for module in (artifact, generic_onnx, onnx_detector):
        assert module.rehearse is rehearsal.rehearse


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The files that a child process is started for, where a process of its own asks each time."""
    started: list[str] = []

    def run(_: str, arguments: Any, *__: Any, **___: Any) -> None:
        started.append(Path(arguments[0]).name)
        if "bad" in started[-1]:
            raise SpecError("too much")

    monkeypatch.setattr(rehearsal, "run_limited", run)
    monkeypatch.setattr(rehearsal, "_records", lambda: tmp_path / "cache" / "rehearsed")
    monkeypatch.setattr(rehearsal, "_called", rehearsal._called.__wrapped__)
    return started


def test_a_file_that_has_passed_is_not_rehearsed_again(calls: list[str], tmp_path: Path) -> None:
    model = saved(model_of([helper.make_node("Relu", ["x"], ["y"])]), tmp_path)
    rehearsal.rehearse(model)
    rehearsal.rehearse(model)
    copied = model.rename(tmp_path / "again.onnx")
    rehearsal.rehearse(copied)
    assert calls == ["model.onnx"]
    assert (tmp_path / "cache" / "rehearsed").stat().st_mode & 0o777 == 0o700
    rehearsal.rehearse(copied, weights=False)
    copied.write_bytes(copied.read_bytes() + field(4, b"domain"))  # of the model: other content, the same file
    rehearsal.rehearse(copied)
    assert calls == ["model.onnx", "again.onnx", "again.onnx"]


def test_a_file_that_was_refused_is_rehearsed_again(calls: list[str], tmp_path: Path) -> None:
    model = saved(model_of([helper.make_node("Relu", ["x"], ["y"])]), tmp_path).rename(tmp_path / "bad.onnx")
    for _ in range(2):
        with pytest.raises(SpecError, match="too much"):
            rehearsal.rehearse(model)
    assert calls == ["bad.onnx"] * 2


def test_without_a_folder_for_records_every_process_rehearses(calls: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    model = saved(model_of([helper.make_node("Relu", ["x"], ["y"])]), tmp_path)
    rehearsal.rehearse(model)
    rehearsal.rehearse(model)
    assert calls == ["model.onnx"] * 2

"""`edgekd convert`: every format computes what its source computes, INT8 with its scales, or nothing is written."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from qdq_models import int8_constants
from real_graphs import real_graph
from running import EdgeKD
from test_json_contract import assert_documented
from tiny_int8 import INPUT_SCALES

from edgekd.commands import convert as convert_module
from edgekd.core import atomic_files
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError, EdgeKDError, ParityError, SpecError
from edgekd.deploy.converters import FORMATS, format_named
from edgekd.deploy.converters.contract import METADATA, NAME, read_contract
from edgekd.deploy.converters.ncnn_model import parse
from edgekd.deploy.converters.source import prepare, quantized_layers
from edgekd.detectors.export import probe
from edgekd.detectors.onnx import describe
from edgekd.graph.runtimes.ncnn import NCNN_CPU
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.view import load_graph

RUNNING = ("onnx", "openvino", "ncnn")


def require(name: str) -> None:
    """Skip where what a format needs is not installed."""
    try:
        format_named(name).require()
    except DeviceError as error:
        pytest.skip(str(error))


def spec_of(graph: Path) -> DetectorSpec:
    return describe(load_graph(graph), graph)


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Convert into a folder of the test's."""

    def run(artifact: Path, to: str, **told: Any) -> dict[str, Any]:
        require(to)
        out = tmp_path / ("out.onnx" if to == "onnx" else "out")
        return convert_module.convert(artifact, to, out=out, **told).document

    return run


@pytest.mark.parametrize("to", RUNNING)
@pytest.mark.parametrize("precision", ["as-is", "fp16"])
def test_a_float_detector_computes_and_finds_the_same(
    to: str, precision: str, tiny_model: Path, tiny_data: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    found = convert(tiny_model, to, precision=precision, data=tiny_data)
    assert found["parity"]["boxes"] <= found["parity"]["allowed_boxes"] == (0.001 if precision == "as-is" else 0.02)
    assert found["parity"]["frames"] == convert_module.FRAMES
    assert abs(found["scores"]["difference"]) < 0.003
    assert found["scores"]["converted"]["map50"] == 1.0
    assert found["scores"]["images"] == 8
    assert found["int8"] == {"source": 0, "carried": 0}
    assert found["bytes"] == sum(Path(each["path"]).stat().st_size for each in found["files"])


@pytest.mark.parametrize("to", RUNNING)
def test_int8_is_carried_over(
    to: str, tiny_int8: Path, tiny_data: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    found = convert(tiny_int8, to, data=tiny_data)
    assert found["int8"] == {"source": 3, "carried": 3}
    assert found["scores"]["converted"]["map50"] == 1.0
    assert found["scores"]["allowed"] == convert_module.INT8_MAP_LIMIT


def test_ncnn_has_the_codes_and_scales_of_the_onnx_graph(
    tiny_int8: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    entry = Path(convert(tiny_int8, "ncnn")["entry"])
    told = {layer.name: layer for layer in quantized_layers(onnx.load(tiny_int8))}
    assert {name: layer.input_scale for name, layer in told.items()} == pytest.approx(INPUT_SCALES)
    content = entry.with_suffix(".bin").read_bytes()
    for layer in told.values():
        at = content.index(layer.codes.tobytes())
        assert content[at - 4 : at] == (0x000D4B38).to_bytes(4, "little"), "stored as INT8"
        scales = np.append(1 / layer.scales, np.float32(1 / layer.input_scale)).astype("<f4")
        assert scales.tobytes() in content[at:]
    with pytest.raises(ValueError, match="of an unknown type 0xd4b38"):
        parse(entry.read_text(), content)


def test_openvino_has_the_codes_and_scales_of_the_onnx_graph(
    tiny_int8: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    require("openvino")
    import openvino

    model = openvino.Core().read_model(convert(tiny_int8, "openvino")["entry"])
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert kinds.count("FakeQuantize") == 3
    told = list(quantized_layers(onnx.load(tiny_int8)))
    constants = [node.data for node in model.get_ops() if node.get_type_name() == "Constant"]
    for layer in told:
        assert any(np.array_equal(each, layer.codes) for each in constants if each.dtype == np.int8)
        assert any(np.array_equal(each.reshape(-1), layer.scales) for each in constants if each.dtype == np.float32)


@pytest.mark.parametrize("to", RUNNING)
def test_int8_is_taken_out_where_that_is_asked_for(
    to: str, tiny_int8: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    found = convert(tiny_int8, to, precision="fp32")
    assert found["int8"] == {"source": 0, "carried": 0}
    assert found["parity"]["allowed_boxes"] == 0.001, "held against the same network in floating point"


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_an_opset_is_what_was_asked_for_and_computes_the_same(
    opset: int, tiny_int8: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    found = convert(tiny_int8, "onnx", opset=opset)
    model = onnx.load(found["entry"])
    assert found["opset"] == opset == model.opset_import[0].version
    assert found["parity"]["largest_score"] == 0
    assert len(list(quantized_layers(model))) == 3
    assert spec_of(Path(found["entry"])) == spec_of(tiny_int8)


@pytest.mark.parametrize(("target", "int8_weights"), [("xavier", False), ("nano", False), ("orin-nx", True)])
@pytest.mark.parametrize("to", ["onnx", "deepstream"])
def test_tensorrt_8_gets_fp32_weights_behind_qdq(
    convert: Callable[..., dict[str, Any]], tiny_int8: Path, to: str, target: str, *, int8_weights: bool
) -> None:
    found = convert(tiny_int8, to, target=(target,))
    graph = Path(found["out"]) / "detector.onnx" if to == "deepstream" else Path(found["out"])
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    assert bool(int8_constants(model)) is int8_weights
    assert found["int8"]["carried"] == found["int8"]["source"] > 0
    assert (found["parity"]["boxes"], found["parity"]["scores"]) == (0, 0), "ONNX Runtime computes the same of both"


def test_an_engine_for_rtx_cards_says_that_nothing_ran_it(
    tiny_int8: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    found = convert(tiny_int8, "tensorrt-rtx", target=("rtx-30", "rtx-40"))
    assert (found["parity"], found["scores"]) == (None, None)
    assert "not compared with its source" in found["notes"][0]
    assert "SM86, SM89" in found["notes"][1]
    assert Path(found["entry"]).stat().st_size > 10_000
    contract = read_contract(Path(found["out"]))
    assert contract.runtime is None
    assert contract.spec == spec_of(tiny_int8)


@pytest.mark.parametrize("to", ["openvino", "ncnn"])
def test_a_converted_folder_is_scored_like_any_artifact(
    to: str, edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    require(to)
    out = tmp_path / f"tiny_{to}_model"
    ran = edgekd("convert", tiny_model, "--to", to, "--out", out, "--json")
    assert_documented(ran.json, "convert")
    assert edgekd("eval", out, "--data", tiny_data, "--json").json["map50"] == 1.0
    told = yaml.safe_load((out / METADATA).read_text("utf-8"))
    assert told["names"] == {0: "red", 1: "green"}
    assert (told["imgsz"], told["stride"], told["task"]) == ([64, 64], 32, "detect")
    contract = read_contract(out)
    assert out / contract.entry == Path(ran.json["entry"])
    assert contract.spec == spec_of(tiny_model)


def test_people_are_told_what_was_compared(edgekd: EdgeKD, tiny_int8: Path, tiny_data: Path, tmp_path: Path) -> None:
    ran = edgekd("convert", tiny_int8, "--to", "onnx", "--out", tmp_path / "a.onnx", "--data", tiny_data)
    assert "INT8: 3 of 3 layers carried over" in ran.out
    assert "relative error by onnxruntime-cpu on 4 frames: boxes 0 of" in ran.out
    assert "8 images of val" in ran.out
    assert f"onnx: {tmp_path / 'a.onnx'}" in ran.out


def test_a_conversion_replaces_an_earlier_one_and_nothing_else(
    tiny_model: Path, tmp_path: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    first = convert(tiny_model, "openvino")
    (tmp_path / "out" / "left").touch()
    again = convert(tiny_model, "openvino")
    assert [each["path"] for each in again["files"]] == [each["path"] for each in first["files"]]
    (tmp_path / "out" / NAME).unlink()
    with pytest.raises(SpecError, match=r"out: is there already, and no conversion"):
        convert(tiny_model, "openvino")


@pytest.mark.parametrize("to", RUNNING)
def test_a_result_that_computes_something_else_is_not_written(
    to: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: Callable[..., dict[str, Any]]
) -> None:
    require(to)
    engine = type(format_named(to).runtime)
    load = engine.load

    class Half:
        """A session that gives half of everything."""

        def __init__(self, session: Any) -> None:
            self._session = session

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *ended: object) -> None:
            self._session.close()

        def run(self, batch: np.ndarray) -> np.ndarray:
            halved: np.ndarray = self._session.run(batch) / 2
            return halved

    def broken(self: Any, graph: Path, **told: Any) -> Any:
        session = load(self, graph, **told)
        return session if graph == tiny_model else Half(session)

    monkeypatch.setattr(engine, "load", broken)
    with pytest.raises(ParityError, match="computes something else"):
        convert(tiny_model, to)
    assert not list(tmp_path.iterdir())


def test_a_result_that_finds_less_is_not_written(
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    convert: Callable[..., dict[str, Any]],
) -> None:
    monkeypatch.setattr(convert_module, "MAP_LIMIT", -0.001)  # not even the same is enough
    with pytest.raises(ParityError, match="finds less than its source on split val"):
        convert(tiny_model, "onnx", data=tiny_data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_full_disk_leaves_nothing(
    to: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: Callable[..., dict[str, Any]]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_files, "flush", full)
    with pytest.raises(SpecError, match="cannot write; found No space left on device; fix: free some space"):
        convert(tiny_model, to)
    assert not [path for path in tmp_path.rglob("*") if path.name != "out"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--to", "onxn"), "did you mean 'onnx'?"),
        (("--to", "tensorrt"), "TensorRT builds its engine where it runs"),
        (("--to", "litert"), "convert the .pt with litert-torch"),
        (("--to", "onnx", "--opset", "12"), "--opset; expected 13 to"),
        (("--to", "onnx", "--opset", "17", "--precision", "fp16"), "--opset; expected 19 to"),
        (("--to", "openvino", "--opset", "17"), "--opset is for --to onnx"),
        (("--to", "onnx", "--precision", "fp61"), "did you mean 'fp16'?"),
        (("--to", "openvino", "--target", "xavier"), "--target is for --to tensorrt-rtx, onnx or deepstream"),
        (("--to", "onnx", "--target", "cpu"), "has no TensorRT"),
        (("--to", "onnx", "--target", "xavier", "--opset", "18"), "--opset; expected at most 17 for xavier; found 18"),
        (("--to", "deepstream", "--precision", "fp16"), "leave --precision out"),
        (("--to", "deepstream", "--target", "cpu"), "has no TensorRT"),
        (("--to", "deepstream", "--target", "xavier", "--target", "thor"), "several targets"),
        (("--to", "tensorrt-rtx"), "an engine is for certain GPUs; expected --target"),
        (("--to", "tensorrt-rtx", "--target", "xavier"), "TensorRT for RTX makes no engine for a Jetson AGX Xavier"),
        (("--to", "onnx", "--out", "folder"), "--to onnx writes one file; expected a name with .onnx"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    flags: tuple[str, ...], said: str, edgekd: EdgeKD, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "tensorrt-rtx" in flags:
        require("tensorrt-rtx")
    monkeypatch.chdir(tmp_path)
    ran = edgekd("convert", tiny_model, *flags)
    assert ran.code == 2
    assert said in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


def test_the_artifact_itself_is_not_overwritten(tiny_model: Path) -> None:
    with pytest.raises(SpecError, match="is what is converted"):
        convert_module.convert(tiny_model, "onnx", out=tiny_model)


@pytest.mark.parametrize("to", ["openvino", "ncnn"])
def test_a_graph_in_float16_is_refused_where_it_would_be_misread(
    to: str, tiny_model: Path, tmp_path: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    require(to)
    half = tmp_path / "half.onnx"
    convert_module.convert(tiny_model, "onnx", out=half, precision="fp16")
    with pytest.raises(SpecError, match="is made from a float32 graph; found 12 weights in float16"):
        convert(half, to)


def test_layers_with_the_same_weights_and_other_scales_are_refused_for_ncnn(
    tiny_int8: Path, tmp_path: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    model = onnx.load(tiny_int8)
    constants = {each.name: each for each in model.graph.initializer}
    assert constants["cells16.w_codes"].raw_data == constants["cells32.w_codes"].raw_data
    constants["cells32.x_scale"].CopyFrom(onnx.numpy_helper.from_array(np.float32(0.01), "cells32.x_scale"))
    onnx.save(model, tmp_path / "twice.onnx")
    with pytest.raises(SpecError, match="cells16 and cells32 have the same weights and different scales"):
        convert(tmp_path / "twice.onnx", "ncnn")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is not a converted detector"), ("{", "is damaged"), ("[]", "is damaged"), ('{"detector": {}}', "damaged")],
)
def test_a_folder_that_is_no_conversion_is_refused(
    content: str | None, said: str, tmp_path: Path, edgekd: EdgeKD, tiny_data: Path
) -> None:
    if content is not None:
        (tmp_path / NAME).write_text(content)
    ran = edgekd("eval", tmp_path, "--data", tiny_data)
    assert (ran.code, said in ran.err) == (2, True)


def test_a_contract_cannot_lead_out_of_its_folder(tmp_path: Path, tiny_model: Path) -> None:

    told = {"format": "onnx", "entry": "../../a.onnx", "engine": None, "detector": to_plain(spec_of(tiny_model))}
    (tmp_path / NAME).write_text(json.dumps(told))
    assert read_contract(tmp_path).entry == "a.onnx"


def test_ncnn_runs_its_own_files_alone(tiny_model: Path, tmp_path: Path) -> None:
    require("ncnn")
    with pytest.raises(DeviceError, match=r"ncnn does not run tiny\.onnx; .* edgekd convert tiny\.onnx --to ncnn"):
        NCNN_CPU.load(tiny_model)
    (tmp_path / "a.param").write_text("7767517\n1 1\nNoSuchLayer a 0 1 a\n")
    (tmp_path / "a.bin").touch()
    with pytest.raises(DeviceError, match="ncnn cannot load"):
        NCNN_CPU.load(tmp_path / "a.param")


def test_an_ncnn_session_refuses_other_batches_and_to_run_when_closed(
    tiny_model: Path, convert: Callable[..., dict[str, Any]]
) -> None:
    session = NCNN_CPU.load(Path(convert(tiny_model, "ncnn")["entry"]), threads=1)
    frame = probe(spec_of(tiny_model))
    assert session.run(frame).shape == (1, 6, 84)
    with pytest.raises(DeviceError, match="ncnn cannot run the graph on float64"):
        session.run(frame.astype(np.float64))
    with pytest.raises(DeviceError, match="expected one frame"):
        session.run(np.concatenate([frame, frame]))
    session.close()
    with pytest.raises(DeviceError, match="the ncnn session is closed"):
        session.run(frame)


@pytest.mark.skipif(not OPENVINO_CPU.available().usable, reason="openvino is not installed")
def test_openvino_says_what_it_cannot_read(tmp_path: Path) -> None:
    for name, problem in (("a.xml", "OpenVINO cannot load .*a.xml"), ("a.onnx", "a.onnx: cannot be read as an ONNX")):
        (tmp_path / name).write_text("nothing")
        with pytest.raises(DeviceError, match=problem):
            OPENVINO_CPU.load(tmp_path / name)


def test_a_failing_pnnx_is_told_with_what_it_said(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: Callable[..., dict[str, Any]]
) -> None:
    require("ncnn")
    program = tmp_path / "pnnx"
    program.write_text("#!/bin/sh\necho 'no such operator' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("edgekd.deploy.converters.ncnn._pnnx", lambda: program)
    with pytest.raises(DeviceError, match=r"pnnx cannot convert tiny\.onnx; found exit code 3: no such operator"):
        convert(tiny_model, "ncnn")


def test_without_its_packages_a_format_says_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("edgekd.deploy.converters.ncnn.find_spec", lambda name: None)
    require_error = "fix: pip install (pnnx )?ncnn"
    with pytest.raises(DeviceError, match=require_error):
        convert_module.convert(tiny_model, "ncnn", out=tmp_path / "out")


def test_formats_have_names_of_their_own() -> None:
    assert len({each.name for each in FORMATS}) == len({each.suffix for each in FORMATS}) == len(FORMATS)
    assert all(issubclass(kind, EdgeKDError) for kind in (ParityError, SpecError))


@pytest.mark.parametrize("name", [pytest.param("yolo11n.pt", marks=pytest.mark.release), "yolox_nano.onnx"])
def test_a_real_detector_in_ncnn_keeps_its_numbers(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require("ncnn")
    graph = real_graph(name, shared, tmp_path_factory)
    spec = graph.exported.spec
    source = prepare(graph.path, spec, "as-is", tmp_path)
    made = format_named("ncnn").convert(source, tmp_path, "m", convert_module.ConversionRequest())
    frame = probe(spec)
    with ONNXRUNTIME_CPU.load(graph.path) as one, NCNN_CPU.load(tmp_path / made.entry) as other:
        expected, found = one.run(frame), other.run(frame)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["openvino", "ncnn"])
def test_a_real_detector_in_int8_with_shared_scales_computes_the_same(
    to: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """OpenVINO has computed this network wrongly, without a word, when it compiled it straight from its ONNX reader."""
    require(to)
    from edgekd.compress.quantization.quantize import quantize
    from edgekd.compress.steps import Quantize

    graph = real_graph("yolox_nano.onnx", shared, tmp_path_factory)
    int8 = tmp_path / "int8.onnx"
    quantize(graph.path, int8, [probe(graph.exported.spec)], Quantize())
    found = convert_module.convert(int8, to, out=tmp_path / "out").document
    assert found["int8"]["source"] == found["int8"]["carried"] > 80
    assert found["parity"]["scores"] < 0.3
    if to == "openvino":
        frame = probe(graph.exported.spec)
        with OPENVINO_CPU.load(int8) as one, OPENVINO_CPU.load(Path(found["entry"])) as other:
            np.testing.assert_array_equal(one.run(frame).copy(), other.run(frame).copy())

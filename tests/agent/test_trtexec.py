"""The agent with TensorRT's program, over a fake of it that takes the flags of one generation and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from cameras import Agent, activate, bench, build, selftest
from fake_trtexec import install

from edgekd.agent.engines.camera import Camera
from edgekd.agent.runtimes import trtexec
from edgekd.agent.runtimes.trtexec import Trtexec
from edgekd.agent.runtimes.trtexec_flags import FLAGS, flags_of
from edgekd.agent.runtimes.types import FLOAT, BuildOptions
from edgekd.agent.state.slots import State
from edgekd.core.errors import DeviceError
from edgekd.graph.pins import pin

NUMBERS = {"8.2.1": 8201, "8.4.1": 8401, "8.5.2": 8502, "8.6.2": 8602, "10.3.0": 100300, "11.4.1": 110401}


def program(folder: Path, number: int, **options: Any) -> Path:
    """The fake in a folder of its own, as a program; options: what it is to do."""
    trtexec._version.cache_clear()
    return install(folder, number, **options)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program of TensorRT 8.5.2, where JetPack puts it."""
    path = program(tmp_path / "bin", NUMBERS["8.5.2"])
    monkeypatch.setattr(trtexec, "FOLDERS", (str(path.parent),))
    return path


@pytest.fixture
def camera(agent: Agent, bundle: Path, state: State, installed: Path) -> Camera:
    """A camera with the tiny bundle and the program."""
    agent("unpack", bundle)
    return Camera(state, Path("/none"), Trtexec())


def told(path: Path) -> list[list[str]]:
    """What the program was told, but for the question what version it is."""
    lines = (path.parent / "log").read_text("utf-8").splitlines()
    return [each for each in map(json.loads, lines) if each != ["--help"]]


def test_the_whole_way_into_service(camera: Camera, installed: Path) -> None:
    found = build(camera)
    assert found["runtime"] == {"name": "trtexec", "version": "8.5.2"}
    assert found["command"].split(" ")[0] == str(installed)
    assert set(found["command"].split(" ")[1:]) == set(told(installed)[0])
    assert found["layers"]["int8"] == 3
    assert found["share"]["time"]["int8"] > 0.3
    assert selftest(camera)["passed"], "of what it computed"
    timed = bench(camera, 5, 0.5)
    assert timed["iterations"] == 5, "the runs that warm up do not count"
    assert timed["inference_ms"]["p99"] == pytest.approx(10)
    assert (timed["fps"], timed["energy"]) == (None, None), "five runs are too few for a rate"
    assert activate(camera)["changed"]


@pytest.mark.parametrize("version", NUMBERS)
def test_every_generation_takes_the_flags_that_it_is_given(
    camera: Camera, installed: Path, version: str, tmp_path: Path
) -> None:
    program(installed.parent, NUMBERS[version])
    runtime, engine = Trtexec(), tmp_path / "model.engine"
    assert runtime.version() == version
    made = runtime.build(camera.chosen_slot(), engine, BuildOptions())
    assert made.allowed == (() if version.startswith("11") else ("fp32", "fp16", "int8"))
    assert runtime.layers(engine)
    assert len(runtime.times(engine, 3, 1) or ()) == 3
    flags = {each.split("=")[0] for call in told(installed) for each in call}
    assert ("--includeDataTransfers" in flags) == version.startswith("11"), "without transfers 11 would look faster"
    assert ("--workspace" in flags) == (version == "8.2.1")


@pytest.mark.parametrize("version", NUMBERS)
def test_nodes_that_float16_cannot_hold_are_held_in_float32_where_the_program_can(
    camera: Camera, installed: Path, version: str, tmp_path: Path
) -> None:
    program(installed.parent, NUMBERS[version])
    slot = camera.chosen_slot()
    model = onnx.load(slot.graph)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"][:2]
    pin(model, dict.fromkeys([*names, "a:b"], 1e5))
    onnx.save(model, slot.graph)
    Trtexec().build(slot, tmp_path / "model.engine", BuildOptions())
    (arguments,) = told(installed)
    held = [each for each in arguments if each.startswith(("--layer", "--precisionC"))]
    pairs = f"{names[0]}:fp32,{names[1]}:fp32"
    expected = ["--precisionConstraints=prefer", f"--layerPrecisions={pairs}", f"--layerOutputTypes={pairs}"]
    assert held == ([] if version in ("8.2.1", "11.4.1") else expected)


def test_in_float_there_is_no_int8(camera: Camera, installed: Path, tmp_path: Path) -> None:
    made = Trtexec().build(camera.chosen_slot(), tmp_path / "model.engine", BuildOptions(FLOAT))
    assert (made.precision, made.allowed) == ("fp16", ("fp32", "fp16"))
    assert b"QuantizeLinear" not in (tmp_path / "model.engine").read_bytes()
    assert "--int8" not in told(installed)[0]


def test_timings_are_kept(camera: Camera, tmp_path: Path) -> None:
    slot, cache = camera.chosen_slot(), tmp_path / "timings" / "cache"
    for expected in (b"timed\n", b"timed\ntimed\n"):
        Trtexec().build(slot, tmp_path / "model.engine", BuildOptions(cache=cache))
        assert cache.read_bytes() == expected


def test_what_it_complains_of_is_said_with_the_command(camera: Camera, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"nothing")
    with pytest.raises(DeviceError, match=r"found Error\[1\]: Serialization: magicTag.*--loadEngine="):
        Trtexec().layers(tmp_path / "model.engine")
    with pytest.raises(DeviceError, match="no name of the input"):
        Trtexec().load(tmp_path / "model.engine")


def test_a_session_that_is_closed_runs_nothing(camera: Camera) -> None:
    session = Trtexec().load(Path(build(camera)["file"]))
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("script", ["echo nothing", "exit 3"])
def test_a_program_that_does_not_say_its_version(installed: Path, script: str) -> None:
    installed.write_text(f"#!/bin/sh\n{script}\n", "ascii")
    trtexec._version.cache_clear()
    with pytest.raises(DeviceError, match="does not report its version"):
        Trtexec().version()


def test_jetpacks_program_has_the_version_of_the_installed_library(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib"
    library.mkdir()
    monkeypatch.setattr(trtexec, "LIBRARIES", f"{library}/libnvinfer.so.*.*.*".lstrip("/"))
    (library / "libnvinfer.so.8.6.2").touch()
    assert Trtexec().version() == "8.6.2"
    trtexec._version.cache_clear()
    (library / "libnvinfer.so.10.3.0").touch()
    assert Trtexec().version() == "8.5.2", "where there are several the program is asked"


def test_a_program_that_does_not_end_is_ended(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed.write_text("#!/bin/sh\nexec sleep 60\n", "ascii")
    trtexec._version.cache_clear()
    monkeypatch.setattr(trtexec, "TIMEOUT_S", 0.1)
    with pytest.raises(DeviceError, match="took more than 0 seconds"):
        Trtexec().version()


def test_a_program_that_is_gone_is_said(installed: Path) -> None:
    assert Trtexec().problem() is None
    shutil.rmtree(installed.parent)
    assert "neither in PATH nor in" in str(Trtexec().problem())
    with pytest.raises(DeviceError, match="is not here"):
        Trtexec().layers(Path("none"))


def test_versions_have_their_flags() -> None:
    assert [flags_of(version) for version in ("8.2.1", "8.5.2", "8.6.2", "11.0.0")] == list(FLAGS)
    assert flags_of("10.3.0") is FLAGS[2]
    with pytest.raises(DeviceError, match="too old"):
        flags_of("7.1.3")

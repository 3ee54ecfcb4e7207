"""`edgekd engine` on this machine and its fake: what it gives, says and refuses. Over SSH: devices/test_ssh.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.core.bundle.archive import extract, pack, read_head
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.errors import DeviceError, EdgeKDError, EngineRefusedError, HashError, RollbackError
from edgekd.core.progress import Progress
from edgekd.deploy.devices.connection import ProgramResult, Upload
from edgekd.deploy.engine import EngineJob, run
from edgekd.deploy.engine_report import EngineReport

QUICK = ("--iterations", 3, "--seconds", 0)


@pytest.fixture
def engine(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> Any:
    """Run the command on the tiny bundle."""

    def run(*flags: object, bundle: Path = tiny_build.bundle) -> Any:
        return edgekd("engine", bundle, *QUICK, *flags)

    return run


def test_a_rehearsal_is_called_one_and_leaves_nothing(engine: Any, tiny_build: Built) -> None:
    found = engine("--device", "null", "--json").json
    assert_documented(found, "engine")
    assert (found["basis"], found["runtime"]["name"], found["activated"]) == ("rehearsed", "null", False)
    assert found["bench"]["inference_ms"]["p50"] == pytest.approx(10)
    assert found["upload"]["bytes"] == found["upload"]["sent_bytes"] > tiny_build.bundle.stat().st_size
    assert [step["name"] for step in found["steps"]] == "upload status verify unpack build selftest bench".split()
    assert not Path(found["engine"]["file"]).exists()


def test_this_machine_measures_and_activates(engine: Any, tmp_path: Path) -> None:
    flags = ("--device", "local", "--state", tmp_path / "state", "--runtime", "onnxruntime")
    found = engine(*flags, "--activate", "--json").json
    assert_documented(found, "engine")
    assert (found["basis"], found["runtime"]["name"], found["activated"]) == ("measured", "onnxruntime", True)
    assert found["bench"]["inference_ms"]["min"] > 0
    assert (tmp_path / "state" / "active" / "engine" / "model.engine").stat().st_size == found["engine"]["bytes"]
    again = engine(*flags, "--json").json
    assert (again["engine"]["changed"], again["upload"]["sent_bytes"], again["activated"]) == (False, 0, False)
    assert again["engine"]["key"] == found["engine"]["key"]


def test_a_bundle_with_a_role_goes_to_the_slots_of_that_model(
    edgekd: EdgeKD, engine: Any, tiny_build: Built, tmp_path: Path
) -> None:
    assert edgekd("pack", tiny_build.bundle, "--out", tmp_path / "night.edgekd", "--role", "night").code == 0
    ran = engine("--device", "null", "--state", tmp_path / "state", bundle=tmp_path / "night.edgekd")
    assert ran.code == 0, ran.err
    assert (tmp_path / "state/models/night/slots/a").is_dir()
    assert not (tmp_path / "state/slots").exists()


def test_people_are_told_what_was_measured_where(engine: Any, tmp_path: Path) -> None:
    said = engine("--device", "local", "--state", tmp_path / "state", "--runtime", "onnxruntime").out
    for words in ("tiny for xavier on local", "self-test: passed on 3 frames", "engine alone over", "measured on"):
        assert words in said
    assert "not put into service: --activate does that" in said
    assert "layers: " in said
    assert "not confirmed to be a xavier" in said
    assert "rehearsed: nothing was computed" in engine("--device", "null").out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--device", "jetson"), ("--device jetson", "ssh://[USER@]HOST[:PORT]")),
        (("--device", "local:openvino-cpu"), ("--device local:openvino-cpu", "--runtime")),
        (("--device", "ssh://me:secret@cam"), ("password", "ssh-copy-id")),
        (("--device", "null", "--python", "python9"), ("no interpreter python9", "--python")),
        (("--device", "null", "--runtime", "tensort"), ("null: status: unknown runtime tensort",)),
        (("--device", "null", "--state", "/proc/none"), ("/proc/none", "No such file")),
    ],
)
def test_mistakes_are_one_line(engine: Any, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    ran = engine(*flags)
    assert (ran.code, ran.out) == (2, "")
    line = ran.err.splitlines()[-1]
    assert line.startswith("edgekd: ")
    assert "secret" not in ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in line


def test_a_state_that_cannot_be_written(engine: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = engine("--device", "local", "--state", tmp_path / "file" / "state")
    assert ran.code == 2
    assert "Not a directory; fix: choose a writable folder" in ran.err


def test_a_bundle_without_an_agent_needs_none(engine: Any, tiny_build: Built, tmp_path: Path) -> None:
    manifest = extract(tiny_build.bundle, tmp_path / "files")
    told = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}
    kept = tuple(entry for entry in manifest.files if entry.role != "agent")
    older = Manifest(**{**told, "files": kept})
    pack(older, {entry.path: tmp_path / "files" / entry.path for entry in kept}, tmp_path / "older.edgekd")
    ran = engine("--device", "null", bundle=tmp_path / "older.edgekd")
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_a_damaged_engine_is_built_again(engine: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert engine("--device", "null", "--state", state).code == 0
    file = next(state.glob("slots/*/engines/*/model.engine"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert engine("--device", "null", "--state", state, "--activate", "--json").json["engine"]["changed"]
    assert file.read_bytes() == whole


def test_the_firmwares_own_agent_is_used_in_place_of_the_bundles(
    engine: Any, tiny_build: Built, tmp_path: Path
) -> None:
    extract(tiny_build.bundle, tmp_path / "files")
    firmware = (tmp_path / "files" / "agent.pyz").rename(tmp_path / "agent.pyz")
    flags = ("--device", "null", "--state", tmp_path / "state", "--agent", firmware, "--json")
    found = engine(*flags, bundle=tiny_build.bundle).json
    assert found["upload"]["bytes"] == tiny_build.bundle.stat().st_size
    assert found["self_test"]["passed"]
    assert found["tuning"] is None
    ran = engine("--device", "null", "--agent", tmp_path / "none.pyz")
    assert (ran.code, ran.out) == (2, "")
    assert "none.pyz" in ran.err


def test_an_agent_of_another_edgekd(tiny_build: Built) -> None:
    told = {"runtime": {"name": "null", "version": "1"}, "slot": "a"}
    device: Any = Answers(json.dumps({"command": "any", "ok": True, "error": None, "result": told}), code=0)
    with pytest.raises(DeviceError, match="unexpected answers from an agent of another version"):
        run(EngineJob(tiny_build.bundle, device))


class Answers:
    """A device that gives one answer to every command."""

    name, runtime, remote = "cam", None, True

    def __init__(self, out: str, code: int = 1, err: str = "") -> None:
        self.ended = ProgramResult(code, out, err)
        self.python = "python3"

    @contextmanager
    def connect(self, python: str | None, stop: object = None) -> Iterator[Answers]:
        yield self

    def claim(self, folder: str) -> None: ...

    def put(self, file: Path, folder: str, keep: Sequence[str], progress: Progress) -> Upload:
        return Upload(f"{folder}/{file.name}", 1, 1)

    def run(self, doing: str, command: Sequence[str], limit_s: float) -> ProgramResult:
        assert command[:2] == ["python3", "/var/lib/edgekd/upload/agent.pyz"]
        return self.ended


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("HashError", HashError), ("RollbackError", RollbackError), ("SelfTestError", DeviceError), ("New", DeviceError)],
)
def test_what_the_agent_refuses_is_raised(tiny_build: Built, kind: str, raised: type[EdgeKDError]) -> None:
    error = {"kind": kind, "what": "slot a: drifted", "expected": "x", "found": None, "fix": "y"}
    device: Any = Answers(json.dumps({"command": "status", "ok": False, "error": error, "result": None}))
    with pytest.raises(raised, match=r"^cam: status: slot a: drifted; expected x; fix: y$"):
        run(EngineJob(tiny_build.bundle, device))


def test_a_network_that_the_device_cannot_build_is_told_from_a_device_in_trouble(tiny_build: Built) -> None:
    identity = read_head(tiny_build.bundle).identity

    class Refuses(Answers):
        def run(self, doing: str, command: Sequence[str], limit_s: float) -> ProgramResult:
            error = {"kind": "DeviceError", "what": "no engine", "expected": None, "found": None, "fix": None}
            status = {"device": {}, "runtime": {"name": "null", "version": "1"}}
            result = {**status, "identity": identity, "slot": "a", "fits": None}
            told = {"error": error, "result": None} if command[2] == "build" else {"error": None, "result": result}
            return ProgramResult(int(command[2] == "build"), json.dumps({"command": command[2], **told}), "")

    device: Any = Refuses("")
    with pytest.raises(EngineRefusedError, match=r"^cam: build: no engine$"):
        run(EngineJob(tiny_build.bundle, device))


@pytest.mark.parametrize("out", ["", "no JSON", "[]", "{}"])
def test_what_is_no_answer(tiny_build: Built, out: str) -> None:
    device: Any = Answers(out, err="Traceback\nModuleNotFoundError: No module named 'numpy'\n")
    with pytest.raises(DeviceError, match=r"gave no answer; found ModuleNotFoundError.*that has NumPy"):
        run(EngineJob(tiny_build.bundle, device))


def test_build_and_bench_send_cameras_to_this_command(edgekd: EdgeKD, tiny_build: Built) -> None:
    ran = edgekd("bench", tiny_build.bundle, "--device", "ssh://cam1")
    assert ran.code == 2
    assert "edgekd engine BUNDLE --device" in ran.err


# ------------------------------------------------------------------------------------------- INT8 only where it pays


@pytest.mark.slow
def test_a_rehearsal_tunes_too_and_says_what_stays(engine: Any) -> None:
    found = engine("--device", "null", "--tune", "--json").json
    assert_documented(found, "engine")
    tuning = found["tuning"]
    assert (tuning["source"], tuning["float_layers"], tuning["accuracy"]) == ("graph", [], None)
    assert [each["source"] for each in tuning["candidates"]] == ["graph", "float"]
    assert [step["name"] for step in found["steps"]][4:] == ["build", "tune", "selftest", "bench"]
    assert "INT8 as shipped stays; of 1 others none is faster and passes" in engine("--device", "null", "--tune").out


@pytest.mark.slow
def test_what_was_chosen_is_scored_before_it_goes_into_service(engine: Any, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--device", "local", "--state", tmp_path / "state", "--runtime", "onnxruntime", "--tune")
    found = engine(*flags, "--data", tiny_data, "--activate", "--json").json
    assert_documented(found, "engine")
    scored = found["tuning"]["accuracy"]
    assert scored["images"] == 8
    assert scored["retention"] > 0.9
    keys = [each["key"] for each in found["tuning"]["candidates"]]
    assert found["engine"]["key"] in keys
    assert (tmp_path / "state" / "active" / "engine").resolve().name == found["engine"]["key"]
    said = engine(*flags, "--data", tiny_data).out
    assert "tuned: " in said
    assert "on 8 images" in said


def test_below_the_limit_of_the_bundle_the_device_goes_back_to_what_was_shipped(
    engine: Any, tiny_build: Built, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "strict").mkdir()
    manifest = extract(tiny_build.bundle, tmp_path / "strict" / "files")
    strict = replace(manifest, limits=replace(manifest.limits, min_retention=1.0))
    better = replace(strict, evidence=replace(strict.evidence, before=replace(strict.evidence.before, map50_95=1.0)))
    sources = {entry.path: tmp_path / "strict" / "files" / entry.path for entry in better.files}
    pack(better, sources, tmp_path / "strict.edgekd")
    flags = ("--device", "local", "--state", tmp_path / "state", "--runtime", "onnxruntime", "--tune", "--activate")
    ran = engine(*flags, "--data", tiny_data, bundle=tmp_path / "strict.edgekd")
    assert ran.code == 2
    line = ran.err.splitlines()[-1]
    assert "too inaccurate" in line
    assert "at least 100.0%" in line
    assert not (tmp_path / "state" / "active").exists()
    assert not (tmp_path / "state" / "slots" / "a" / "tuning.json").exists()


def test_other_data_than_the_builds_is_refused_before_anything_is_tuned(
    engine: Any, tiny_data: Path, tmp_path: Path
) -> None:
    import shutil

    other = shutil.copytree(tiny_data, tmp_path / "other")
    label = next(iter(sorted(other.glob("labels/val/*.txt"))))
    label.write_text("")
    ran = engine("--device", "null", "--tune", "--data", other)
    assert "not the data set that the bundle was scored on" in ran.err.splitlines()[-1]
    assert "tune on null" not in ran.err
    assert "--data goes with --tune" in engine("--device", "null", "--data", tiny_data).err


def test_people_are_told_how_int8_on_a_dla_is_known() -> None:
    from edgekd.commands.cli.bundle_printing import _precision_lines

    on_dla = EngineReport("a", "key", "file", 1, 1.0, True, {"dla": 57, "fp16": 3}, ("first",), ())
    lines = list(_precision_lines(on_dla))
    assert lines[0] == "layers: 57 dla, 3 fp16"
    assert "1 layers" in lines[1]
    assert "0 activations without a scale" in lines[2]
    assert len(list(_precision_lines(replace(on_dla, float_layers=(), layers={"int8": 1})))) == 1

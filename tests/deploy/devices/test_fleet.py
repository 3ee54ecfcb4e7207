"""A fleet over SSH, on real servers: what fails or is slow is no matter to others, and what is done stays done."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pythons
from conftest import SLOW
from install_reports import install_report
from loopback import Loopback, loopback
from over_ssh import Camera
from running import Built, EdgeKD
from test_json_contract import assert_documented
from wire import wire_to

from edgekd.core.progress import Progress
from edgekd.deploy import fleet as fleets
from edgekd.deploy.devices.connection import ProgramResult, Upload
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.engine import EngineJob
from edgekd.deploy.engine_report import InstallReport
from edgekd.deploy.fleet import Board, BoardReport, Fleet, FleetJob

QUICK = ("--iterations", 3, "--seconds", 0)
# ONNX Runtime as it would be with an error in it.
DRIFTED = """
import importlib, os, sys
sys.path.remove(os.path.dirname(__file__))
del sys.modules["onnxruntime"]
real = importlib.import_module("onnxruntime")
class InferenceSession(real.InferenceSession):
    def run(self, *given):
        return [each * 0.5 for each in super().run(*given)]
real.InferenceSession = InferenceSession
"""


@pytest.fixture
def able(camera: Camera, tmp_path: Path) -> Iterator[Loopback]:
    """Another camera, which has ONNX Runtime, and takes the key of the first; in `front` something may hide it."""
    python, packages = pythons.here()
    (tmp_path / "front").mkdir()
    with loopback(tmp_path / "able", python, [tmp_path / "front", *packages]) as found:
        shutil.copyfile(camera.loopback.home / ".ssh" / "id_ed25519.pub", found.folder / "authorized_keys")
        with (camera.loopback.home / ".ssh" / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{found.port} {found.host_key}")
        yield found
        assert found.quiet() == []


def write_fleet(path: Path, *boards: dict[str, Any], **more: int) -> Path:
    lines = [f"{key} = {value}" for key, value in more.items()]
    for board in boards:
        lines += ["[[boards]]", *(f"{key} = {json.dumps(str(value))}" for key, value in board.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {board["name"]: board for board in found["boards"]}


def measured(job: FleetJob) -> dict[str, BoardReport]:
    return {report.name: report for report in fleets.run(job).boards}


@pytest.mark.slow
def test_failures_and_stragglers_are_no_matter_to_the_others(
    edgekd: EdgeKD, camera: Camera, able: Loopback, tmp_path: Path
) -> None:
    (tmp_path / "front" / "onnxruntime.py").write_text(DRIFTED)
    size = camera.bundle.stat().st_size
    with wire_to(camera.loopback.port, bytes_per_s=size) as slow, wire_to(camera.loopback.port) as stranger:
        unknown = f"ssh://{camera.loopback.user}@127.0.0.1:{stranger.port}"
        fleet = write_fleet(
            tmp_path / "fleet.toml",
            {"name": "slow", "device": camera.loopback.address(slow.port), "state": tmp_path / "slow"},
            {"name": "unknown", "device": unknown},
            {"name": "drifted", "device": f"ssh://127.0.0.1:{able.port}", "runtime": "onnxruntime"},
            {"name": "good", "device": camera.loopback.address()},
            uploads=1,
        )
        flags = ("--fleet", fleet, "--runtime", "null", "--state", camera.state, "--out", tmp_path / "out", *QUICK)
        ran = edgekd("engine", camera.bundle, *flags, "--json")
        again = edgekd("engine", camera.bundle, *flags)
    assert (ran.code, again.code) == (1, 1)
    assert_documented(ran.json, "fleet")
    assert json.loads((tmp_path / "out" / "fleet.json").read_bytes())["passed"] is False
    boards = by_name(ran.json)
    assert list(boards) == ["slow", "unknown", "drifted", "good"]
    assert "unknown host key" in boards["unknown"]["error"]["what"]
    assert "selftest: slot a: the engine drifted" in boards["drifted"]["error"]["what"]
    for name in ("slow", "good"):
        assert boards[name]["error"] is None
        assert_documented(boards[name]["result"], "engine")
        assert boards[name]["result"]["bench"]["inference_ms"]["p99"] == pytest.approx(10)
    rows = {line.split()[0]: line for line in again.out.splitlines() if line}
    assert "kept of" in rows["slow"]
    assert "kept of" in rows["good"]
    assert "FAILED" in again.out
    assert "2 of 4 boards passed" in again.out
    assert camera.loopback.quiet() == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.release),  # a single board's is in test_ssh.py
    ],
)
def test_a_stopped_fleet_leaves_nothing_running_and_goes_on(
    edgekd: EdgeKD,
    camera: Camera,
    able: Loopback,
    until: Callable[..., Any],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    (tmp_path / "front" / "onnxruntime.py").write_text(SLOW)
    fleet = write_fleet(
        tmp_path / "fleet.toml",
        {"name": "good", "device": camera.loopback.address(), "runtime": "null"},
        {"name": "stuck", "device": f"ssh://127.0.0.1:{able.port}", "state": tmp_path / "stuck"},
        {"name": "here", "device": "local", "state": tmp_path / "here", "runtime": "null"},
    )
    flags = ["--fleet", fleet, "--runtime", "onnxruntime", "--state", camera.state, "--out", tmp_path / "out", *QUICK]
    command = [sys.executable, "-m", "edgekd", "engine", camera.bundle, *flags]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kept = tmp_path / "out" / "boards"
    building = lambda: any(line.startswith("sleep 1000") for line in able.processes())  # noqa: E731
    until(lambda: (building() and len(list(kept.glob("*.json"))) == 2) or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert able.quiet() == []
    (tmp_path / "front" / "onnxruntime.py").unlink()
    ran = edgekd("engine", camera.bundle, *flags, "--json")
    assert ran.code == 0, ran.err
    boards = by_name(ran.json)
    assert {name: board["kept"] for name, board in boards.items()} == {"good": True, "stuck": False, "here": True}
    assert boards["stuck"]["result"]["basis"] == "measured"
    assert boards["stuck"]["result"]["upload"]["sent_bytes"] == 0, "it was there from before"


@pytest.fixture
def rehearsal(tiny_build: Built, tmp_path: Path) -> Callable[..., FleetJob]:
    """A job for boards that compute nothing."""

    def job(*names: str, fresh: bool = False, device: str = "null", **more: Any) -> FleetJob:
        boards = tuple(Board(name, device) for name in names)
        usual = EngineJob(tiny_build.bundle, device_named("null"), iterations=more.pop("iterations", 3), seconds=0.0)
        return FleetJob(Fleet(boards, **more), usual, tmp_path / "out", fresh)

    return job


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every board says at once that it is a Jetson."""
    monkeypatch.setattr(fleets, "install", lambda *given: install_report())


def test_what_was_measured_is_kept_for_the_same_settings_alone(rehearsal: Any, quick: None) -> None:
    first = measured(rehearsal("a"))["a"]
    again = measured(rehearsal("a", "b"))
    assert again["a"] == replace(first, kept=True)
    assert (first.jetpack, first.kept) == ("5.1", False)
    assert again["b"].kept is False
    assert measured(rehearsal("a", fresh=True))["a"].kept is False
    assert measured(rehearsal("a", iterations=4))["a"].kept is False


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"result": null}', b'{"result": {"bench"', b"\xff"])
def test_what_cannot_be_read_is_measured_again(rehearsal: Any, quick: None, tmp_path: Path, content: bytes) -> None:
    fleets.run(rehearsal("a"))
    (kept,) = (tmp_path / "out" / "boards").iterdir()
    kept.write_bytes(content)
    assert measured(rehearsal("a"))["a"].kept is False
    assert measured(rehearsal("a"))["a"].kept is True


class Crowded:
    """A device that takes uploads in pairs, remembers how many came at once, and then says that it is not well."""

    name, runtime, remote, python = "cam", None, True, "python3"

    def __init__(self) -> None:
        self.now, self.most, self.lock = 0, 0, threading.Lock()
        self.pair = threading.Barrier(2, timeout=30)

    @contextmanager
    def connect(self, python: str | None, stop: object) -> Iterator[Crowded]:
        yield self

    def claim(self, folder: str) -> None: ...

    def heartbeat(self) -> None: ...

    def put(self, file: Path, folder: str, keep: Sequence[str], progress: Progress) -> Upload:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.pair.wait()
        with self.lock:
            self.now -= 1
        return Upload(f"{folder}/{file.name}", 1, 1)

    def run(self, doing: str, command: Sequence[str], limit_s: float) -> ProgramResult:
        return ProgramResult(1, "", "not well")


def test_so_many_uploads_at_a_time(rehearsal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Crowded()
    monkeypatch.setattr(fleets, "device_named", lambda name: device)
    found = measured(rehearsal(*"abcdefgh", uploads=2))
    assert device.most == 2
    assert all(report.error and report.error.found == "not well" for report in found.values())


def test_a_fault_at_one_board_loses_no_result_of_the_others(
    rehearsal: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def install(job: EngineJob, parts: Any, progress: Any, shared: Any) -> InstallReport:
        if progress.name == "a":
            raise ZeroDivisionError("\x1b[2J")
        return install_report(l4t=None)

    monkeypatch.setattr(fleets, "install", install)
    report = fleets.run(rehearsal(*"abc"))
    assert sorted(path.name[0] for path in (tmp_path / "out" / "boards").iterdir()) == ["b", "c"]
    assert [board.error is None for board in report.boards] == [False, True, True]
    assert report.boards[0].error
    assert report.boards[0].error.kind == "ZeroDivisionError"
    assert report.boards[0].error.text == r"null: a fault of edgekd: \x1b[2J"
    assert (tmp_path / "out" / "fleet.json").is_file()
    assert report.exit_status == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("key 'boards' is missing",)),
        ("boards = []", ("no boards", "[[boards]]")),
        ('uplods = 3\n[[boards]]\nname = "a"\ndevice = "null"', ("unknown key 'uplods'", "'uploads'")),
        ('[[boards]]\nname = "a"\ndevce = "null"', ("boards[0]: unknown key 'devce'", "'device'")),
        ('[[boards]]\nname = "a"\ndevice = "jetson"', ("board a: jetson", "ssh://[USER@]HOST[:PORT]")),
        ('[[boards]]\nname = "a"\ndevice = "ssh://me:secret@cam"', ("board a: a password", "ssh-copy-id")),
        ('[[boards]]\nname = "../a"\ndevice = "null"', ("a board's name", "'../a'")),
        ('uploads = 0\n[[boards]]\nname = "a"\ndevice = "null"', ("uploads", "1 or more")),
        ('[[boards]]\nname = "a"\ndevice = "null"\n' * 2, ("2 boards with name 'a'",)),
        (
            '[[boards]]\nname = "a"\ndevice = "local"\n[[boards]]\nname = "b"\ndevice = "local"',
            ("2 boards with device 'local'", "slow each other down"),
        ),
    ],
)
def test_mistakes_in_a_fleet_are_one_line(
    edgekd: EdgeKD, tiny_build: Built, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "fleet.toml").write_text(text)
    ran = edgekd("engine", tiny_build.bundle, "--fleet", tmp_path / "fleet.toml", "--out", tmp_path / "out")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert "secret" not in ran.err
    for word in words:
        assert word in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "expected --device or --fleet; found neither"),
        (("--device", "null", "--fleet", "f.toml"), "expected --device or --fleet; found both"),
        (("--fleet", "f.toml", "--activate"), "--activate goes with one --device"),
        (("--device", "null", "--out", "o"), "--out goes with --fleet"),
        (("--fleet", "f.toml"), "f.toml: cannot read"),
    ],
)
def test_flags_that_do_not_go_together(edgekd: EdgeKD, tiny_build: Built, flags: Sequence[str], words: str) -> None:
    ran = edgekd("engine", tiny_build.bundle, *flags)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


def test_results_that_cannot_be_written_are_noticed_first(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path / "fleet.toml", {"name": "a", "device": "null"})
    (tmp_path / "file").touch()
    ran = edgekd("engine", tiny_build.bundle, "--fleet", fleet, "--out", tmp_path / "file" / "out")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert "Not a directory" in ran.err

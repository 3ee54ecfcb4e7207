"""The progress that a command leaves in its result folder, for those who watch it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.builds.run_progress import MAX_LINES, PROGRESS, RunProgress, read_progress, recorded
from edgekd.core.errors import DataError, SpecError
from edgekd.core.progress import SILENT, SilentProgress

ENDLESS = """
import sys, time
from pathlib import Path
from edgekd.builds.run_progress import recorded
from edgekd.core.progress import SILENT
with recorded(Path(sys.argv[1]), "build", "m.pt", "xavier", SILENT) as progress:
    progress.note("export: 0.1 s")
    time.sleep(600)
"""


def record(folder: Path, work: Callable[[Any], None]) -> RunProgress:
    """What is read after work that was recorded."""
    with recorded(folder, "build", "m.pt", "xavier", SILENT) as progress:
        work(progress)
    return read_progress(folder)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_build_leaves_its_stages_and_that_it_is_done(tiny_build: Built) -> None:
    assert_documented(json.loads((tiny_build.out / PROGRESS).read_bytes()), "progress")
    found = read_progress(tiny_build.out)
    assert (found.state, found.command, found.model, found.target) == ("done", "build", "tiny.onnx", "xavier")
    assert found.loop is None
    stages = {stage["name"]: stage for stage in tiny_build.json["stages"]}
    assert [stage.name for stage in found.stages] == list(stages)
    for stage in found.stages:
        assert (stage.seconds, stage.map50_95) == (stages[stage.name]["seconds"], stages[stage.name]["map50_95"])
    assert any("score-int8" in line for line in found.lines)


def test_loops_and_epochs_can_be_followed(tmp_path: Path) -> None:
    def work(progress: Any) -> None:
        progress.epoch("distill", 0, {"boxes": 3.0})
        progress.epoch("distill", 1, {"boxes": 2.0, "features": float("nan")})
        progress.epoch("distill", 1, {"boxes": 1.5})
        items = progress.items(range(3), "distill")
        assert next(items) == 0
        assert next(items) == 1
        eventually(lambda: (tmp_path / PROGRESS).exists() and read_progress(tmp_path).loop is not None)
        found = read_progress(tmp_path)
        assert found.state == "running"
        assert (found.loop.label, found.loop.done, found.loop.total) == ("distill", 1, 3)  # type: ignore[union-attr]
        assert list(items) == [2]

    found = record(tmp_path, work)
    assert found.epochs == {"distill": ({"boxes": 3.0}, {"boxes": 1.5})}
    whole = [{"boxes": 4.0}, {"boxes": 3.0}]
    found = record(tmp_path, lambda progress: progress.stage("distill", {"losses": whole}, 9.0))
    assert found.epochs == {"distill": tuple(whole)}, "of a training that went on after a kill"
    assert (found.state, found.loop) == ("done", None)


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (DataError("bad label", found="x"), "failed", "bad label; found x"),
        (ValueError("first\nsecond"), "failed", "first"),
        (KeyboardInterrupt(), "stopped", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_way_in_which_it_ended_is_kept(tmp_path: Path, error: BaseException, state: str, text: str | None) -> None:
    def work(progress: Any) -> None:
        progress.note("begun")
        raise error

    with pytest.raises(type(error)):
        record(tmp_path, work)
    found = read_progress(tmp_path)
    assert (found.state, found.error) == (state, text)


def test_a_killed_command_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    with subprocess.Popen(command) as process:
        eventually(lambda: (tmp_path / PROGRESS).exists() or process.poll() is not None)
        assert read_progress(tmp_path).state == "running"
        os.kill(process.pid, signal.SIGKILL)
    assert read_progress(tmp_path).state == "stopped"


def test_a_second_command_in_one_folder_leaves_the_first_ones_progress(tmp_path: Path) -> None:
    def work(progress: Any) -> None:
        progress.note("first")
        eventually(lambda: (tmp_path / PROGRESS).exists())
        record(tmp_path, lambda other: other.note("second"))
        assert read_progress(tmp_path).lines == ("first",)

    record(tmp_path, work)


def test_what_is_refused_leaves_no_trace(edgekd: EdgeKD, tiny_build: Built, tiny_data: Path, tmp_path: Path) -> None:
    before = (tiny_build.out / PROGRESS).read_bytes()
    flags = ("--target", "nano", "--recipe", "ptq", "--data", tiny_data)
    for out in (tmp_path / "out", tiny_build.out):
        assert edgekd("build", tmp_path / "missing.onnx", *flags, "--out", out).code == 2
    assert not (tmp_path / "out").exists()
    assert (tiny_build.out / PROGRESS).read_bytes() == before
    with pytest.raises(SpecError, match=r"progress\.json"):
        record(tmp_path, lambda progress: None)


def test_numbers_are_passed_on_and_a_failure_to_keep_them_is_said_once(tmp_path: Path) -> None:
    passed: list[tuple[Any, ...]] = []

    class Listening(SilentProgress):
        def note(self, text: str) -> None:
            passed.append(("note", text))

        def epoch(self, name: str, epoch: int, values: Mapping[str, float]) -> None:
            passed.append(("epoch", name, epoch))

        def stage(self, name: str, results: Mapping[str, Any], seconds: float) -> None:
            passed.append(("stage", name, seconds))

    (tmp_path / "file").write_text("no folder")
    with recorded(tmp_path / "file", "build", "m.pt", "xavier", Listening()) as progress:
        progress.epoch("distill", 0, {"boxes": 1.0})
        progress.stage("distill", {}, 2.0)
        assert list(progress.items("ab", "letters")) == ["a", "b"]
    failures = [each for each in passed if each[0] == "note"]
    assert [each for each in passed if each not in failures] == [("epoch", "distill", 0), ("stage", "distill", 2.0)]
    (failure,) = failures
    assert "no more progress is kept" in failure[1]


def test_a_file_stays_short(tmp_path: Path) -> None:
    def work(progress: Any) -> None:
        for at in range(3 * MAX_LINES):
            progress.note(f"line {at}\x1b[2J")

    lines = record(tmp_path, work).lines
    assert len(lines) == MAX_LINES
    assert lines[-1] == f"line {3 * MAX_LINES - 1}\\x1b[2J"

"""Wrong files and places in arguments: one line that names the file, at once, and nothing written."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Built, EdgeKD

LIMIT_S = 10.0
"""Seconds until a command that waits for a pipe is interrupted."""


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that nobody writes to. What waits for it ends with an error."""

    def interrupt(*_: object) -> None:
        raise AssertionError("a command waits for a pipe")  # no OSError, which a command would report

    path = tmp_path / "pipe"
    os.mkfifo(path)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    yield path
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "PIPE"),
        ("sign", "PIPE", "--key", "KEY"),
        ("verify", "BUNDLE", "--trust", "PIPE"),
        ("validate-report", "PIPE"),
        ("pack", "BUNDLE", "--out", "OUT", "--measured", "PIPE"),
        ("verify", "BUNDLE", "--trust", "/dev/zero"),
        ("pack", "BUNDLE", "--out", "OUT", "--measured", "/dev/zero"),
    ],
)
def test_a_pipe_or_device_in_place_of_a_file(
    edgekd: EdgeKD, tiny_build: Built, pipe: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    edgekd("keygen", "own", "--out", tmp_path)
    places = {"PIPE": pipe, "BUNDLE": tiny_build.bundle, "OUT": tmp_path / "out.edgekd", "KEY": tmp_path / "own.key"}
    ran = edgekd(*(places.get(each, each) for each in arguments))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran.err
    assert "cannot read" in ran.err
    assert not (tmp_path / "out.edgekd").exists()


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_file_in_place_of_a_result_folder(edgekd: EdgeKD, tiny_build: Built, command: str) -> None:
    ran = edgekd(command, *([tiny_build.bundle] * (2 if command == "compare" else 1)))
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert f"{tiny_build.bundle}: no finished build; expected a folder with a ledger.json" in ran.err


def test_a_folder_in_place_of_the_table_is_refused_before_anything_is_timed(
    edgekd: EdgeKD, tiny_build: Built, tmp_path: Path
) -> None:
    ran = edgekd("profile", tiny_build.bundle, "--device", "local", "--out", tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert f"{tmp_path}: cannot be written" in ran.err


def test_a_folder_that_takes_no_files(
    edgekd: EdgeKD, tiny_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "edgekd-abc")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    ran = edgekd("pack", tiny_build.bundle, "--out", tmp_path / "out.edgekd")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'out.edgekd'}: cannot write; found Permission denied" in ran.err


def test_a_plan_that_is_not_there_costs_no_stage(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--plan", tmp_path / "none.toml")
    assert (ran.code, ran.out) == (2, "")
    assert "none.toml: cannot read" in ran.err
    assert not list(out.glob("stages/*"))


def test_a_head_that_is_not_there_is_not_ignored(edgekd: EdgeKD, tiny_model: Path) -> None:
    ran = edgekd("check", tiny_model, "--head", "none.toml")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "none.toml: cannot read" in ran.err

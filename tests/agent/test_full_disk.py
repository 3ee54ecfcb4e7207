"""On a full disk what is in service can still be counted, committed and rolled back. The disk is a real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cameras import identity_of, repacked, run
from power import cut_at, fresh

from edgekd.agent.state.reserve import keep_reserve, replace_by_reserve
from edgekd.agent.state.slots import State
from edgekd.core.errors import DiskFullError, SpecError
from edgekd.core.private_files import private_file

SIZE = "64m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk of a certain size needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all space of a disk."""
    path = disk / "filler"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    os.write(handle, bytes(size))
                except OSError:
                    break
    finally:
        os.close(handle)
    return path


@pytest.fixture
def on_trial(installed: Path, newer: Path, disk: Path) -> Path:
    """A state with a bundle on trial for two starts, and the one before it."""
    folder = fresh(installed, disk / "state")
    assert run(folder, "install", newer, "--tries", "2") == 0
    return folder


def test_starts_are_counted_and_end_in_a_rollback(on_trial: Path, disk: Path, bundle: Path, newer: Path) -> None:
    fill(disk)
    for left in (1, 0):
        assert run(on_trial, "boot") == 0
        trial = State(on_trial).activation.trial
        assert trial
        assert trial.tries_left == left
    assert run(on_trial, "boot") == 0
    state = State(on_trial)
    assert state.active
    assert state.active.identity == identity_of(bundle)
    assert state.activation.rejected == identity_of(newer)


def test_a_rollback_by_hand(on_trial: Path, disk: Path, bundle: Path) -> None:
    fill(disk)
    assert run(on_trial, "rollback") == 0
    active = State(on_trial).active
    assert active
    assert active.identity == identity_of(bundle)


def test_what_needs_space_says_so(
    on_trial: Path, disk: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = repacked(bundle, tmp_path / "third", name="third")
    filler = fill(disk)
    capsys.readouterr()
    assert run(on_trial, "commit") == 0
    assert run(on_trial, "install", third, "--model", "night") == 1, "a model without slots to replace"
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error["kind"] == "DiskFullError"
    filler.unlink()
    assert run(on_trial, "install", third, "--model", "night") == 0


def test_a_state_of_an_older_version_gets_its_reserve(on_trial: Path, disk: Path) -> None:
    (on_trial / "reserve").unlink()
    assert run(on_trial, "boot") == 0
    fill(disk)
    assert run(on_trial, "boot") == 0


def test_a_full_disk_is_a_kind_of_its_own(disk: Path) -> None:
    from edgekd.core.atomic_files import write_file

    fill(disk)
    with pytest.raises(DiskFullError, match="free some space"):
        write_file(disk / "file", bytes(10_000))


def test_a_power_cut_leaves_the_old_record_or_the_new(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    count, seen = 0, set()
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "slot").mkdir(parents=True)
        record = folder / "slot" / "record"
        record.write_bytes(b"old")
        keep_reserve(folder / "reserve")
        going = cut_at(count, lambda: replace_by_reserve(folder / "reserve", record, b"new"), forgetful=False)  # noqa: B023
        seen.add(record.read_bytes())
        replace_by_reserve(folder / "reserve", record, b"newer")
        assert record.read_bytes() == b"newer"
        keep_reserve(folder / "reserve")
        assert sorted(path.name for path in folder.iterdir()) == ["reserve", "slot"]
        os.close(private_file(folder / "reserve"))
        if not going:
            break
        count += 1
    assert count > 3
    assert seen == {b"old", b"new"}


def test_without_a_reserve_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot write"):
        replace_by_reserve(tmp_path / "reserve", tmp_path / "record", b"new")
    assert list(tmp_path.iterdir()) == []

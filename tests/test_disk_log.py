"""Disks that a power cut leaves, from logs of writes in the format of QEMU and of Linux's device mapper."""

from __future__ import annotations

import importlib
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
SECTOR = 512


@pytest.fixture(name="disk_log")
def disk_log_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("disk_log")
    del sys.modules["disk_log"]


def log_of(path: Path, *entries: tuple[int, bytes, int]) -> Path:
    """Write a log of entries (sector, data, flags)."""
    parts = [struct.pack("<QQQI", 0x6A736677736872, 1, len(entries), SECTOR).ljust(SECTOR, b"\0")]
    for sector, data, flags in entries:
        header = struct.pack("<QQQQ", sector, len(data) // SECTOR, flags, 0)
        parts += [header.ljust(SECTOR, b"\0"), data]
    path.write_bytes(b"".join(parts))
    return path


def disk_after(runs: list[tuple[int, bytes]], sectors: int) -> str:
    """Return the first byte of each sector of a disk of dots that runs are written to."""
    disk = bytearray(b"." * SECTOR * sectors)
    for offset, data in runs:
        disk[offset : offset + len(data)] = data
    return disk[::SECTOR].decode("ascii")


def data(letters: str) -> bytes:
    return b"".join(letter.encode("ascii") * SECTOR for letter in letters)


def test_what_was_flushed_or_forced_is_there_and_the_rest_is_lost(disk_log: ModuleType, tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", (0, data("ab"), 0), (0, b"", 1), (1, data("cd"), 0), (4, data("e"), 2))
    left = disk_log.survivors(log, 1.0, random.Random(0))
    assert disk_after(left.runs, 6) == "ab..e."
    assert (left.unflushed, left.lost) == (2, 2)


def test_each_unflushed_sector_has_a_content_that_it_had_since_the_flush(disk_log: ModuleType, tmp_path: Path) -> None:
    """Torn and overtaken writes included, each of which comes about."""
    log = log_of(tmp_path / "log", (0, data("ab"), 0), (9, b"", 1), (0, data("cd"), 0), (1, data("ef"), 0))
    disks = {disk_after(disk_log.survivors(log, 0.5, random.Random(seed)).runs, 3) for seed in range(200)}
    assert disks == {first + second + third for first in "ac" for second in "bde" for third in ".f"}


def test_a_full_cache_holds_the_last_writes_alone(
    disk_log: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_log, "CACHE_BYTES", 2 * SECTOR)
    log = log_of(tmp_path / "log", *((index, data(letter), 0) for index, letter in enumerate("abc")))
    assert disk_after(disk_log.survivors(log, 1.0, random.Random(0)).runs, 3) == "a.."


@pytest.mark.parametrize("missing", [1, SECTOR, 2 * SECTOR])
def test_an_entry_that_was_not_finished_is_none(disk_log: ModuleType, tmp_path: Path, missing: int) -> None:
    log = log_of(tmp_path / "log", (0, data("a"), 0), (1, data("b"), 0))
    log.write_bytes(log.read_bytes()[:-missing])
    assert [entry.offset for entry in disk_log.read_log(log)] == [0]


def test_a_cut_before_the_first_write_leaves_the_disk_as_it_was(disk_log: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert disk_log.survivors(tmp_path / "log", 1.0, random.Random(0)) == disk_log.Survivors([], 0, 0)


def test_another_file_is_no_log(disk_log: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(2 * SECTOR))
    with pytest.raises(ValueError, match="no log"):
        list(disk_log.read_log(tmp_path / "log"))

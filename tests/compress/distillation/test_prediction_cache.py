"""The cache of a teacher's predictions: complete or resumed, never damaged, never larger than its limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.compress.distillation.prediction_cache import BranchShape, open_cache, record_type
from edgekd.core.errors import SpecError

KIND = record_type(8, 8, {"one2many": BranchShape(2, 4, 21, 21)})
COUNT = 6
AMPLE = 1 << 20


class Teacher:
    """Computes records that say their index; index 2 cannot be read; `until`: the index that it is killed at."""

    def __init__(self, until: int = COUNT) -> None:
        self.until = until
        self.starts: list[int] = []

    def __call__(self, first: int) -> Iterator[Any]:
        self.starts.append(first)
        for index in range(first, COUNT):
            if index == self.until:
                raise KeyboardInterrupt
            record = np.zeros((), KIND)
            record["index"] = index
            record["one2many"]["scores"] = index / 2
            if index != 2:
                yield record


def indices(path: Path, teacher: Teacher, limit: int = AMPLE) -> list[int]:
    records = open_cache(path, KIND, COUNT, teacher, limit)
    assert [float(each) for each in records["one2many"]["scores"][:, 1, 1, 20]] == [
        index / 2 for index in records["index"]
    ]
    return list(map(int, records["index"]))


def interrupted(path: Path, until: int) -> Path:
    """The file that a process leaves which is killed at an index."""
    with pytest.raises(KeyboardInterrupt):
        open_cache(path, KIND, COUNT, Teacher(until), AMPLE)
    assert not path.exists()
    return path.with_name(f"{path.name}.partial")


def test_predictions_are_computed_once(tmp_path: Path) -> None:
    teacher, path = Teacher(), tmp_path / "new" / "one.cache"
    assert indices(path, teacher) == indices(path, teacher) == [0, 1, 3, 4, 5]
    assert teacher.starts == [0]
    assert path.stat().st_size == 5 * KIND.itemsize


def test_a_record_holds_boxes_of_the_most_certain_anchors_only() -> None:
    large = record_type(64, 96, {"one2many": BranchShape(3, 64, 8400, 256)})
    assert large["frame"].shape == (64, 96, 3)
    assert large["one2many"]["scores"].shape == (2, 3, 8400)
    assert large["one2many"]["boxes"].shape == (2, 64, 256)
    assert KIND["one2many"]["anchors"].shape == (2, 21)


def test_a_killed_process_is_resumed_after_its_last_record(tmp_path: Path) -> None:
    path, teacher = tmp_path / "one.cache", Teacher()
    interrupted(path, until=4)
    assert indices(path, teacher) == [0, 1, 3, 4, 5]
    assert teacher.starts == [4]
    assert [each.name for each in tmp_path.glob("*")] == [".one.lock", "one.cache"]


@pytest.mark.parametrize("keep", [0, 10, KIND.itemsize, 2 * KIND.itemsize - 1, 2 * KIND.itemsize])
def test_half_a_record_is_computed_again(tmp_path: Path, keep: int) -> None:
    path, teacher = tmp_path / "one.cache", Teacher()
    os.truncate(interrupted(path, until=5), keep)
    assert indices(path, teacher) == [0, 1, 3, 4, 5]
    assert teacher.starts == [keep // KIND.itemsize]


def test_what_follows_a_damaged_record_is_computed_again(tmp_path: Path) -> None:
    path, teacher = tmp_path / "one.cache", Teacher()
    partial = interrupted(path, until=5)
    content = bytearray(partial.read_bytes())
    content[KIND.itemsize + 50] ^= 1
    partial.write_bytes(content)
    assert indices(path, teacher) == [0, 1, 3, 4, 5]
    assert teacher.starts == [1]


def test_a_cache_never_grows_beyond_its_limit(tmp_path: Path) -> None:
    path, room = tmp_path / "one.cache", COUNT * KIND.itemsize
    with pytest.raises(
        SpecError, match=f"for 6 images; expected at most {room - 1} bytes; found {room}; fix: at most 5"
    ):
        open_cache(path, KIND, COUNT, Teacher(), room - 1)
    assert indices(path, Teacher(), room)


def test_the_oldest_caches_make_room(tmp_path: Path) -> None:
    names = ("oldest", "second", "third")
    for age, name in enumerate(names):
        indices(tmp_path / f"{name}.cache", Teacher())
        os.utime(tmp_path / f"{name}.cache", (age, age))
    os.utime(interrupted(tmp_path / "killed.cache", until=3), (5, 5))
    (tmp_path / "other.bin").write_bytes(bytes(AMPLE))
    indices(tmp_path / "last.cache", Teacher(), 17 * KIND.itemsize)
    assert sorted(each.name for each in tmp_path.glob("*.cache*")) == [
        "killed.cache.partial",
        "last.cache",
        "third.cache",
    ]
    assert (tmp_path / "other.bin").exists()


def test_a_cache_that_another_process_completes_or_removes_meanwhile_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "other.cache.partial").symlink_to(tmp_path / "gone")  # a name that leads nowhere by now
    assert indices(tmp_path / "one.cache", Teacher()) == [0, 1, 3, 4, 5]

"""A teacher's predictions on disk: computed once for each image, read in every epoch.

A cache is one memory-mapped file with a record for each image. There are two types of records:

- `record_type`: the letterboxed frame, and predictions for it and its mirror image in half precision: for each branch
  of the head the class logits of all anchors and the box sides of the teacher's most certain anchors, and feature maps
  on a coarse grid. Other anchors are background, which has no weight in a box loss.
- `object_record_type`: the objects that the teacher detects in the image.

Each record has a checksum of its other fields, so records that a killed process wrote completely are reused. A complete
file is renamed to its final name.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.core.atomic_files import flush, writing
from edgekd.core.errors import SpecError
from edgekd.core.private_files import lock_file

PARTIAL = ".partial"
"""Suffix appended to the name of an incomplete file."""
VIEWS = 2
"""Views of an image: unchanged and mirrored."""
MAX_BOX_ANCHORS = 256
"""Largest number of anchors per view whose box is stored: on the ppe set they have 99.9 % of the total certainty."""
MAX_MAP_PLACES = 100
"""Approximate largest number of positions stored per feature map: all of the coarsest level at 320 pixels."""
MAPS = "maps"
"""Field of a record: the feature maps."""
MAX_OBJECTS = 100
"""Largest number of objects stored per image: the most certain ones."""
SUFFIX = ".predictions"
"""Suffix of all cache files; the byte limit applies to all of them in a folder."""

Record = Any
"""The record of one image, of `record_type` or `object_record_type`."""


@dataclass(frozen=True)
class BranchShape:
    """Sizes of the predictions of one branch of a head.

    sides: 4, or 4 * bins of distributions; boxes: number of anchors, or queries, whose box is stored.
    """

    classes: int
    sides: int
    anchors: int
    boxes: int


def map_stride(height: int, width: int) -> int:
    """Return the sampling step of a feature map [height, width], the same for rows and columns."""
    return max(round(math.sqrt(height * width / MAX_MAP_PLACES)), 1)


def record_type(
    height: int, width: int, branches: Mapping[str, BranchShape], maps: Sequence[tuple[int, int, int]] = ()
) -> np.dtype[Any]:
    """Return the type of a record. maps: stored channels, rows and columns of each map.

    Fields: index: index of the image among the samples; frame: uint8 [h, w, 3] RGB; for each branch `scores` [views,
    classes, anchors], `anchors` [views, k], in descending order of certainty, and `boxes` [views, sides, k]; MAPS:
    [views, c, h, w] of each map, by number; checksum: CRC-32.
    """
    fields: list[Any] = [("index", "<i4"), ("frame", "u1", (height, width, 3))]
    for name, shape in branches.items():
        parts = [
            ("scores", "<f2", (VIEWS, shape.classes, shape.anchors)),
            ("anchors", "<i4", (VIEWS, shape.boxes)),
            ("boxes", "<f2", (VIEWS, shape.sides, shape.boxes)),
        ]
        fields.append((name, parts))
    fields.append((MAPS, [(str(number), "<f2", (VIEWS, *shape)) for number, shape in enumerate(maps)]))
    return np.dtype([*fields, ("checksum", "<u4")])


def object_record_type(classes: int) -> np.dtype[Any]:
    """Return the type of a record of objects.

    Fields: index: index of the image among the samples; count: number of its objects, in the first rows; boxes: [rows,
    4], middle x and y, width and height as shares of the image; scores: class logits [rows, classes]; checksum: CRC-32.
    """
    return np.dtype(
        [
            *(("index", "<i4"), ("count", "<i4")),
            *(("boxes", "<f4", (MAX_OBJECTS, 4)), ("scores", "<f2", (MAX_OBJECTS, classes))),
            ("checksum", "<u4"),
        ]
    )


def open_cache(
    path: Path, kind: np.dtype[Any], count: int, compute: Callable[[int], Iterable[Record]], limit: int
) -> NDArray[Any]:
    """Return the records of a cache, read-only and memory-mapped; missing records are computed and appended.

    Processes may share it: one computes, the others wait.

    Args:
        path: The complete file. Its name must depend on everything that determines the records; its suffix is that of
            all caches.
        count: Number of samples.
        compute: Yields the records of the samples from an index on, in order; samples may be skipped.
        limit: Most bytes of all caches in the folder. If needed, the oldest other caches are removed.

    Raises SpecError if the file cannot be written, or would be larger than the limit.
    """
    needed = kind.itemsize * count
    if needed > limit:
        fix = f"at most {limit // kind.itemsize} images, a smaller image_size, or a larger cache_size"
        what = f"predictions of the teacher for {count} images"
        raise SpecError(what, expected=f"at most {limit} bytes", found=str(needed), fix=fix)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file(_lock_of(path), wait_s=None)
    try:
        if not path.is_file():
            with writing(path):
                _make_room(path, limit - needed)
            _complete(path, kind, compute)
        return np.memmap(path, kind, mode="r")  # while locked, so that no other process removes it
    finally:
        if lock is not None:
            os.close(lock)


def _complete(path: Path, kind: np.dtype[Any], compute: Callable[[int], Iterable[Record]]) -> None:
    """Write the file; records that a killed process has left are reused."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("a+b") as stream:
        kept, start = _intact(partial, kind)
        stream.truncate(kept * kind.itemsize)
        for record in compute(start):
            record["checksum"] = _checksum(record)
            stream.write(record.tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)
    flush(path.parent)


def _intact(partial: Path, kind: np.dtype[Any]) -> tuple[int, int]:
    """Return the number of intact records at the start of a file, and the index of the first sample after them."""
    count = partial.stat().st_size // kind.itemsize
    records: Any = np.memmap(partial, kind, mode="r", shape=(count,)) if count else ()
    kept = 0
    while kept < count and records[kept]["checksum"] == _checksum(records[kept]):
        kept += 1
    return kept, int(records[kept - 1]["index"]) + 1 if kept else 0


def _checksum(record: Record) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def _make_room(path: Path, room: int) -> None:
    """Remove the oldest other caches, except those being written, until they have at most `room` bytes."""
    found = []
    for each in path.parent.glob(f"*{path.suffix}*"):
        with suppress(FileNotFoundError):  # another process has just completed or removed it
            if each.name.removesuffix(PARTIAL) != path.name:
                found.append((each.stat(), each))
    total = sum(status.st_size for status, _ in found)
    for status, each in sorted(found, key=lambda pair: pair[0].st_mtime):
        if total <= room:
            return
        lock = lock_file(_lock_of(each.with_name(each.name.removesuffix(PARTIAL))))
        if lock is not None:
            each.unlink(missing_ok=True)
            total -= status.st_size
            os.close(lock)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.stem}.lock")

"""Label files in YOLO format, and rows of boxes grouped by image.

A row is `class cx cy w h`, or a polygon `class x y x y x y ...`, as fractions of the image's width and height; a
rotated box is the polygon of its four corners. Where the data set has keypoints, every row is `class cx cy w h` and
then `x y` or `x y visibility` of each keypoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.core.errors import DataError
from edgekd.core.input_files import read_input
from edgekd.data.keypoints import keypoint_table

TOLERANCE = 1e-3  # fraction of the image: labelling tools round; a coordinate this far outside is clipped
Outline = tuple[NDArray[np.float32], ...]
MAX_LABEL_BYTES = 1 << 24  # of a label file: 400,000 boxes


@dataclass(frozen=True, eq=False)
class Truth:
    """The labels of one image.

    boxes: float32 [n, 4] x1, y1, x2, y2 as fractions of the image's width and height; classes: int64 [n];
    crowd: bool [n], boxes around many objects, which COCO scoring ignores;
    keypoints: float32 [n, k, 3] x, y as fractions, and visibility: 0 for not labelled, 1 for hidden, 2 for visible;
    None for a data set without keypoints;
    polygons: for each object its outline, one or several parts float32 [k, 2] x, y as fractions; None unless they were
    read, and every label of the split has one.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    keypoints: NDArray[np.float32] | None = None
    polygons: tuple[Outline, ...] | None = None

    def __len__(self) -> int:
        return len(self.classes)


def read_labels(
    files: Sequence[Path], class_count: int, keypoint_shape: tuple[int, int] | None = None, *, polygons: bool = False
) -> list[Truth]:
    """Read one label file per image; a missing one means an image without objects.

    keypoint_shape: number of keypoints of an object, and values of each in a row, 2 or 3; polygons: keep the polygons
    of rows, besides their boxes.

    Raises DataError naming the file and line of an invalid label, or if there is no label file at all.
    """
    rows: list[Sequence[str | float]] = []
    points: list[Sequence[str]] = []
    outlines: list[Outline] = []
    owners: list[int] = []
    lines: list[int] = []
    absent = 0
    for owner, file in enumerate(files):
        try:
            text = read_input(file, MAX_LABEL_BYTES).decode("utf-8-sig", errors="replace")
        except DataError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            absent += 1
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            fields: Sequence[str | float] = line.split()
            if not fields:
                continue
            if keypoint_shape:
                fields, extra = _box_and_keypoints(line, keypoint_shape, f"{file} line {number}")
                points.append(extra)
            elif len(fields) != 5:
                label, polygon = _polygon(line, f"{file} line {number}")
                fields = [label, *_box_around(polygon)]
                if polygons:
                    outlines.append((polygon.clip(0, 1).astype(np.float32),))
            rows.append(fields)
            owners.append(owner)
            lines.append(number)
    if files and absent == len(files):
        raise DataError(f"none of {len(files)} images has a label file", expected=f"for the first: {files[0]}")

    def where(row: int) -> str:
        return f"{files[owners[row]]} line {lines[row]}"

    table = _label_table(rows, class_count, where)
    size = table[:, 3:5] / 2
    boxes = np.concatenate([table[:, 1:3] - size, table[:, 1:3] + size], axis=1)
    keypoints = keypoint_table(_numbers(points, where), keypoint_shape, where) if keypoint_shape else None
    crowd = np.zeros(len(table), bool)
    outlined = outlines if polygons and len(outlines) == len(rows) else None
    return truths_per_image(np.array(owners, np.int64), len(files), boxes, table[:, 0], crowd, keypoints, outlined)


def _label_table(
    rows: Sequence[Sequence[str | float]], class_count: int, where: Callable[[int], str]
) -> NDArray[np.float64]:
    """Parse and check rows of text: float64 [n, 5], class, and centre, width and height clipped to the image."""
    table = _numbers(rows, where).reshape(-1, 5)

    def refuse(invalid: NDArray[np.bool_], expected: str) -> None:
        if invalid.any():
            row = int(invalid.argmax())
            raise DataError(where(row), expected=expected, found=" ".join(map(str, rows[row]))[:200])

    refuse(~np.isfinite(table.sum(axis=1)), "finite numbers")
    ids, box = table[:, 0], table[:, 1:]
    refuse((ids % 1 != 0) | (ids < 0) | (ids >= class_count), f"a class from 0 to {class_count - 1}")
    refuse(
        _outside(box.min(axis=1)) | _outside(box.max(axis=1)),
        "centre, width and height between 0 and 1, as fractions of the image",
    )
    table[:, 1:] = box.clip(0, 1)
    return table


def _numbers(rows: Sequence[Sequence[str | float]], where: Callable[[int], str]) -> NDArray[np.float64]:
    """Parse rows with equal numbers of fields, float64 [n, fields]. Raises DataError."""
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError:
        # The fast conversion does not name the invalid row.
        row, field = next((r, f) for r, fields in enumerate(rows) for f in fields if not _is_number(f))
        raise DataError(where(row), expected="numbers", found=repr(field)[:80]) from None


def _box_and_keypoints(line: str, shape: tuple[int, int], where: str) -> tuple[list[str], list[str]]:
    """Split a row into `class cx cy w h` and the numbers of its keypoints. Raises DataError for other columns."""
    fields, columns = line.split(), 5 + shape[0] * shape[1]
    if len(fields) != columns:
        expected = f"{columns} columns (class cx cy w h, and {shape[0]} keypoints of {shape[1]} numbers)"
        raise DataError(where, expected=expected, found=f"{len(fields)} columns", fix="correct the row, or kpt_shape")
    return fields[:5], fields[5:]


def _box_around(polygon: NDArray[np.float64]) -> list[float]:
    """Return cx, cy, w, h of the bounding box of points [k, 2], as fractions of the image."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return [*((low + high) / 2), *np.minimum(high - low, 1)]  # above 1 if it is slightly outside on both sides


def _polygon(line: str, where: str) -> tuple[float, NDArray[np.float64]]:
    """Return the class and the points [k, 2] of a row `class x y x y x y ...`. Raises DataError."""
    fields = line.split()
    if len(fields) == 6:
        fix = "export the labels, not the predictions of a model"
        raise DataError(where, expected="5 columns (class cx cy w h)", found="a sixth: a confidence", fix=fix)
    if len(fields) < 7 or len(fields) % 2 == 0:
        raise DataError(
            where, expected="5 columns (class cx cy w h) or class x y x y x y ...", found=f"{len(fields)} columns"
        )
    try:
        points = np.array(fields[1:], dtype=np.float64).reshape(-1, 2)
        label = float(fields[0])
    except ValueError:
        field = next(field for field in fields if not _is_number(field))
        raise DataError(where, expected="numbers", found=repr(field)[:80]) from None
    if not np.isfinite(points).all() or _outside(points).any():
        raise DataError(
            where,
            expected="points between 0 and 1, as fractions of the image",
            found=line.strip()[:60],
            fix="for rows with keypoints, state kpt_shape in the data set's YAML",
        )
    return label, points


def _outside(fractions: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (fractions < -TOLERANCE) | (fractions > 1 + TOLERANCE)


def _is_number(field: str | float) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def truths_per_image(
    owners: NDArray[np.int64],
    count: int,
    boxes: NDArray[np.float64],
    classes: NDArray[np.float64],
    crowd: NDArray[np.bool_],
    keypoints: NDArray[np.float64] | None = None,
    polygons: Sequence[Outline] | None = None,
) -> list[Truth]:
    """Group rows in any order into one Truth per image; owners: int64 [n], image index of each row."""
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(count + 1)).tolist()
    boxes32 = boxes[order].clip(0, 1).astype(np.float32)
    ids, crowd = classes[order].astype(np.int64), crowd[order]
    points = None if keypoints is None else keypoints[order].astype(np.float32)
    outlines = None if polygons is None else tuple(polygons[row] for row in order)
    return [
        Truth(
            boxes32[a:b],
            ids[a:b],
            crowd[a:b],
            None if points is None else points[a:b],
            None if outlines is None else outlines[a:b],
        )
        for a, b in pairwise(bounds)
    ]

"""Keypoints in data sets: their number in a YAML or in COCO's categories, and the rows of label files and annotations.

Rows become arrays float64 [n, k, 3]: x and y as fractions of the image, and visibility: 0 for not labelled, 1 for
hidden, 2 for visible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.core.bundle.detector_rule import MAX_KEYPOINTS
from edgekd.core.errors import DataError
from edgekd.data.source_files import shown

VISIBLE = 2
"""Highest visibility of a keypoint."""
TOLERANCE = 1e-2
"""Fraction of the image: a labelled keypoint this far outside is clipped, as by Ultralytics."""


def keypoint_shape(settings: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """Return a YAML's `kpt_shape`: number of keypoints, values of each (2 or 3); None without it. Raises DataError."""
    shape = settings.get("kpt_shape")
    if shape is None:
        return None
    counts = shape if isinstance(shape, list) and all(type(count) is int for count in shape) else []
    if len(counts) != 2 or not 1 <= counts[0] <= MAX_KEYPOINTS or counts[1] not in (2, 3):
        expected = f"a number of keypoints, at most {MAX_KEYPOINTS}, and 2 or 3: [17, 3]"
        raise DataError(f"{file}: kpt_shape", expected=expected, found=shown(shape))
    return counts[0], counts[1]


def keypoint_table(
    rows: NDArray[np.float64], shape: tuple[int, int], where: Callable[[int], str]
) -> NDArray[np.float64]:
    """Return the keypoints [n, k, 3] of label rows [n, k * (2 or 3)]. where: names a row for errors.

    Keypoints of two values are visible unless a coordinate is negative, as in Ultralytics. Raises DataError.
    """
    table = rows.reshape(-1, *shape)
    if shape[1] == 2:
        labelled = (table >= 0).all(axis=2, keepdims=True)
        table = np.concatenate([table, np.where(labelled, VISIBLE, 0)], axis=2)
    return _checked(table, where)


def category_keypoints(categories: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the number of keypoints that COCO's categories name; None without any, or where numbers differ."""
    named = [entry["keypoints"] for entry in categories if isinstance(entry.get("keypoints"), list)]
    counts = {len(names) for names in named} - {0}
    return min(counts) if len(counts) == 1 and min(counts) <= MAX_KEYPOINTS else None


def annotated_keypoints(
    annotations: Sequence[Mapping[str, Any]], count: int, sizes: NDArray[np.float64], where: Callable[[int], str]
) -> NDArray[np.float64]:
    """Return the keypoints [n, count, 3] of COCO annotations; without keypoints, none is labelled. Raises DataError.

    sizes: [n, 2], width and height in pixels of each annotation's image.
    """
    table = np.zeros((len(annotations), count, 3))
    for index, entry in enumerate(annotations):
        values = entry.get("keypoints")
        if not values:
            continue
        try:
            table[index] = np.array(values, np.float64).reshape(count, 3)
        except (TypeError, ValueError) as error:
            expected = f"keypoints: {count} times x, y, visibility"
            raise DataError(where(index), expected=expected, found=shown(values)) from error
    table[:, :, :2] /= sizes[:, None]
    return _checked(table, where)


def _checked(table: NDArray[np.float64], where: Callable[[int], str]) -> NDArray[np.float64]:
    """Return keypoints clipped to the image, with zeros for those that are not labelled. Raises DataError."""
    visibility, places = table[:, :, 2], table[:, :, :2]
    labelled = visibility > 0
    outside = ((places < -TOLERANCE) | (places > 1 + TOLERANCE)).any(axis=2) & labelled
    invalid = outside | ~np.isin(visibility, range(VISIBLE + 1)) | ~np.isfinite(places).all(axis=2)
    if invalid.any():
        row, point = np.argwhere(invalid)[0].tolist()
        expected = f"keypoints inside the image, with a visibility of 0 to {VISIBLE}"
        raise DataError(where(row), expected=expected, found=f"keypoint {point} {table[row, point].tolist()}")
    clipped = np.concatenate([places.clip(0, 1), visibility[:, :, None]], axis=2)
    return np.asarray(np.where(labelled[:, :, None], clipped, 0))

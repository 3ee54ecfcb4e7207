"""Outlines of objects in COCO annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data.labels import Outline


def annotated_outlines(
    annotations: Sequence[Mapping[str, Any]], boxes: NDArray[np.float64], sizes: NDArray[np.float64]
) -> list[Outline] | None:
    """Return the outlines of COCO annotations as fractions of the image; None unless each object has polygons.

    boxes: [n, 4] x1, y1, x2, y2 as fractions, used as outlines of crowds that are coded by run lengths; sizes: [n, 2],
    width and height in pixels of each annotation's image.
    """
    outlines: list[Outline] = []
    for entry, (x1, y1, x2, y2), size in zip(annotations, boxes, sizes, strict=True):
        parts: Any = entry.get("segmentation")
        if entry.get("iscrowd") and isinstance(parts, dict):
            outlines.append((np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float32),))
            continue
        try:
            outline = tuple(
                np.clip(np.array(part, np.float64).reshape(-1, 2) / size, 0, 1).astype(np.float32) for part in parts
            )
        except (TypeError, ValueError):  # run lengths, nothing, or no numbers: used as a data set of boxes
            return None
        if not outline or any(len(part) < 3 or not np.isfinite(part).all() for part in outline):
            return None
        outlines.append(outline)
    return outlines

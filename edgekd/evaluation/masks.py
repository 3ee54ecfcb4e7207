"""Masks of objects for COCO scoring: compressed run lengths of labelled polygons and of detected masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekd.core.detection.masks import InstanceMasks
from edgekd.core.errors import DataError
from edgekd.data.labels import Truth

Code = dict[str, Any]
"""A mask as COCO's compressed run-length code: `size` and `counts`."""


def codes_of(masks: InstanceMasks) -> list[Code]:
    """Return the masks of one frame."""
    from faster_coco_eval.core import mask

    return [mask.frPyObjects(masks.rle(index), *masks.frame) for index in range(len(masks))]


def labelled_masks(truths: Sequence[tuple[Truth, int, int]]) -> list[Code]:
    """Return the masks of labelled polygons, filled by COCO's rules. Raises DataError for labels without polygons."""
    from faster_coco_eval.core import mask

    codes = []
    for truth, width, height in truths:
        if truth.polygons is None:
            expected = "a polygon for each object (rows class x1 y1 x2 y2 x3 y3 ..., or COCO's `segmentation`)"
            raise DataError("labels without masks, which the detector gives", expected=expected)
        size = np.array([width, height])
        for outline in truth.polygons:
            parts = mask.frPyObjects([(part * size).ravel().tolist() for part in outline], height, width)
            codes.append(mask.merge(parts))
    return codes


def with_masks(annotations: list[dict[str, Any]], codes: Sequence[Code]) -> list[dict[str, Any]]:
    """Return COCO annotations with masks, and their areas."""
    from faster_coco_eval.core import mask

    return [
        {**each, "segmentation": code, "area": float(mask.area(code))}
        for each, code in zip(annotations, codes, strict=True)
    ]

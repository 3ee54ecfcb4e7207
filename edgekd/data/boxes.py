"""Boxes x1, y1, x2, y2: areas and overlaps. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TINY = np.finfo(np.float64).tiny
"""Smallest divisor of an area."""


def areas(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the areas of boxes [..., 4], 0 for one without width or height."""
    return np.asarray(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1, dtype=np.float64))


def overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the IoU of boxes [n, 4] and others [m, 4], and the share of each box that another covers, both [n, m].

    COCO matches crowds by that share.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common, own = areas(np.concatenate([low, high], axis=-1)), areas(boxes)[:, None]
    return common / np.maximum(own + areas(others) - common, TINY), common / np.maximum(own, TINY)

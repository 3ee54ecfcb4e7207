"""Bilinear resizing of 8-bit frames: by OpenCV where it is installed, else by NumPy, at a tenth of the speed.

Shared with the device: Python 3.8 and NumPy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np


@lru_cache(maxsize=1)
def opencv() -> Any:
    """Return OpenCV's module; None where it is not installed."""
    # Not by find_spec, which fails while another thread imports OpenCV: its loader replaces the module in between.
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        return None
    return cv2


def resize_into(frame: np.ndarray, out: np.ndarray) -> None:
    """Resize a frame uint8 [h, w] or [h, w, c] to the shape of `out`, bilinearly, into it.

    Without OpenCV values differ from OpenCV's by one grey level at most: it computes in fixed point.
    """
    cv2 = opencv()
    rows, columns = _middles(frame.shape[0], out.shape[0]), _middles(frame.shape[1], out.shape[1])
    if frame.shape == out.shape:
        out[:] = frame
    elif rows and columns:  # as 1080p to 640 x 360: half of OpenCV's time, plane by plane
        for plane in np.ndindex(frame.shape[2:]):
            out[(..., *plane)] = frame[(rows, columns, *plane)]
    elif cv2 is not None:
        cv2.resize(frame, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        top, bottom, down = _neighbours(frame.shape[0], out.shape[0])
        left, right, across = _neighbours(frame.shape[1], out.shape[1])
        down = down.reshape(-1, *[1] * (frame.ndim - 1))
        across = across.reshape(-1, *[1] * (frame.ndim - 2))
        upper, lower = (
            frame[np.ix_(rows, left)] * (1 - across) + frame[np.ix_(rows, right)] * across for rows in (top, bottom)
        )
        np.rint(upper * (1 - down) + lower * down, out=out, casting="unsafe")


def _middles(source: int, target: int) -> slice | None:
    """Return the pixels of a side that a resized one keeps as they are; None where it mixes neighbours."""
    factor, rest = divmod(source, target)
    return slice(factor // 2, None, factor) if factor % 2 and not rest else None


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each pixel of a resized side the pixels before and after it, and the share of the latter."""
    places = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    before = places.astype(np.int64)
    return before, np.minimum(before + 1, source - 1), (places - before).astype(np.float32)

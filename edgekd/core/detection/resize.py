"""Bilinear resizing of 8-bit frames: by OpenCV where it is installed, else by NumPy, at a tenth of the speed.

NumPy and the GPU (`agent/runtimes/gpu_letterbox.py`) compute in fixed point as OpenCV does for 8 bits
(modules/imgproc/src/resize.cpp), so that all three give the same values.

Shared with the device: Python 3.8 and NumPy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

WHOLE = 2048
"""Sum of the weights of two neighbours."""
LOW_BITS = 4
"""Bits that are dropped between rows and columns."""
HIGH_BITS = 16
"""Bits that each weighted row loses; two remain, and are rounded at the end."""


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
    """Resize a frame uint8 [h, w] or [h, w, c] to the shape of `out`, bilinearly, into it."""
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
        _resize_by_numpy(frame, out)


def _middles(source: int, target: int) -> slice | None:
    """Return the pixels of a side that a resized one keeps as they are; None where it mixes neighbours."""
    factor, rest = divmod(source, target)
    return slice(factor // 2, None, factor) if factor % 2 and not rest else None


def _resize_by_numpy(frame: np.ndarray, out: np.ndarray) -> None:
    per_row, per_column = (-1, *[1] * (frame.ndim - 1)), (-1, *[1] * (frame.ndim - 2))
    left, right, of_left, of_right = neighbours(frame.shape[1], out.shape[1])
    top, bottom, of_top, of_bottom = neighbours(frame.shape[0], out.shape[0])
    upper, lower = (
        frame[np.ix_(rows, left)] * of_left.reshape(per_column)
        + frame[np.ix_(rows, right)] * of_right.reshape(per_column)
        for rows in (top, bottom)
    )
    upper = (upper >> LOW_BITS) * of_top.reshape(per_row) >> HIGH_BITS
    lower = (lower >> LOW_BITS) * of_bottom.reshape(per_row) >> HIGH_BITS
    np.right_shift(upper + lower + 2, 2, out=out, casting="unsafe")


@lru_cache(maxsize=64)
def neighbours(source: int, target: int) -> np.ndarray:
    """Return int32 [4, target]: for each pixel of a resized side the pixels before and after it, and their weights."""
    places = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    before = np.floor(places)
    share = places - before
    weights = [np.rint(each * np.float32(WHOLE)) for each in (np.float32(1) - share, share)]
    pixels = [np.clip(each, 0, source - 1) for each in (before, before + 1)]
    return np.stack([*pixels, *weights]).astype(np.int32)

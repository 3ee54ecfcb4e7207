"""From a camera frame to the network's input and back: letterboxing.

Shared with the device: Python 3.8 and NumPy; resizing uses OpenCV, which JetPack ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.core.detection.types import Preprocess


@dataclass(frozen=True)
class Placement:
    """Where a frame of `width` x `height` pixels lies in the input: `across` x `down` pixels from `left`, `top`."""

    left: int
    top: int
    across: int
    down: int
    width: int
    height: int


def place(width: int, height: int, how: Preprocess) -> Placement:
    """Where a frame of this size will lie. Halves round as in Ultralytics' LetterBox, so that scores are comparable."""
    ratio = min(how.height / height, how.width / width)
    if not how.upscale:
        ratio = min(ratio, 1.0)
    across, down = max(round(width * ratio), 1), max(round(height * ratio), 1)
    left = top = 0
    if how.center:
        left, top = round((how.width - across) / 2 - 0.1), round((how.height - down) / 2 - 0.1)
    return Placement(left, top, across, down, width, height)


def letterbox(frame: np.ndarray, how: Preprocess) -> tuple[np.ndarray, Placement]:
    """A frame uint8 [h, w, 3] BGR as float32 [1, 3, how.height, how.width], and where it lies in there."""
    import cv2

    height, width = frame.shape[:2]
    at = place(width, height, how)
    if (at.across, at.down) != (width, height):
        frame = cv2.resize(frame, (at.across, at.down), interpolation=cv2.INTER_LINEAR)
    canvas = frame
    if frame.shape[:2] != (how.height, how.width):
        canvas = np.full((how.height, how.width, 3), how.pad_value, np.uint8)
        canvas[at.top : at.top + at.down, at.left : at.left + at.across] = frame
    return _normalised(cv2.split(canvas), how), at


def to_tensor(canvas: np.ndarray, how: Preprocess) -> np.ndarray:
    """A canvas uint8 [H, W, 3] BGR as normalised planes float32 [1, 3, H, W]."""
    return _normalised([canvas[:, :, plane] for plane in range(3)], how)


def _normalised(planes: Sequence[np.ndarray], how: Preprocess) -> np.ndarray:
    """Planes uint8 [H, W] blue, green, red as the tensor. Planes that are contiguous take a third of the time."""
    out = np.empty((1, 3, *planes[0].shape), np.float32)
    for plane in range(3):
        out[0, plane] = planes[2 - plane if how.color == "rgb" else plane]
        out[0, plane] *= np.float32(how.scale / how.std[plane])
        if how.mean[plane]:
            out[0, plane] -= np.float32(how.mean[plane] / how.std[plane])
    return out


def to_input(boxes: np.ndarray, at: Placement) -> np.ndarray:
    """Boxes float32 [n, 4] x1, y1, x2, y2 as shares of the frame as pixels of the input."""
    corner, size = np.array([at.left, at.top] * 2, np.float32), np.array([at.across, at.down] * 2, np.float32)
    moved: np.ndarray = boxes * size + corner
    return moved


def to_frame(boxes: np.ndarray, at: Placement) -> np.ndarray:
    """Boxes float32 [n, 4] x1, y1, x2, y2 in input pixels as pixels of the frame, clipped to it."""
    corner = np.array([at.left, at.top] * 2, np.float32)
    size = np.array([at.width, at.height] * 2, np.float32)
    # Each axis by its own factor: whole pixels across and down are not exactly of the frame's proportions.
    moved = (boxes - corner) * (size / np.array([at.across, at.down] * 2, np.float32))
    return np.clip(moved, 0, size)

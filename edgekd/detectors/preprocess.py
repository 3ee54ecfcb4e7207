"""From a camera frame to the network's input and back: letterboxing.

Shared with the device: Python 3.8 and NumPy; resizing uses OpenCV, which JetPack ships.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.detectors.types import Preprocess


@dataclass(frozen=True)
class Placement:
    """Where a frame of `width` x `height` pixels lies in the input: scaled by `ratio`, then moved by `left`, `top`."""

    ratio: float
    left: int
    top: int
    width: int
    height: int


def place(width: int, height: int, how: Preprocess) -> Placement:
    """Where a frame of this size will lie. Halves round as in Ultralytics' LetterBox, so that scores are comparable."""
    ratio = min(how.height / height, how.width / width)
    if not how.upscale:
        ratio = min(ratio, 1.0)
    left = top = 0
    if how.center:
        left = round((how.width - round(width * ratio)) / 2 - 0.1)
        top = round((how.height - round(height * ratio)) / 2 - 0.1)
    return Placement(ratio, left, top, width, height)


def letterbox(frame: np.ndarray, how: Preprocess) -> tuple[np.ndarray, Placement]:
    """A frame uint8 [h, w, 3] BGR as float32 [1, 3, how.height, how.width], and where it lies in there."""
    import cv2

    height, width = frame.shape[:2]
    at = place(width, height, how)
    size = (max(round(width * at.ratio), 1), max(round(height * at.ratio), 1))
    if size != (width, height):
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    canvas = frame
    if frame.shape[:2] != (how.height, how.width):
        canvas = np.full((how.height, how.width, 3), how.pad_value, np.uint8)
        canvas[at.top : at.top + size[1], at.left : at.left + size[0]] = frame
    return to_tensor(canvas, how), at


def to_tensor(canvas: np.ndarray, how: Preprocess) -> np.ndarray:
    """A canvas uint8 [H, W, 3] BGR as normalised planes float32 [1, 3, H, W]."""
    out = np.empty((1, 3, *canvas.shape[:2]), np.float32)
    for plane in range(3):
        source = canvas[:, :, 2 - plane if how.color == "rgb" else plane]
        factor = np.float32(how.scale / how.std[plane])
        np.multiply(source, factor, out=out[0, plane], casting="unsafe")
        if how.mean[plane]:
            out[0, plane] -= np.float32(how.mean[plane] / how.std[plane])
    return out


def to_frame(boxes: np.ndarray, at: Placement) -> np.ndarray:
    """Boxes float32 [n, 4] x1, y1, x2, y2 in input pixels as pixels of the frame, clipped to it."""
    moved = (boxes - np.array([at.left, at.top, at.left, at.top], np.float32)) / np.float32(at.ratio)
    limits = np.array([at.width, at.height, at.width, at.height], np.float32)
    return np.clip(moved, 0, limits)

"""Preprocessing: from a camera frame to the network's input, and boxes back.

Shared with the device: Python 3.8 and NumPy; resizing uses OpenCV, which JetPack ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.core.detection.types import Preprocess


@dataclass(frozen=True)
class Placement:
    """Position of a frame of `width` x `height` pixels in the input: `across` x `down` pixels from `left`, `top`."""

    left: int
    top: int
    across: int
    down: int
    width: int
    height: int


def place(width: int, height: int, preprocess: Preprocess) -> Placement:
    """Return the placement of a frame. Halves round as in Ultralytics' LetterBox, so that scores are comparable."""
    if preprocess.stretch:
        return Placement(0, 0, preprocess.width, preprocess.height, width, height)
    ratio = min(preprocess.height / height, preprocess.width / width)
    if not preprocess.upscale:
        ratio = min(ratio, 1.0)
    across, down = max(round(width * ratio), 1), max(round(height * ratio), 1)
    left = top = 0
    if preprocess.center:
        left, top = round((preprocess.width - across) / 2 - 0.1), round((preprocess.height - down) / 2 - 0.1)
    return Placement(left, top, across, down, width, height)


def letterbox(frame: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, Placement]:
    """Return a frame uint8 [h, w, 3] BGR as an input float32 [1, 3, H, W], and its placement."""
    import cv2

    height, width = frame.shape[:2]
    placement = place(width, height, preprocess)
    left, top, across, down = placement.left, placement.top, placement.across, placement.down
    if (across, down) != (width, height):
        frame = cv2.resize(frame, (across, down), interpolation=cv2.INTER_LINEAR)
    canvas = frame
    if frame.shape[:2] != (preprocess.height, preprocess.width):
        canvas = np.full((preprocess.height, preprocess.width, 3), preprocess.pad_value, np.uint8)
        canvas[top : top + down, left : left + across] = frame
    return _normalised(cv2.split(canvas), preprocess), placement


def to_tensor(canvas: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return a canvas uint8 [H, W, 3] BGR as an input float32 [1, 3, H, W]."""
    return _normalised([canvas[:, :, plane] for plane in range(3)], preprocess)


def _normalised(planes: Sequence[np.ndarray], preprocess: Preprocess) -> np.ndarray:
    """Normalise planes uint8 [H, W] blue, green, red. Contiguous planes take a third of the time."""
    out = np.empty((1, 3, *planes[0].shape), np.float32)
    for plane in range(3):
        out[0, plane] = planes[2 - plane if preprocess.color == "rgb" else plane]
        out[0, plane] *= np.float32(preprocess.scale / preprocess.std[plane])
        if preprocess.mean[plane]:
            out[0, plane] -= np.float32(preprocess.mean[plane] / preprocess.std[plane])
    return out


def to_input(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Return boxes float32 [n, 4] x1, y1, x2, y2, relative to the frame, in pixels of the input."""
    corner = np.array([placement.left, placement.top] * 2, np.float32)
    size = np.array([placement.across, placement.down] * 2, np.float32)
    moved: np.ndarray = boxes * size + corner
    return moved


def rotated_to_frame(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Return rotated boxes float32 [n, 5], in input pixels, in pixels of the frame, with the same angles."""
    scale = np.array([placement.width / placement.across, placement.height / placement.down], np.float32)
    corner = np.array([placement.left, placement.top], np.float32)
    return np.concatenate([(boxes[:, :2] - corner) * scale, boxes[:, 2:4] * scale, boxes[:, 4:]], axis=1)


def to_frame(points: np.ndarray, placement: Placement) -> np.ndarray:
    """Return points float32 [..., 2] x, y, or boxes [..., 4], in input pixels in pixels of the frame, clipped to it."""
    pairs = points.shape[-1] // 2
    corner = np.array([placement.left, placement.top] * pairs, np.float32)
    size = np.array([placement.width, placement.height] * pairs, np.float32)
    # Each axis has its own factor: rounding to pixels changes the aspect ratio a little.
    moved = (points - corner) * (size / np.array([placement.across, placement.down] * pairs, np.float32))
    return np.clip(moved, 0, size)

"""Preprocessing: from a camera frame to the network's input, and boxes back.

Shared with the device: Python 3.8 and NumPy; OpenCV, which JetPack ships, makes it faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.core.detection.nv12 import NEUTRAL, bgr_from_nv12, luma_of, nv12_from_bgr
from edgekd.core.detection.resize import opencv, resize_into
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
    """Return the placement of a frame. Halves round as in Ultralytics' LetterBox, so that scores are comparable.

    For `nv12` all its numbers are even, as chroma is of 2 x 2 pixels.
    """
    if preprocess.stretch:
        return Placement(0, 0, preprocess.width, preprocess.height, width, height)
    ratio = min(preprocess.height / height, preprocess.width / width)
    if not preprocess.upscale:
        ratio = min(ratio, 1.0)
    step = 2 if preprocess.input == "nv12" else 1
    across, down = (max(round(side * ratio / step), 1) * step for side in (width, height))
    left = top = 0
    if preprocess.center:
        left, top = (
            round((side - inner) / 2 / step - 0.1) * step
            for side, inner in ((preprocess.width, across), (preprocess.height, down))
        )
    return Placement(left, top, across, down, width, height)


def placement_of(frame: np.ndarray, preprocess: Preprocess) -> Placement:
    """Return the placement of a frame as `letterbox` takes it."""
    return place(frame.shape[1], frame.shape[0] * 2 // 3 if frame.ndim == 2 else frame.shape[0], preprocess)


def letterbox(frame: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, Placement]:
    """Return a frame as the network's input, which `Preprocess` describes, and its placement.

    frame: uint8 [h, w, 3] BGR; for a network with `nv12` input also NV12, uint8 [h * 3 / 2, w].
    """
    if frame.ndim == 2:
        return _letterboxed_nv12(frame, preprocess)
    placement = placement_of(frame, preprocess)
    canvas = frame
    if frame.shape[:2] != (preprocess.height, preprocess.width):
        canvas = np.empty((preprocess.height, preprocess.width, 3), np.uint8)
        _paste(frame, canvas, placement, preprocess.pad_value)
    cv2 = opencv()
    if preprocess.input == "float32" and cv2 is not None:
        return _normalised(cv2.split(canvas), preprocess), placement
    return to_tensor(canvas, preprocess), placement


def _letterboxed_nv12(frame: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, Placement]:
    """Return an NV12 frame as the network's input, and its placement."""
    placement = placement_of(frame, preprocess)
    height, width = placement.height, placement.width
    canvas = np.empty((preprocess.height * 3 // 2, preprocess.width), np.uint8)
    luma, chroma = canvas[: preprocess.height], canvas[preprocess.height :].reshape(-1, preprocess.width // 2, 2)
    _paste(frame[:height], luma, placement, luma_of(preprocess.pad_value))
    _paste(frame[height:].reshape(height // 2, width // 2, 2), chroma, placement, NEUTRAL, pixels=2)
    return _raw(canvas, preprocess), placement


def _paste(frame: np.ndarray, canvas: np.ndarray, at: Placement, fill: int, pixels: int = 1) -> None:
    """Resize a frame into its place in a canvas, and fill the rest.

    pixels: side of the square that an entry of both stands for.
    """
    left, top, across, down = (side // pixels for side in (at.left, at.top, at.across, at.down))
    middle = canvas[top : top + down]
    for rest in (canvas[:top], canvas[top + down :], middle[:, :left], middle[:, left + across :]):
        rest[:] = fill
    resize_into(frame, middle[:, left : left + across])


def to_tensor(canvas: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return a canvas uint8 [H, W, 3] BGR as the network's input; for `uint8` a view of it."""
    if preprocess.input == "float32":
        return _normalised([canvas[:, :, plane] for plane in range(3)], preprocess)
    return _raw(canvas if preprocess.input == "uint8" else nv12_from_bgr(canvas), preprocess)


def _raw(frame: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    batch: np.ndarray = frame[None]
    return batch.astype(np.float32) if preprocess.float_bytes else batch


def normalised(batch: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return the values float32 [1, 3, H, W] that a network computes from its input, whatever its format."""
    if preprocess.input == "float32":
        return batch
    frame = batch[0] if preprocess.input == "uint8" else bgr_from_nv12(batch[0])
    return _normalised([frame[:, :, plane] for plane in range(3)], preprocess)


def _normalised(planes: Sequence[np.ndarray], preprocess: Preprocess) -> np.ndarray:
    """Normalise planes [H, W] blue, green, red. Contiguous planes take a third of the time."""
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

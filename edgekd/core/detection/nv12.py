"""NV12 frames, as cameras and video decoders of a Jetson give them: 8-bit luma, and chroma of 2 x 2 pixels together.

An NV12 frame of h x w pixels, both even, is uint8 [h * 3 / 2, w]: h rows of luma, then h / 2 rows with blue and red
chroma in turn. Colours are those of ITU-R BT.601 in limited range, as OpenCV converts them.

Shared with the device: Python 3.8 and NumPy.
"""

from __future__ import annotations

import numpy as np

BLACK = 16
"""Luma of black."""
NEUTRAL = 128
"""Chroma of grey."""
LUMA_GAIN = 1.164
"""Grey levels for a step of luma: 255 / 219, as OpenCV rounds it (modules/imgproc/src/color_yuv.simd.hpp)."""
BLUE = (2.018, -0.391, 0.0)
"""Parts of blue chroma in blue, green and red, by the same source."""
RED = (0.0, -0.813, 1.596)
"""Parts of red chroma in blue, green and red."""
_TO_LUMA = (25, 129, 66)
"""Parts of blue, green and red in luma, times 256."""
_TO_CHROMA = ((112, -74, -38), (-18, -94, 112))
"""Parts of blue, green and red in blue and in red chroma, times 256."""


def luma_of(level: int) -> int:
    """Return the luma of a grey level, 0 to 255."""
    return BLACK + (sum(_TO_LUMA) * level + 128) // 256


def nv12_from_bgr(frame: np.ndarray) -> np.ndarray:
    """Return a frame uint8 [h, w, 3] BGR, of even sides, as NV12; chroma is that of the mean of its 2 x 2 pixels."""
    height, width = frame.shape[:2]
    out = np.empty((height * 3 // 2, width), np.uint8)
    planes = [frame[:, :, plane].astype(np.uint16) for plane in range(3)]
    luma = sum(np.uint16(part) * plane for part, plane in zip(_TO_LUMA, planes))  # noqa: B905
    out[:height] = ((luma + np.uint16(128)) >> 8) + BLACK
    rows = [plane[::2] + plane[1::2] for plane in planes]
    sums = [(row[:, ::2] + row[:, 1::2]).astype(np.int32) for row in rows]  # of four pixels
    pairs = out[height:].reshape(height // 2, width // 2, 2)
    for index, parts in enumerate(_TO_CHROMA):
        chroma = sum(part * four for part, four in zip(parts, sums))  # noqa: B905
        pairs[:, :, index] = ((chroma + 512) >> 10) + NEUTRAL
    return out


def bgr_from_nv12(frame: np.ndarray) -> np.ndarray:
    """Return an NV12 frame as float32 [h, w, 3] BGR from 0 to 255, not rounded."""
    height, width = frame.shape[0] * 2 // 3, frame.shape[1]
    luma = np.maximum(frame[:height].astype(np.float32) - BLACK, 0) * np.float32(LUMA_GAIN)
    pairs = frame[height:].astype(np.float32).reshape(height // 2, width // 2, 2) - NEUTRAL
    chroma = (pairs @ np.array([BLUE, RED], np.float32)).repeat(2, axis=0).repeat(2, axis=1)
    frame_bgr: np.ndarray = np.clip(luma[:, :, None] + chroma, 0, 255)
    return frame_bgr

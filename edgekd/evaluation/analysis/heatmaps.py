"""Attention maps as heatmaps over the frame, which is grey."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import Preprocess
from edgekd.data.images import Image

WIDTH = 240
"""Pixels of a picture's longer side."""


def heatmap(frame: Image, attention: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return a map uint8 [h, w] of the network's input over its frame: uint8 BGR, as small as WIDTH.

    The colours are cividis, which grows lighter evenly and looks alike to those who see red and green as one.
    """
    import cv2

    placement = place(frame.shape[1], frame.shape[0], preprocess)
    whole = cv2.resize(attention, (preprocess.width, preprocess.height), interpolation=cv2.INTER_LINEAR)
    inner = whole[placement.top : placement.top + placement.down, placement.left : placement.left + placement.across]
    small = thumbnail(frame)
    heat = cv2.resize(inner, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return np.asarray(cv2.addWeighted(cv2.applyColorMap(heat, cv2.COLORMAP_CIVIDIS), 0.68, grey, 0.32, 0))


def outlined(picture: Image, boxes: Sequence[tuple[float, ...]], frame: Image) -> Image:
    """Draw boxes, in pixels of the frame, on a small picture of it: white on black."""
    import cv2

    drawn, scale = np.ascontiguousarray(picture), picture.shape[1] / frame.shape[1]
    for box in boxes:
        x1, y1, x2, y2 = (round(side * scale) for side in box)
        for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.rectangle(drawn, (x1, y1), (x2, y2), color, thickness)
    return drawn


def thumbnail(frame: Image) -> Image:
    """Return a frame whose longer side is WIDTH."""
    import cv2

    scale = WIDTH / max(frame.shape[:2])
    width, height = (max(round(side * scale), 1) for side in frame.shape[1::-1])
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

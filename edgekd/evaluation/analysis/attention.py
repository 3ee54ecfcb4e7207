"""Attention maps: the mean of |activation| over the channels of a layer; and heatmaps of them over grey frames.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. Maps of two networks are comparable even where
their channels are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import Preprocess
from edgekd.data.images import Image

WIDTH = 240
"""Longer side of a heatmap in pixels."""


def attention(features: np.ndarray) -> np.ndarray:
    """Return the unscaled map float32 [h, w] of activations float [1, c, h, w]."""
    return np.asarray(np.abs(features[0].astype(np.float32)).mean(axis=0))


def as_image(attention_map: np.ndarray) -> np.ndarray:
    """Scale a map to uint8 [h, w] from 0, its minimum, to 255, its maximum; a constant map is 0."""
    low, high = float(attention_map.min()), float(attention_map.max())
    if not np.isfinite(low) or not np.isfinite(high) or high - low < 1e-12:
        return np.zeros(attention_map.shape, np.uint8)
    return np.asarray(np.round(255 * (attention_map - low) / (high - low)), np.uint8)


def agreement(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the correlation of two maps of one shape, -1 to 1; None where one of them is constant."""
    a, b = (each.astype(np.float64).ravel() - each.mean(dtype=np.float64) for each in (first, second))
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 1e-12 else None


def heatmap(frame: Image, attention: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return a map uint8 [h, w] of the network's input over its grey frame: uint8 [h, w, 3] BGR, longer side WIDTH.

    The colour map is cividis, which is perceptually uniform, also with a red-green colour vision deficiency.
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
    """Draw boxes, in pixels of the frame, on a small picture of it: white lines, black edges. Return the picture."""
    import cv2

    drawn, scale = np.ascontiguousarray(picture), picture.shape[1] / frame.shape[1]
    for box in boxes:
        x1, y1, x2, y2 = (round(side * scale) for side in box)
        for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.rectangle(drawn, (x1, y1), (x2, y2), color, thickness)
    return drawn


def thumbnail(frame: Image) -> Image:
    """Return a frame resized to a longer side of WIDTH."""
    import cv2

    scale = WIDTH / max(frame.shape[:2])
    width, height = (max(round(side * scale), 1) for side in frame.shape[1::-1])
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

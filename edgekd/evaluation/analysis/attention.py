"""Where a network looks: the mean of |activation| over the channels of a layer. Pure.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. A map is what of a frame is strong in a layer;
two networks that look at the same places have maps of the same shape, whatever their channels mean.
"""

from __future__ import annotations

import numpy as np


def attention(features: np.ndarray) -> np.ndarray:
    """The map float32 [h, w] of a layer that writes float [1, c, h, w]; not scaled."""
    return np.asarray(np.abs(features[0].astype(np.float32)).mean(axis=0))


def as_shade(found: np.ndarray) -> np.ndarray:
    """A map as uint8 [h, w], 0 where it is least and 255 where it is most; one value everywhere is 0."""
    low, high = float(found.min()), float(found.max())
    if not np.isfinite(low) or not np.isfinite(high) or high - low < 1e-12:
        return np.zeros(found.shape, np.uint8)
    return np.asarray(np.round(255 * (found - low) / (high - low)), np.uint8)


def agreement(first: np.ndarray, second: np.ndarray) -> float | None:
    """The correlation of two maps of one shape, -1 to 1; None where one of them is flat."""
    a, b = (each.astype(np.float64).ravel() - each.mean(dtype=np.float64) for each in (first, second))
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 1e-12 else None

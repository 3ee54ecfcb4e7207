"""Attention maps: the mean of |activation| over the channels of a layer. Pure.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. Maps of two networks are comparable even where
their channels are not.
"""

from __future__ import annotations

import numpy as np


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

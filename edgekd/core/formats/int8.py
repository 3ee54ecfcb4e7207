"""INT8, symmetric: value = scale * code, codes -127..127, zero point 0. Pure NumPy, shared with the device.

-128 is not used, so that a negated tensor has negated codes: TensorRT's rule.
"""

from __future__ import annotations

import numpy as np

LEVELS = 127


def quantize_channels(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes int8 of the same shape and scales float32 [channels] for weights float32 [channels, ...].

    Raises ValueError where a weight is not finite.
    """
    if not np.isfinite(weights).all():
        raise ValueError("weights are not finite")
    rows = weights.reshape(len(weights), -1)
    scales = channel_scales(rows)
    codes = np.clip(np.rint(rows / scales[:, None]), -LEVELS, LEVELS).astype(np.int8)
    return codes.reshape(weights.shape), scales


def channel_scales(rows: np.ndarray) -> np.ndarray:
    """Return scales float32 [channels] at which the largest of each row float32 [channels, n] is the largest code."""
    # Division by a subnormal scale could overflow; such a channel is all zero in INT8.
    scales: np.ndarray = np.maximum(np.abs(rows).max(axis=1, initial=0) / LEVELS, np.finfo(np.float32).tiny)
    return scales.astype(np.float32)


def dequantize_channels(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return weights float32 of the codes' shape, from codes int8 [channels, ...] and scales float32 [channels]."""
    weights: np.ndarray = codes.astype(np.float32) * scales.reshape(-1, *[1] * (codes.ndim - 1))
    return weights

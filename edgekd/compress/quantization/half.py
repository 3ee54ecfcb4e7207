"""Rounding for layers that compute in floating point: float32 values that a packed graph stores in 16 bits or fewer."""

from __future__ import annotations

import numpy as np

HALF_MAX = 65504
"""Largest float16."""
WEIGHT_BITS = 8
"""Significant bits of a weight: its noise is 56 dB below the signal, and 3 of its 16 bits are zero."""


def as_half(values: np.ndarray) -> np.ndarray:
    """Round float32 to values of float16, saturating: half the bytes, with noise negligible beside that of INT8."""
    return np.asarray(np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32))


def as_short_half(weights: np.ndarray) -> np.ndarray:
    """Round weights float32 to float16 with WEIGHT_BITS significant bits."""
    fractions, exponents = np.frexp(as_half(weights))
    # Rounding up the largest weights would exceed the range of float16.
    return as_half(np.ldexp(np.rint(np.ldexp(fractions, WEIGHT_BITS)), exponents - WEIGHT_BITS))

"""Ranges of activations: histograms of magnitudes, and rules for the clipping range. NumPy only.

INT8 is symmetric here: codes -127..127, scale = range / 127.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import numpy as np

BINS = 2048
"""Bins of a histogram; even, because pairs are merged."""
LEVELS = 127
"""Largest INT8 code."""
ENTROPY_BINS = 256
"""Bins of the entropy rule: see `range_by_entropy`."""
PERCENTILE = 99.99
"""Percentage of the values inside the range of the percentile rule."""


class MagnitudeHistogram:
    """Histogram of |x| in `BINS` equal bins from 0, doubled in width for larger values: one pass, constant memory."""

    def __init__(self, sample: int = 1 << 14) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.largest = 0.0
        self._sample = sample

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape: all of a small array, an evenly spaced sample of a large one.

        The largest magnitude is always exact. Raises ValueError for a value that is not finite.
        """
        flat = values.ravel()
        self._widen(float(max(flat.max(initial=0), -flat.min(initial=0))))
        if self.width == 0:
            return
        # An odd stride does not alias with rows and channels of even length.
        step = max(flat.size // self._sample, 1) | 1
        bins = (np.abs(flat[::step]) * np.float32(1 / self.width)).astype(np.int32)
        self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def _widen(self, largest: float) -> None:
        if not np.isfinite(largest):
            raise ValueError("a value is not finite")
        self.largest = max(self.largest, largest)
        if self.width == 0 and largest:
            self.width = max(1.25 * largest / BINS, 1e-30)  # float32 cannot divide by much less
        while self.largest > self.width * BINS:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
            self.width *= 2

    @property
    def centres(self) -> np.ndarray:
        """Middle of each bin, float64 [BINS]."""
        return (np.arange(BINS) + 0.5) * self.width


def merged(histograms: list[MagnitudeHistogram]) -> MagnitudeHistogram:
    """Merge histograms."""
    total = MagnitudeHistogram()
    total.width = max(histogram.width for histogram in histograms)
    total.largest = max(histogram.largest for histogram in histograms)
    for histogram in histograms:
        if histogram.width:
            index = np.minimum((histogram.centres / total.width).astype(np.int64), BINS - 1)
            total.counts += np.bincount(index, weights=histogram.counts, minlength=BINS).astype(np.int64)
    return total


def range_by_mse(histogram: MagnitudeHistogram) -> float:
    """Return the range with the least mean squared error of rounding and clipping, among 96 from 5 % to 100 %."""
    candidates = histogram.largest * np.linspace(0.05, 1, 96)
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    steps = (candidates / LEVELS)[:, None]
    rounded = np.minimum(np.rint(centres / steps), LEVELS) * steps
    errors = ((rounded - centres) ** 2 @ counts) + (np.minimum(steps, histogram.width) ** 2 / 12)[:, 0] * counts.sum()
    return float(candidates[errors.argmin()])


def range_by_percentile(histogram: MagnitudeHistogram) -> float:
    """Return the range that contains `PERCENTILE` percent of the values."""
    below = np.cumsum(histogram.counts) / max(histogram.counts.sum(), 1)
    inside = float((np.searchsorted(below, PERCENTILE / 100) + 1) * histogram.width)
    return min(inside, histogram.largest)


def range_by_entropy(histogram: MagnitudeHistogram) -> float:
    """Return the range with the least Kullback-Leibler divergence of the quantized distribution from the clipped one.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, but on `ENTROPY_BINS` bins instead of 2048: with finer
    bins the shape of the peak at zero dominates, and SiLU networks were clipped to a quarter of the range. ONNX
    Runtime's calibrator starts with 128 bins for both signs.
    """
    below = np.interp(
        histogram.largest * np.linspace(0, 1, ENTROPY_BINS + 1),
        np.arange(BINS + 1) * histogram.width,
        np.concatenate([[0], np.cumsum(histogram.counts)]),
    )
    below[-1] = histogram.counts.sum()
    counts = np.diff(below)
    counts[0] = counts[1]  # exact zeros are irrelevant to the range, but would dominate
    ends = range(ENTROPY_BINS, LEVELS, -1)  # widest first, so that ties go to the wider range
    best = ends[int(np.argmin([_divergence(counts, end) for end in ends]))]
    return float(histogram.largest * best / ENTROPY_BINS)


def _divergence(counts: np.ndarray, end: int) -> float:
    """Return the KL divergence of the first `end` bins quantized to INT8 from these bins with the rest clipped in."""
    kept, level = counts[:end], np.arange(end) * (LEVELS + 1) // end
    occupied = kept > 0
    totals = np.bincount(level, weights=kept, minlength=LEVELS + 1)
    spread = np.bincount(level, weights=occupied, minlength=LEVELS + 1)
    quantized = np.where(occupied, (totals / np.maximum(spread, 1))[level], 0)
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    occurring = reference > 0
    if not quantized[occurring].all():
        return np.inf  # a value that occurs has no code
    p, q = reference[occurring] / reference.sum(), quantized[occurring] / quantized.sum()
    return float((p * np.log(p / q)).sum())


METHODS: dict[str, Callable[[MagnitudeHistogram], float]] = {
    "entropy": range_by_entropy,
    "max": attrgetter("largest"),  # nothing is clipped
    "mse": range_by_mse,
    "percentile": range_by_percentile,
}


def scale_of(histogram: MagnitudeHistogram, method: str) -> float:
    """Return the INT8 scale of an activation, rounded to float32; 1 for one that is always zero."""
    clipped_at = METHODS[method](histogram) if histogram.largest else float(LEVELS)
    return float(np.float32(max(clipped_at, 1e-12) / LEVELS))

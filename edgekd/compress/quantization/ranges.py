"""How far an activation reaches: histograms of magnitudes, and the range that loses least. Pure NumPy.

INT8 is symmetric here: codes -127..127, scale = range / 127.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BINS = 2048
LEVELS = 127
ENTROPY_BINS = 256
PERCENTILE = 99.99


class MagnitudeHistogram:
    """Counts of |x| in `BINS` equal bins from 0; the bins widen by two when a larger value comes.

    One pass over the data and constant memory: nothing is read twice to learn the range first.
    """

    def __init__(self, sample: int = 1 << 14) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.largest = 0.0
        self._sample = sample

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape: all of a small array, an even sample of a large one.

        The largest magnitude is always exact.
        """
        flat = values.ravel()
        self._reach(float(max(flat.max(initial=0), -flat.min(initial=0))))
        if self.width == 0:
            return
        # An odd stride does not fall into step with rows and channels of even length.
        step = max(flat.size // self._sample, 1) | 1
        bins = (np.abs(flat[::step]) * np.float32(1 / self.width)).astype(np.int32)
        self.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def _reach(self, largest: float) -> None:
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
        """The middle of each bin, float64 [BINS]."""
        return (np.arange(BINS) + 0.5) * self.width


def merged(histograms: list[MagnitudeHistogram]) -> MagnitudeHistogram:
    """One histogram of all values in several."""
    total = MagnitudeHistogram()
    total.width = max(histogram.width for histogram in histograms)
    total.largest = max(histogram.largest for histogram in histograms)
    for histogram in histograms:
        if histogram.width:
            at = np.minimum((histogram.centres / total.width).astype(np.int64), BINS - 1)
            total.counts += np.bincount(at, weights=histogram.counts, minlength=BINS).astype(np.int64)
    return total


def range_by_max(histogram: MagnitudeHistogram) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return histogram.largest


def range_by_mse(histogram: MagnitudeHistogram) -> float:
    """The range whose rounding and clipping together give the least mean squared error."""
    candidates = _candidates(histogram)
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    steps = (candidates / LEVELS)[:, None]
    rounded = np.minimum(np.rint(centres / steps), LEVELS) * steps
    errors = ((rounded - centres) ** 2 @ counts) + (np.minimum(steps, histogram.width) ** 2 / 12)[:, 0] * counts.sum()
    return float(candidates[errors.argmin()])


def range_by_percentile(histogram: MagnitudeHistogram) -> float:
    """The range that `PERCENTILE` percent of the values lie in."""
    below = np.cumsum(histogram.counts) / max(histogram.counts.sum(), 1)
    inside = float((np.searchsorted(below, PERCENTILE / 100) + 1) * histogram.width)
    return min(inside, histogram.largest)


def range_by_entropy(histogram: MagnitudeHistogram) -> float:
    """The range whose quantized distribution diverges least (Kullback-Leibler) from the clipped one.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, on `ENTROPY_BINS` bins up to the largest value and not
    on 2048: the finer the bins, the more the shape of the peak at zero counts against the reach, and SiLU networks
    were clipped to a quarter of it. ONNX Runtime's calibrator starts with 128 bins for both signs.
    """
    below = np.interp(
        histogram.largest * np.linspace(0, 1, ENTROPY_BINS + 1),
        np.arange(BINS + 1) * histogram.width,
        np.concatenate([[0], np.cumsum(histogram.counts)]),
    )
    below[-1] = histogram.counts.sum()
    counts = np.diff(below)
    counts[0] = counts[1]  # exact zeros say nothing about the range, and would decide everything
    ends = range(ENTROPY_BINS, LEVELS, -1)  # of two equally good ranges the wider one comes first
    best = ends[int(np.argmin([_divergence(counts, end) for end in ends]))]
    return float(histogram.largest * best / ENTROPY_BINS)


def _divergence(counts: np.ndarray, end: int) -> float:
    """KL divergence between the first `end` bins, with all beyond clipped into the last, and their INT8 version."""
    kept, level = counts[:end], np.arange(end) * (LEVELS + 1) // end
    occupied = kept > 0
    totals = np.bincount(level, weights=kept, minlength=LEVELS + 1)
    spread = np.bincount(level, weights=occupied, minlength=LEVELS + 1)
    quantized = np.where(occupied, (totals / np.maximum(spread, 1))[level], 0)
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    seen = reference > 0
    if not quantized[seen].all():
        return np.inf  # something that was seen could not be written
    p, q = reference[seen] / reference.sum(), quantized[seen] / quantized.sum()
    return float((p * np.log(p / q)).sum())


def _candidates(histogram: MagnitudeHistogram) -> np.ndarray:
    """Ranges worth trying, float64: from a twentieth of the largest magnitude up to it."""
    return histogram.largest * np.linspace(0.05, 1, 96)


METHODS: dict[str, Callable[[MagnitudeHistogram], float]] = {
    "entropy": range_by_entropy,
    "max": range_by_max,
    "mse": range_by_mse,
    "percentile": range_by_percentile,
}


def scale_of(histogram: MagnitudeHistogram, method: str) -> float:
    """The INT8 scale of an activation, as float32 will hold it; 1 for one that is always zero."""
    reach = METHODS[method](histogram) if histogram.largest else float(LEVELS)
    return float(np.float32(max(reach, 1e-12) / LEVELS))

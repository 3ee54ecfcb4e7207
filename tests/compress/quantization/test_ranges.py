"""Histograms lose nothing that matters, and ranges clip where it pays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekd.compress.quantization.ranges import (
    BINS,
    LEVELS,
    METHODS,
    PERCENTILE,
    MagnitudeHistogram,
    merged,
    range_by_entropy,
    range_by_mse,
    range_by_percentile,
    scale_of,
)

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32)
BATCHES = st.lists(arrays.arrays(np.float32, st.integers(1, 50), elements=FLOATS), min_size=1, max_size=5)
SILU = "silu"
SAMPLES = {
    "gaussian": lambda rng: rng.normal(size=1 << 16),
    "laplacian": lambda rng: rng.laplace(size=1 << 16),
    "half gaussian": lambda rng: np.maximum(rng.normal(size=1 << 16), 0),
    SILU: lambda rng: (x := rng.normal(size=1 << 16) * 3) / (1 + np.exp(-x)),
}


def histogram_of(*batches: np.ndarray, sample: int = 1 << 30) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram(sample)
    for batch in batches:
        histogram.add(batch)
    return histogram


def samples(kind: str) -> np.ndarray:
    return np.asarray(SAMPLES[kind](np.random.default_rng(0)), np.float32)


def fake_quantized(values: np.ndarray, reach: float) -> np.ndarray:
    step = reach / LEVELS
    return np.clip(np.rint(values / step), -LEVELS, LEVELS) * step


def mean_squared_error(values: np.ndarray, reach: float) -> float:
    return float(((fake_quantized(values.astype(np.float64), reach) - values) ** 2).mean())


@settings(deadline=None)
@given(BATCHES)
def test_the_largest_magnitude_is_exact_and_every_value_is_counted(batches: list[np.ndarray]) -> None:
    histogram = histogram_of(*batches)
    largest = max(float(np.abs(batch).max()) for batch in batches)
    assert histogram.largest == largest
    assert histogram.largest <= histogram.width * BINS
    first = next((index for index, batch in enumerate(batches) if np.any(batch)), len(batches))
    assert histogram.counts.sum() == sum(batch.size for batch in batches[first:])  # zeros alone have no width


@settings(deadline=None)
@given(BATCHES)
def test_every_value_lies_in_its_bin(batches: list[np.ndarray]) -> None:
    histogram = histogram_of(*batches)
    if not histogram.width:
        return
    first = next(index for index, batch in enumerate(batches) if np.any(batch))
    values = np.sort(np.abs(np.concatenate(batches[first:])).astype(np.float64))
    uppers = (np.arange(BINS) + 1) * histogram.width
    # Rounding may put a value on an edge into the bin beside it.
    least = np.searchsorted(values, uppers * (1 - 1e-5) - 1e-30, side="left")
    most = np.searchsorted(values, uppers * (1 + 1e-5) + 1e-30, side="right")
    below = np.cumsum(histogram.counts)
    assert (least <= below).all()
    assert (below <= most).all()


@settings(deadline=None)
@given(BATCHES)
def test_histograms_of_parts_merge_into_that_of_the_whole(batches: list[np.ndarray]) -> None:
    parts = [histogram_of(batch) for batch in batches]
    total = merged(parts)
    assert total.largest == max(part.largest for part in parts)
    assert total.counts.sum() == sum(part.counts.sum() for part in parts)
    assert total.width == max(part.width for part in parts)


def test_bins_widen_without_moving_what_was_counted() -> None:
    histogram = histogram_of(np.array([1.0, 0.5, 0.5], np.float32))
    width = histogram.width
    histogram.add(np.array([3.0], np.float32))
    assert histogram.width == 4 * width
    assert histogram.counts[int(0.5 / histogram.width)] == 2
    assert histogram.counts[int(3.0 / histogram.width)] == 1


def test_large_tensors_are_sampled_evenly_but_their_maximum_is_not_missed() -> None:
    values = np.tile(np.array([0.25, 0.5], np.float32), 50_000)
    values[12_345] = -7
    histogram = histogram_of(values, sample=1000)
    assert histogram.largest == 7
    assert 900 <= histogram.counts.sum() <= 1100
    low, high = (histogram.counts[int(value / histogram.width)] for value in (0.25, 0.5))
    assert abs(int(low) - int(high)) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        histogram_of(np.array([1, bad, 2], np.float32))


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_range_by_error_is_the_best_one_found_by_trying(kind: str) -> None:
    values = samples(kind)
    tried = np.abs(values).max() * np.linspace(0.05, 1, 200)
    least = min(mean_squared_error(values, reach) for reach in tried)
    found = range_by_mse(histogram_of(values))
    assert mean_squared_error(values, found) <= 1.03 * least


def test_a_gaussian_is_clipped_near_four_deviations_and_a_laplacian_much_farther_out() -> None:
    gaussian, laplacian = (range_by_mse(histogram_of(samples(kind))) for kind in ("gaussian", "laplacian"))
    assert 3.7 < gaussian < 4.3
    assert 6.5 < laplacian / np.sqrt(2) < 8.0  # a Laplacian of scale 1 deviates by the root of 2


@pytest.mark.parametrize("kind", SAMPLES)
def test_entropy_clips_tails_but_not_the_bulk(kind: str) -> None:
    values = samples(kind)
    found = range_by_entropy(histogram_of(values))
    assert 0.5 * np.abs(values).max() <= found <= np.abs(values).max()
    assert (np.abs(values) > found).mean() < 1e-2


def test_entropy_ignores_one_far_outlier_and_keeps_a_far_bulk() -> None:
    values = np.abs(samples("gaussian"))
    assert range_by_entropy(histogram_of(np.append(values, np.float32(7)))) < 5.5
    far = np.concatenate([values, np.random.default_rng(1).uniform(6, 7, values.size).astype(np.float32)])
    assert range_by_entropy(histogram_of(far)) > 6.9


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_percentile_leaves_out_what_it_says_and_reaches_at_most_one_bin_farther(kind: str) -> None:
    values = samples(kind)
    histogram = histogram_of(values)
    reach, outside = range_by_percentile(histogram), 1 - PERCENTILE / 100
    assert (np.abs(values) > reach).mean() <= outside < (np.abs(values) > reach - 1.01 * histogram.width).mean()


def test_the_percentile_clips_a_rare_outlier_but_not_a_frequent_one() -> None:
    values = np.abs(samples("gaussian"))
    rare, frequent = (np.append(values, np.full(count, 50, np.float32)) for count in (2, 60))
    assert 3.5 < range_by_percentile(histogram_of(rare)) < 5
    assert range_by_percentile(histogram_of(frequent)) == pytest.approx(50, rel=0.01)


def test_entropy_equals_the_published_procedure() -> None:
    """Written out bin by bin, after the slides of S. Migacz, GTC 2017, on 256 bins."""
    values = np.abs(samples(SILU))
    counts = np.histogram(values, 256, (0, values.max()))[0].astype(float)
    counts[0] = counts[1]
    divergences = {}
    for end in range(128, 257):
        reference = counts[:end].copy()
        reference[-1] += counts[end:].sum()
        candidate = np.zeros(end)
        for level in range(128):
            bins = [index for index in range(end) if index * 128 // end == level and counts[index] > 0]
            for index in bins:
                candidate[index] = sum(counts[bins]) / len(bins)
        p, q = reference / reference.sum(), candidate / candidate.sum()
        divergences[end] = sum(a * np.log(a / b) if b else np.inf for a, b in zip(p, q, strict=True) if a)
    best = min(divergences, key=lambda end: (divergences[end], -end))
    assert range_by_entropy(histogram_of(values)) == pytest.approx(values.max() * best / 256, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_scale_one(method: str) -> None:
    assert scale_of(histogram_of(np.zeros(10, np.float32)), method) == 1.0
    assert scale_of(MagnitudeHistogram(), method) == 1.0


@settings(max_examples=30, deadline=None)
@given(BATCHES, st.sampled_from(sorted(METHODS)))
def test_scales_are_positive_float32_and_reach_at_most_the_maximum(batches: list[np.ndarray], method: str) -> None:
    histogram = histogram_of(*batches)
    scale = scale_of(histogram, method)
    assert scale == np.float32(scale) > 0
    if histogram.largest > 1e-9:
        assert scale * LEVELS <= histogram.largest * (1 + 1e-5)


def test_by_max_nothing_is_clipped() -> None:
    assert METHODS["max"](histogram_of(np.array([0.5, -3.25], np.float32))) == 3.25

"""INT8 codes lose at most half a step, on weights of any shape and size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekd.core.formats.int8 import LEVELS, dequantize_channels, quantize_channels

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6)
TINY = np.finfo(np.float32).tiny
FLOATS = st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-1, 1, width=32) | st.sampled_from([0.0, 1e-45, 1e38])


@settings(deadline=None)
@given(arrays.arrays(np.float32, SHAPES, elements=FLOATS))
def test_the_error_is_at_most_half_a_step(weights: np.ndarray) -> None:
    codes, scales = quantize_channels(weights)
    assert (codes.shape, codes.dtype) == (weights.shape, np.int8)
    assert (scales.shape, scales.dtype) == ((len(weights),), np.float32)
    found = dequantize_channels(codes, scales)
    assert found.dtype == np.float32
    steps = scales.astype(np.float64).reshape(-1, *[1] * (weights.ndim - 1))
    assert (np.abs(found.astype(np.float64) - weights) <= steps * (0.5 + 1e-4)).all()


@settings(deadline=None)
@given(arrays.arrays(np.float32, SHAPES, elements=FLOATS))
def test_negated_weights_have_negated_codes(weights: np.ndarray) -> None:
    codes, scales = quantize_channels(weights)
    negated, same = quantize_channels(-weights)
    assert np.array_equal(negated, -codes)
    assert np.array_equal(same, scales)
    assert codes.min() >= -LEVELS


@settings(deadline=None)
@given(arrays.arrays(np.int8, SHAPES, elements=st.integers(-LEVELS, LEVELS)), st.floats(2.0**-100, 2.0**100, width=32))
def test_weights_on_the_grid_are_kept(codes: np.ndarray, scale: float) -> None:
    rows = codes.reshape(len(codes), -1)
    rows[:, 0] = LEVELS
    scales = np.full(len(codes), scale, np.float32)
    found, _ = quantize_channels(dequantize_channels(codes, scales))
    assert np.array_equal(found, codes)


def test_each_channel_has_its_own_scale_and_uses_all_codes() -> None:
    weights = np.array([[1, -2], [0.001, 0.0005], [0, 0], [3e38, -3e38]], np.float32)
    codes, scales = quantize_channels(weights)
    assert codes.tolist() == [[64, -127], [127, 64], [0, 0], [127, -127]]
    np.testing.assert_allclose(scales, [2 / 127, 0.001 / 127, TINY, 3e38 / 127], rtol=1e-6)


def test_a_channel_too_small_for_a_scale_becomes_zero() -> None:
    codes, scales = quantize_channels(np.full((1, 4), TINY / 4, np.float32))
    assert (codes == 0).all()
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        quantize_channels(np.array([[1, bad]], np.float32))

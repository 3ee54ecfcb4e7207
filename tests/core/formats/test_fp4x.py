"""fp4x: what is stored in 4 bits is exactly what INT8 computes with, and no other choice of multipliers is nearer."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekd.core.formats.fp4x import (
    BLOCK,
    LARGEST_SCALE,
    LEVELS,
    MAGNITUDES,
    MULTIPLIERS,
    SMALLEST_SCALE,
    pack,
    packed_bytes,
    quantize,
    representable,
    unpack,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "formats" / "fp4x.md"
E2M1 = np.array(MAGNITUDES)
CODES = {int(2 * e * m * sign) for e in E2M1 for m in range(1, MULTIPLIERS + 1) for sign in (1, -1)}
SIDES = st.sampled_from([0, 1, 2, 3, 15, 16, 17, 33])
SHAPES = st.one_of(
    st.tuples(SIDES),
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, st.sampled_from([0, 1, 2]), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    st.tuples(*[st.integers(0, 3)] * 5),
)
FLOATS = st.one_of(
    st.floats(-1, 1, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-40, 1.2e-38, 1e30, 3.4e38, -3.4e38]),
)
WEIGHTS = SHAPES.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=FLOATS))
SCALES = st.floats(float(SMALLEST_SCALE), float(LARGEST_SCALE), width=32)


@st.composite
def stored(draw: st.DrawFn) -> np.ndarray:
    """Codes of any shape that fp4x can hold."""
    shape = draw(SHAPES)
    channels, depth = shape[0], int(np.prod(shape[1:], dtype=int))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    blocks = -(-depth // BLOCK)
    multipliers = rng.integers(1, draw(st.integers(1, MULTIPLIERS)), (channels, blocks, 1), endpoint=True)
    halves = rng.choice(2 * E2M1[: draw(st.integers(1, 8))], (channels, blocks, BLOCK))
    codes = multipliers * halves * rng.choice([-1, 1], halves.shape)
    return codes.reshape(channels, blocks * BLOCK)[:, :depth].astype(np.int8).reshape(shape)


def values(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Float32 weights as an INT8 engine has them."""
    return codes.astype(np.float32) * scales.reshape(-1, *[1] * (codes.ndim - 1))


def fake_quantized(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The same from the definition, s * (m * e) in float32: m and e found by trying, block by block."""
    rows = codes.reshape(len(codes), -1) if codes.size else np.zeros((len(codes), 0), np.int8)
    out = np.zeros(rows.shape, np.float32)
    for channel, first in itertools.product(range(len(rows)), range(0, rows.shape[1], BLOCK)):
        block = rows[channel, first : first + BLOCK] / 2
        m = next(m for m in range(1, MULTIPLIERS + 1) if np.isin(np.abs(block) / m, E2M1).all())
        e = block / m
        out[channel, first : first + BLOCK] = np.float32(2 * scales[channel]) * np.float32(m * e)
    return out.reshape(codes.shape)


@settings(deadline=None)
@given(WEIGHTS)
def test_codes_times_scale_are_the_fake_quantized_weights_bit_for_bit(weights: np.ndarray) -> None:
    codes, scales = quantize(weights)
    assert (codes.shape, codes.dtype, scales.shape, scales.dtype) == (weights.shape, np.int8, weights.shape[:1], "f4")
    assert ((scales >= SMALLEST_SCALE) & (scales <= LARGEST_SCALE)).all()
    found = values(codes, scales)
    assert np.isfinite(found).all()
    assert np.array_equal(found.view(np.uint32), (fake_quantized(codes, scales) + np.float32(0)).view(np.uint32))
    assert np.array_equal(unpack(pack(codes), codes.shape), codes)


@settings(deadline=None)
@given(WEIGHTS)
def test_quantized_weights_with_their_own_scales_stay_as_they_are(weights: np.ndarray) -> None:
    codes, scales = quantize(weights)
    again, same = quantize(values(codes, scales), scales)
    assert np.array_equal(again, codes)
    assert np.array_equal(same, scales)


@settings(deadline=None)
@given(stored(), SCALES)
def test_any_stored_weights_with_their_scale_stay_as_they_are(codes: np.ndarray, scale: float) -> None:
    scales = np.full(len(codes), scale, np.float32)
    found, _ = quantize(values(codes, scales), scales)
    assert np.array_equal(found, codes)


@settings(deadline=None)
@given(stored())
def test_what_is_unpacked_is_what_was_packed(codes: np.ndarray) -> None:
    assert representable(codes)
    data = pack(codes)
    assert len(data) == sum(packed_bytes(codes.shape))
    assert np.array_equal(unpack(data, codes.shape), codes)
    assert pack(unpack(data, codes.shape)) == data


@settings(deadline=None)
@given(arrays.arrays(np.int8, st.tuples(SIDES, SIDES), elements=st.integers(-128, 127)))
def test_codes_that_do_not_fit_are_refused_and_all_others_are_not(codes: np.ndarray) -> None:
    rows = np.abs(codes.astype(int))
    blocks = [row[first : first + BLOCK] for row in rows for first in range(0, rows.shape[1], BLOCK)]
    fits = all(any(np.isin(block / m / 2, E2M1).all() for m in range(1, MULTIPLIERS + 1)) for block in blocks)
    assert representable(codes) == fits
    if not fits:
        with pytest.raises(ValueError, match="one m per block"):
            pack(codes)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_multiplier_gives_less_error(seed: int, weighed: bool) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(4, (3, 35)).astype(np.float32)
    importance = rng.uniform(0, 1, weights.shape).astype(np.float32) if weighed else None
    codes, scales = quantize(weights, importance=importance)
    counts = np.ones(weights.shape) if importance is None else importance
    wanted = np.abs(weights.astype(np.float64)) / scales[:, None]
    for channel, first in itertools.product(range(3), range(0, 35, BLOCK)):
        part = channel, slice(first, first + BLOCK)
        errors = []
        for m in range(1, MULTIPLIERS + 1):
            nearest = np.abs(wanted[part][:, None] - 2 * m * E2M1).min(axis=1)
            errors.append((counts[part] * nearest**2).sum())
        found = (counts[part] * (wanted[part] - np.abs(codes[part])) ** 2).sum()
        assert found <= min(errors) * (1 + 1e-4)


def test_the_scale_search_beats_the_scale_of_the_peak() -> None:
    weights = np.random.default_rng(0).normal(size=(64, 288)).astype(np.float32)

    def noise(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return ((values(codes, scales) - weights) ** 2).sum(axis=1)

    searched = noise(*quantize(weights))
    peak = noise(*quantize(weights, np.abs(weights).max(axis=1) / np.float32(LEVELS)))
    assert (searched < 1.05 * peak).all()  # scales are cut to 8 bits, so not <=
    assert searched.sum() < 0.98 * peak.sum()
    assert 10 * np.log10((weights**2).sum() / searched.sum()) > 21.4


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(32, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 4 == 0, 100, 1).astype(np.float32)
    heavy = importance > 1
    plain, weighed = ((values(*quantize(weights, importance=counts)) - weights) ** 2 for counts in (None, importance))
    assert weighed[:, heavy].sum() < 0.7 * plain[:, heavy].sum()
    assert np.array_equal(
        quantize(weights, importance=importance)[0],
        quantize(weights, importance=np.tile(importance * np.float32(1e30), (32, 1)))[0],
    )


def test_what_no_importance_is_given_to_is_stored_well_too() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    importance = np.where(np.arange(64) < 32, 1, 0).astype(np.float32)
    for counts in (importance, np.zeros(64, np.float32)):
        error = values(*quantize(weights, importance=counts)) - weights
        assert np.sqrt((error**2).mean()) < 0.15


def test_large_tensors_are_quantized_part_by_part_as_small_ones_are() -> None:
    weights = np.random.default_rng(0).normal(size=(300, 150)).astype(np.float32)
    importance = np.random.default_rng(1).uniform(0, 1, weights.shape).astype(np.float32)
    codes, scales = quantize(weights, importance=importance)
    for channel in (0, 217, 218, 299):
        alone = quantize(weights[[channel]], importance=importance[[channel]])
        assert np.array_equal(alone[0][0], codes[channel])
        assert alone[1][0] == scales[channel]
    assert np.array_equal(unpack(pack(codes), codes.shape), codes)


def test_channels_have_scales_of_their_own_whatever_their_size() -> None:
    weights = np.outer([1, 1e-40, 0, 1e30, 3e38, 1e-30], np.linspace(-1, 1, 20)).astype(np.float32)
    codes, scales = quantize(weights)
    assert (codes[[1, 2]] == 0).all()
    assert (scales[[1, 2]] == SMALLEST_SCALE).all()
    for channel in (0, 3, 4, 5):
        error = values(codes, scales)[channel].astype(np.float64) - weights[channel]
        assert np.abs(error).max() < 0.2 * np.abs(weights[channel].astype(np.float64)).max()


def test_the_largest_scale_is_the_last_whose_products_are_finite() -> None:
    largest = Fraction(float(np.finfo(np.float32).max))
    above = np.nextafter(LARGEST_SCALE, np.float32(np.inf))
    assert Fraction(float(LARGEST_SCALE)) * LEVELS <= largest < Fraction(float(above)) * LEVELS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_in_float32_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="weights are not finite"):
        quantize(np.array([[1, bad]]))
    with pytest.raises(ValueError, match="importances are not finite"):
        quantize(np.ones((1, 2)), importance=np.array([1, bad]))
    with pytest.raises(ValueError, match="scales are not finite"):
        quantize(np.ones((1, 2)), np.array([bad]))


@pytest.mark.parametrize(
    ("scales", "importance"),
    [
        (np.ones(3), None),
        (np.ones((2, 1)), None),
        (np.array([1, 0]), None),
        (np.array([1, 1e-39]), None),
        (np.array([1, 1e37]), None),
        (None, np.ones(2)),
        (None, np.ones((2, 1))),
        (None, np.array([1, 1, -1])),
    ],
)
def test_scales_and_importances_that_make_no_sense_are_refused(
    scales: np.ndarray | None, importance: np.ndarray | None
) -> None:
    with pytest.raises(ValueError, match="expected"):
        quantize(np.ones((2, 3), np.float32), scales, importance)


def test_a_scalar_and_other_types_are_refused() -> None:
    for wrong in (lambda: quantize(np.float32(1)), lambda: pack(np.zeros((), np.int8)), lambda: unpack(b"", ())):
        with pytest.raises(ValueError, match="found a scalar"):
            wrong()
    with pytest.raises(ValueError, match="int8"):
        pack(np.zeros((1, 1), np.int16))


@settings(deadline=None)
@given(stored(), st.data())
def test_malformed_bytes_are_refused(codes: np.ndarray, data: st.DataObject) -> None:
    packed = bytearray(pack(codes))
    for wrong in (packed + b"\0", packed[:-1] if packed else b"\0"):
        with pytest.raises(ValueError, match="bytes for shape"):
            unpack(bytes(wrong), codes.shape)
    if not packed:
        return
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(packed), codes.shape)
    except ValueError:
        return
    assert representable(found)  # a flipped bit is other weights or an error, never what fp4x cannot hold


@pytest.mark.parametrize(
    ("shape", "data", "why"),
    [
        ((1, 2), "8000", "negative zero"),
        ((1, 2), "0800", "negative zero"),
        ((1, 2), "000a", "multipliers"),
        ((1, 32), "00" * 16 + "f0", "multipliers"),
        ((1, 1), "1000", "unused half"),
        ((1, 2), "0010", "unused half"),
    ],
)
def test_bytes_that_nothing_packs_to_are_refused(shape: tuple[int, ...], data: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpack(bytes.fromhex(data), shape)


def test_the_page_and_the_program_agree() -> None:
    """Every test vector in the page: shape, codes, bytes."""
    rows = re.findall(
        r"^\| `\[([\d, ]+)\]` \| `([-\d ]*)` \| `([0-9a-f ]*)` \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) >= 5
    for sides, listed, data in rows:
        shape = tuple(int(side) for side in sides.split(","))
        codes = np.array([int(code) for code in listed.split()], np.int8).reshape(shape)
        assert pack(codes).hex() == data.replace(" ", "")
        assert np.array_equal(unpack(bytes.fromhex(data), shape), codes)

"""NVFP4 is what the formats it is made of say, nearest where it can be, and the same in ONNX bit for bit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekd.core.formats import nvfp4
from edgekd.core.formats.fp4x import pack_nibbles
from edgekd.core.formats.nvfp4 import BLOCK, ELEMENTS, SCALES, Nvfp4, quantize, unpack

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4).map(lambda blocks: BLOCK * blocks))
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
MATRICES = SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=FLOATS))


@st.composite
def stored(draw: st.DrawFn) -> Nvfp4:
    """Any tensor that the format can hold."""
    shape = draw(SHAPES)
    nibbles = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 15)))
    scales = draw(hnp.arrays(np.uint8, (shape[0], shape[1] // BLOCK), elements=st.integers(1, 126)))
    return Nvfp4(nibbles, scales, np.float32(draw(st.floats(2.0**-100, 2.0**100, width=32))))


def test_the_values_are_those_of_the_standards() -> None:
    """As ml_dtypes has them, which ONNX uses."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert np.array_equal(ELEMENTS, np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32))
    expected = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(SCALES, expected, equal_nan=True)
    assert SCALES[126] == 448
    assert SCALES[1] == 2.0**-9


@settings(deadline=None)
@given(hnp.arrays(np.float32, 40, elements=st.floats(-10, 10, width=32)))
def test_elements_are_rounded_to_the_nearest_and_ties_to_even(units: np.ndarray) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    units = np.concatenate([units, np.rint(4 * units) / 4]).astype(np.float32)
    expected = np.clip(units, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(ELEMENTS[nvfp4.nearest(units)], expected)


@settings(deadline=None)
@given(hnp.arrays(np.float32, 20, elements=st.floats(0, 2688, width=32)))
def test_scales_are_rounded_to_the_nearest_and_never_to_zero(peaks: np.ndarray) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    peaks = np.concatenate([peaks, 6 * (SCALES[1:126] + SCALES[2:127]) / 2, 4 * (SCALES[1:126] + SCALES[2:127]) / 2])
    for peak, found in zip(nvfp4.PEAKS, nvfp4.block_scales(peaks), strict=True):
        wanted = np.clip(peaks / np.float32(peak), 2.0**-9, 448).astype(np.float32)
        assert np.array_equal(SCALES[found], wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@settings(deadline=None)
@given(stored())
def test_bytes_give_back_what_they_were_made_of(tensor: Nvfp4) -> None:
    packed = pack_nibbles(tensor.nibbles)
    assert 8 * (len(packed) + tensor.scales.nbytes) == 4.5 * tensor.nibbles.size
    found = unpack(packed, tensor.scales.tobytes(), float(tensor.scale), tensor.nibbles.shape)  # type: ignore[arg-type]
    assert np.array_equal(found.nibbles, tensor.nibbles)
    assert np.array_equal(found.scales, tensor.scales)
    assert found.scale == tensor.scale
    assert np.array_equal(found.values, tensor.values)


@settings(deadline=None)
@given(MATRICES)
def test_no_element_could_be_nearer_and_no_block_has_a_better_scale(weights: np.ndarray) -> None:
    found = quantize(weights)
    blocks = weights.reshape(*found.scales.shape, BLOCK).astype(np.float64)

    def least(scales: np.ndarray) -> np.ndarray:
        values = ELEMENTS * (SCALES[scales] * found.scale)[..., None, None]
        best: np.ndarray = (np.abs(values - blocks[..., None]).min(axis=3) ** 2).sum(axis=2)
        return best

    error = ((found.values.reshape(blocks.shape) - blocks) ** 2).sum(axis=2)
    rounding = 1e-12 * (blocks**2).sum(axis=2) + 1e-70
    assert (error <= least(found.scales) + rounding).all()
    for other in nvfp4.block_scales(np.abs(blocks).max(axis=2).astype(np.float32) / found.scale):
        assert (error <= least(other) * (1 + 1e-6) + rounding).all()


@settings(deadline=None)
@given(stored())
def test_what_is_in_the_format_and_uses_its_range_stays_as_it_is(tensor: Nvfp4) -> None:
    """Blocks whose peak is 6, and a tensor whose largest scale is the one that quantizing would choose."""
    nibbles, scales = tensor.nibbles.copy(), np.minimum(tensor.scales, 120)
    nibbles[:, ::BLOCK] = 7
    scales[0, 0] = 120
    assert SCALES[120] == 256
    tensor = Nvfp4(nibbles, scales, np.float32(2.0 ** round(np.log2(tensor.scale))))
    found = quantize(tensor.values)
    assert found.scale == tensor.scale
    assert np.array_equal(found.values, tensor.values)


def test_four_over_six_gains_on_normal_weights() -> None:
    weights = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    found = quantize(weights)
    scale = found.scale
    blocks = weights.reshape(256, -1, BLOCK)
    sixes = SCALES[nvfp4.block_scales(np.abs(blocks).max(axis=2) / scale)[0]][..., None] * scale
    only_six = ELEMENTS[nvfp4.nearest(blocks / sixes)] * sixes

    def snr(values: np.ndarray) -> float:
        return float(-10 * np.log10(((values - weights) ** 2).mean() / (weights**2).mean()))

    assert snr(only_six.reshape(weights.shape)) == pytest.approx(20.6, abs=0.2)
    assert snr(found.values) == pytest.approx(21.3, abs=0.2)


def test_errors_that_count_more_are_smaller() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(64, 256)).astype(np.float32)
    counts = rng.choice([0.01, 100], 256)
    errors = [((quantize(weights, importance).values - weights) ** 2 * counts).sum() for importance in (None, counts)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 3e38])
def test_tiny_huge_and_no_weights(size: float) -> None:
    weights = np.full((2, 32), size, np.float32)
    weights[0, :16] = 0
    found = quantize(weights)
    assert not found.values[0, :16].any()
    assert np.isfinite(found.values).all()
    if size > 1e-37:
        assert found.values[1] == pytest.approx(weights[1], rel=0.1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    weights = np.ones((2, 16))
    weights[1, 3] = wrong
    with pytest.raises(ValueError, match="not finite"):
        quantize(weights)


@pytest.mark.parametrize("shape", [(16,), (2, 15), (2, 0), (2, 16, 1), (0, 16)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    assert not nvfp4.fits(shape)
    with pytest.raises(ValueError, match="multiple of 16"):
        quantize(np.ones(shape))


@pytest.mark.parametrize(
    ("nibbles", "scales", "scale", "words"),
    [
        (bytes(7), bytes([56]), 1.0, "8 bytes of nibbles"),
        (bytes(8), bytes([56, 56]), 1.0, "1 bytes of block scales"),
        (bytes(8), bytes([0]), 1.0, "positive, finite"),
        (bytes(8), bytes([127]), 1.0, "positive, finite"),
        (bytes(8), bytes([184]), 1.0, "positive, finite"),
        (bytes(8), bytes([56]), 0.0, "positive, finite"),
        (bytes(8), bytes([56]), float("nan"), "positive, finite"),
        (bytes(8), bytes([56]), float("inf"), "positive, finite"),
    ],
)
def test_damaged_bytes_are_refused(nibbles: bytes, scales: bytes, scale: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(nibbles, scales, scale, (1, 16))


def test_the_vectors_of_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "formats" / "nvfp4.md").read_text("utf-8")
    rows = re.findall(r"^\| `\[(.+?)\]` \| `(.+?)` \| `(.+?)` \| `(.+?)` \| `(.+?)` \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for shape, given_, nibbles, scales, scale in rows:
        sides = tuple(map(int, shape.split(", ")))
        weights = np.array(given_.split(), np.float32).reshape(sides)
        found = quantize(weights)
        assert pack_nibbles(found.nibbles).hex() == nibbles.replace(" ", "")
        assert found.scales.tobytes().hex() == scales
        assert float(found.scale).hex() == float.fromhex(scale).hex()
        assert len(sides) == 2
        assert np.array_equal(
            unpack(bytes.fromhex(nibbles), bytes.fromhex(scales), found.scale, sides).values, found.values
        )

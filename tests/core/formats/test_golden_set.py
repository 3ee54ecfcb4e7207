"""A golden set comes back from its file, or is refused with a ValueError."""

from __future__ import annotations

import json
import re
import struct
import tracemalloc
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.canonical import canonical_json
from edgekd.core.formats.golden_set import BITS, MAX_BYTES, GoldenSet, coarse, from_bytes, to_bytes

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "formats" / "golden-set.md"
PREFIX = struct.Struct("<8sII")
SIDES = st.integers(1, 9)


def golden_set(frames: int = 2, height: int = 3, width: int = 5, places: int = 4, features: int = 7) -> GoldenSet:
    rng = np.random.default_rng(0)
    return GoldenSet(
        precision="int8",
        tolerance=(0.01, 0.25),
        output=(1, features, 100),
        zoom=4,
        frames=coarse(rng.integers(0, 256, (frames, height, width, 3), np.uint8)),
        places=rng.integers(0, 100, (frames, places)).astype(np.uint32),
        values=rng.normal(size=(frames, places, features)).astype(np.float16),
    )


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = PREFIX.unpack_from(data)[2]
    at = PREFIX.size + length
    return json.loads(data[PREFIX.size : at]), data[at:]


def sealed(header: dict[str, Any], content: bytes) -> bytes:
    told = canonical_json(header)
    return PREFIX.pack(b"EDGEKDGS", 0, len(told)) + told + content


def assert_same(found: GoldenSet, wanted: GoldenSet) -> None:
    for name in ("frames", "places", "values"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    for name in ("precision", "tolerance", "output", "zoom"):
        assert getattr(found, name) == getattr(wanted, name), name


@settings(deadline=None, max_examples=30)
@given(SIDES, SIDES, SIDES, SIDES, SIDES)
def test_a_golden_set_comes_back(frames: int, height: int, width: int, places: int, features: int) -> None:
    golden = golden_set(frames, height, width, places, features)
    data = to_bytes(golden)
    assert_same(from_bytes(data), golden)
    assert to_bytes(from_bytes(data)) == data


def test_frames_grow_linearly_to_the_size_of_the_input() -> None:
    frames = np.zeros((1, 1, 2, 3), np.uint8)
    frames[0, 0, 1] = 80
    grown = replace(golden_set(), frames=frames, zoom=4).canvas(0, 4, 8)
    assert grown.shape == (4, 8, 3)
    assert grown[:, :, 0].tolist() == [[0, 0, 10, 30, 50, 70, 80, 80]] * 4
    assert replace(golden_set(), frames=frames, zoom=4).canvas(0, 3, 7).shape == (3, 7, 3), "what stands out is cut off"


def test_a_zoom_of_one_leaves_frames_as_they_are() -> None:
    golden = replace(golden_set(), zoom=1)
    assert np.array_equal(golden.canvas(1, 3, 5), golden.frames[1])


def test_coarse_frames_have_few_colours() -> None:
    assert len(np.unique(coarse(np.arange(256, dtype=np.uint8)))) == 1 << BITS


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: to_bytes(golden_set())[:-40] + tail))
def test_anything_else_is_refused_with_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        from_bytes(data)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(to_bytes(golden_set())) * 8 - 1))
def test_a_flipped_bit_gives_another_set_or_a_value_error(bit: int) -> None:
    data = bytearray(to_bytes(golden_set()))
    data[bit // 8] ^= 1 << bit % 8
    with suppress(ValueError):
        assert to_bytes(from_bytes(bytes(data))) is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": 0}, "counts"),
        ({"zoom": 1.5}, "counts"),
        ({"width": MAX_BYTES + 1}, "counts"),
        ({"width": MAX_BYTES}, "bytes of content"),
        ({"height": 2}, "found another number"),
        ({"precision": "int4"}, "expected a precision of float, int8"),
        ({"tolerance": [0.1]}, "two tolerances"),
        ({"tolerance": [0.1, -1.0]}, "two tolerances"),
        ({"output": 5}, "not as edgekd writes it"),
        ({"extra": 1}, "not as edgekd writes it"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(changed: dict[str, Any], message: str) -> None:
    header, content = header_of(to_bytes(golden_set()))
    with pytest.raises(ValueError, match=re.escape(message)):
        from_bytes(sealed({**header, **changed}, content))


def test_other_formats_and_other_files_are_named() -> None:
    data = to_bytes(golden_set())
    with pytest.raises(ValueError, match="expected format 0, found 1: update edgekd"):
        from_bytes(data[:8] + b"\1" + data[9:])
    with pytest.raises(ValueError, match="begins with EDGEKDGS"):
        from_bytes(b"PK" + data)


def test_numbers_that_are_not_finite_and_colours_of_more_bits_are_refused() -> None:
    golden = golden_set()
    with pytest.raises(ValueError, match="finite numbers"):
        from_bytes(to_bytes(replace(golden, values=np.full_like(golden.values, np.nan))))
    header, content = header_of(to_bytes(golden))
    raw = bytearray(zlib.decompress(content, -15))
    raw[0] = 64
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    with pytest.raises(ValueError, match="colours of 5 bits"):
        from_bytes(sealed(header, deflate.compress(bytes(raw)) + deflate.flush()))


def test_a_claimed_length_reserves_nothing() -> None:
    header, content = header_of(to_bytes(golden_set()))
    claimed = sealed({**header, "height": 1500, "width": 1500}, content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="found another number"):
        from_bytes(claimed)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_page_states_the_numbers_of_the_code() -> None:
    page = PAGE.read_text("utf-8")
    assert f"at most {MAX_BYTES >> 20} MiB" in page
    assert f"{BITS} bits" in page
    for name in header_of(to_bytes(golden_set()))[0]:
        assert f"`{name}`" in page

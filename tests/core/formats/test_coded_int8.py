"""Coded INT8: every tensor that is stored comes back, in parts of any size, and side information pays for itself."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.formats.coded_int8 import CLASSES, MAX_SIZE, MAX_SYMBOL, CodedInt8, Columns, decode, encode, side_bytes

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "formats" / "coded-int8.md"
RNG = np.random.default_rng(0)
SHAPES = st.sampled_from([(0, 4), (1, 40), (40, 1), (16, 10), (33, 17), (4, 2, 3, 3), (12, 5, 1, 1), (9, 1, 5, 5)])


def drawn(shape: tuple[int, ...], steps: int, size: float, seed: int) -> np.ndarray:
    """Codes with a step of at most `steps` for each input, of very different rows, inputs and taps."""
    rng = np.random.default_rng(seed)
    spread = [rng.choice([0.2, 1, 4], side).reshape(-1, *[1] * (len(shape) - 1 - at)) for at, side in enumerate(shape)]
    of_inputs = rng.integers(1, steps, shape[1], endpoint=True).reshape(-1, *[1] * (len(shape) - 2))
    values = rng.normal(size=shape) * size
    for each in spread:
        values *= each
    largest = np.minimum(MAX_SYMBOL, 127 // of_inputs)
    return np.asarray((np.clip(np.rint(values), -largest, largest) * of_inputs).astype(np.int8))


def reader(symbols: tuple[bytes, ...]) -> Callable[[int, int], bytes]:
    """Reads symbols class by class, as a packed graph does."""
    taken = [0] * CLASSES

    def read(index: int, count: int) -> bytes:
        part = symbols[index][taken[index] : taken[index] + count]
        taken[index] += count
        return part

    return read


def decoded(coded: CodedInt8, step: int) -> np.ndarray:
    """All rows, some at a time."""
    read = reader(coded.symbols)
    parts = [decode(coded.rows[first : first + step], coded.columns, read) for first in range(0, len(coded.rows), step)]
    return np.concatenate(parts)


@settings(deadline=None)
@given(SHAPES, st.integers(1, 12), st.sampled_from([0.0, 0.1, 3.0, 30.0]), st.integers(0, 99), st.integers(1, 50))
def test_codes_come_back_in_parts_of_any_size(
    shape: tuple[int, ...], steps: int, size: float, seed: int, rows: int
) -> None:
    codes = drawn(shape, steps, size, seed)
    coded = encode(codes)
    pays = side_bytes(shape[0], shape[1], int(np.prod(shape[2:], dtype=int))) * 4 <= codes.size
    assert (coded is not None) == pays
    if coded is not None:
        assert np.array_equal(decoded(coded, rows).reshape(shape), codes)
        assert sum(map(len, coded.symbols)) == codes.size


def test_the_step_of_an_input_is_the_largest_that_divides_its_codes() -> None:
    symbols = RNG.integers(-9, 10, (40, 5, 3, 3))
    steps = np.array([1, 2, 7, 12, 5])
    symbols[:, 4] = 0
    coded = encode((symbols * steps[:, None, None]).astype(np.int8))
    assert coded is not None
    assert coded.columns.steps.tolist() == [1, 2, 7, 12, 1]


@pytest.mark.parametrize(
    "codes",
    [
        RNG.integers(-127, 128, (64, 64)),  # symbols above 63
        np.full((64, 64), -128),  # divided by 8 it would be a symbol, but it is no code
        RNG.integers(-9, 10, (1, 640)),  # sizes and steps take more than a quarter
        RNG.integers(-9, 10, (8, 64)),
    ],
)
def test_what_would_not_pay_is_not_stored_so(codes: np.ndarray) -> None:
    assert encode(codes.astype(np.int8)) is None


def test_the_least_tensor_that_pays() -> None:
    assert side_bytes(16, 9, 1) * 4 <= 144
    assert encode(np.ones((16, 9), np.int8)) is not None
    assert encode(np.ones((16, 8), np.int8)) is None


@pytest.mark.parametrize("codes", [np.zeros((4, 4), np.int16), np.zeros(64, np.int8), np.zeros((), np.int8)])
def test_other_types_and_shapes_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="int8 of two dimensions"):
        encode(codes)


def test_classes_save_what_mixing_rows_and_columns_of_many_sizes_costs() -> None:
    """Symbols of three sizes a row and three a column: one code for all takes over half a bit more."""
    codes = drawn((256, 64, 3, 3), 1, 2.0, 0)
    coded = encode(codes)
    assert coded is not None
    together, apart = huffman_bits(codes.tobytes()), sum(map(huffman_bits, coded.symbols))
    assert (together - apart) / codes.size > 0.5
    assert sum(bool(symbols) for symbols in coded.symbols) > 5


def huffman_bits(content: bytes) -> int:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return 8 * len(deflate.compress(content) + deflate.flush())


COLUMNS = Columns(np.array([1, 2, 3], np.uint8), np.array([0, 1, -1], np.int8), np.array([0], np.int8))
ROWS = np.array([5, 6], np.int8)


def changed(**parts: list[int]) -> Columns:
    values = {"steps": COLUMNS.steps, "inputs": COLUMNS.inputs, "taps": COLUMNS.taps}
    return Columns(**{name: np.array(parts.get(name, value), value.dtype) for name, value in values.items()})


@pytest.mark.parametrize(
    ("rows", "columns", "symbol", "why"),
    [
        ([5, MAX_SIZE + 1], COLUMNS, 0, "sizes"),
        ([5, -128], COLUMNS, 0, "sizes"),
        ([5, 6], changed(inputs=[0, -MAX_SIZE - 1, 0]), 0, "sizes"),
        ([5, 6], changed(taps=[127]), 0, "sizes"),
        ([5, 6], changed(steps=[0, 1, 1]), 0, "steps"),
        ([5, 6], changed(steps=[1, 128, 1]), 0, "steps"),
        ([5, 6], COLUMNS, MAX_SYMBOL + 1, "symbols"),
        ([5, 6], COLUMNS, 128, "symbols"),
        ([5, 6], COLUMNS, 43, "symbols"),  # three times it is 129
        ([5, 6], COLUMNS, 256 - 43, "symbols"),
    ],
)
def test_values_out_of_range_are_refused(rows: list[int], columns: Columns, symbol: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(np.array(rows, np.int8), columns, lambda _, count: bytes([symbol] * count))


def test_values_at_the_ends_of_their_ranges_are_not() -> None:
    assert decode(ROWS, COLUMNS, lambda _, count: bytes([42] * count)).tolist() == [[42, 84, 126]] * 2
    edges = changed(steps=[1, 127, 2], inputs=[MAX_SIZE, -MAX_SIZE, MAX_SIZE], taps=[MAX_SIZE])
    read = reader((bytes([255]), *[b""] * (CLASSES - 2), bytes([63, 1, 63, 193, 193])))
    found = decode(np.array([MAX_SIZE, -MAX_SIZE], np.int8), edges, read)
    assert found.tolist() == [[63, 127, 126], [-63, -127, -126]]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_damage_gives_other_codes_or_an_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coded = encode(drawn((16, 4, 3, 3), 4, 3.0, 1))
    assert coded is not None
    columns = coded.columns
    parts = [bytearray(each.tobytes()) for each in (coded.rows, columns.steps, columns.inputs, columns.taps)]
    at = rng.integers(len(parts))
    parts[at][rng.integers(len(parts[at]))] ^= int(rng.integers(1, 256))
    rows, inputs, taps = (np.frombuffer(parts[index], np.int8) for index in (0, 2, 3))
    symbols = tuple(each + bytes(1000) for each in coded.symbols)  # a wrong size takes more symbols of a class
    try:
        found = decode(rows, Columns(np.frombuffer(parts[1], np.uint8), inputs, taps), reader(symbols))
    except ValueError:
        return
    assert found.min() >= -127


def test_the_page_and_the_program_agree() -> None:
    """Every test vector in the page: shape, codes, steps, sizes of rows, inputs and taps, symbols by class."""
    cells = r"\| `([^`]*)` " * 7
    rows = re.findall(rf"^{cells}\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) >= 3
    for shape, listed, *parts, symbols in rows:
        sides = [int(side) for side in shape.strip("[]").split(",")]
        codes = np.array([int(code) for code in listed.split()], np.int8).reshape(sides)
        steps, of_rows, inputs, taps = (np.array([int(each) for each in part.split()], np.int8) for part in parts)
        classes = {
            int(index): values.split() for index, _, values in (each.partition(":") for each in symbols.split(";"))
        }
        stored = tuple(np.array(classes.get(index, []), np.int8).tobytes() for index in range(CLASSES))
        columns = Columns(steps.view(np.uint8), inputs, taps)
        assert np.array_equal(decode(of_rows, columns, reader(stored)).reshape(sides), codes)
        coded = encode(codes)
        if coded is not None:
            assert coded.symbols == stored
            assert np.array_equal(coded.rows, of_rows)
            assert np.array_equal(coded.columns.inputs, inputs)

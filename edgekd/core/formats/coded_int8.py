"""Coded INT8: codes with coarse steps, as symbols that an entropy coder stores in few bits. Pure NumPy.

Codes [O, I, ...] are viewed as [O, I, T]: O outputs, I inputs, T taps. A code is `step[i] * symbol`, with one integer
step for each input. Symbols of about the same magnitude belong to one of 16 classes, and each class is coded by itself:
its symbols have one distribution, whichever row or column they come from. The bytes:
docs/reference/formats/coded-int8.md.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from edgekd.core.formats.int8 import LEVELS

CLASSES = 16
MAX_SYMBOL = 63
"""Largest magnitude of a symbol: codes that need more gain too little to be stored so."""
MAX_SIZE = 31
"""Largest magnitude of the size of a row, an input or a tap, so that the sum of three fits a byte."""
MAX_SIDE_SHARE = 4
"""Codes are stored so only where sizes and steps take at most a quarter of their bytes before entropy coding."""
_FIRST_CLASS = 5  # half octaves from the magnitude of class 0, 0.18, to 1


@dataclass(frozen=True, eq=False)
class Columns:
    """The values that all rows of a tensor share.

    steps: uint8 [I], from 1 to 127; inputs int8 [I] and taps int8 [T]: added to the class, in half octaves.
    """

    steps: np.ndarray
    inputs: np.ndarray
    taps: np.ndarray


@dataclass(frozen=True, eq=False)
class CodedInt8:
    """A tensor as symbols. rows: int8 [O], the class of each row before `columns`; symbols: int8 of each class."""

    rows: np.ndarray
    columns: Columns
    symbols: tuple[bytes, ...]


def side_bytes(rows: int, inputs: int, taps: int) -> int:
    """Return the bytes of sizes and steps of a tensor."""
    return rows + 2 * inputs + taps


def encode(codes: np.ndarray) -> CodedInt8 | None:
    """Return codes int8 [O, I, ...] as symbols; None where they cannot be stored so, or it would not pay.

    The step of an input is the largest that divides all of its codes.
    """
    rows, inputs, taps = _shape(codes)
    if side_bytes(rows, inputs, taps) * MAX_SIDE_SHARE > codes.size or (codes == -LEVELS - 1).any():
        return None
    cube = codes.reshape(rows, inputs, taps)
    steps = np.maximum(np.gcd.reduce(np.gcd.reduce(cube, axis=2), axis=0), 1)
    symbols = cube // steps[:, None]
    if np.abs(symbols).max(initial=0) > MAX_SYMBOL:
        return None
    row_sizes, columns = _sizes(symbols, steps)
    classes = _classes(row_sizes, columns)
    flat = symbols.reshape(classes.shape)
    return CodedInt8(row_sizes, columns, tuple(flat[classes == each].tobytes() for each in range(CLASSES)))


def decode(rows: np.ndarray, columns: Columns, read: Callable[[int, int], bytes]) -> np.ndarray:
    """Return the codes int8 [O, I * T] of consecutive rows, by their sizes int8 [O].

    read: returns the next symbols of a class, given its index and their number. Memory: a dozen bytes a code. Raises
    ValueError for sizes, steps or symbols out of range, and for codes beyond -127..127.
    """
    sizes = np.concatenate((rows, columns.inputs, columns.taps)).astype(np.int16)
    if np.abs(sizes).max(initial=0) > MAX_SIZE:
        raise ValueError(f"expected sizes of -{MAX_SIZE} to {MAX_SIZE}, found others")
    if ((columns.steps < 1) | (columns.steps > LEVELS)).any():
        raise ValueError(f"expected steps of 1 to {LEVELS}, found others")
    classes = _classes(rows, columns)
    symbols = np.empty(classes.shape, np.int8)
    for index, count in enumerate(np.bincount(classes.ravel(), minlength=CLASSES)):
        if count:
            symbols[classes == index] = np.frombuffer(read(index, int(count)), np.int8, count)
    largest = np.minimum(MAX_SYMBOL, LEVELS // columns.steps).astype(np.int8).repeat(len(columns.taps))
    if ((symbols > largest) | (symbols < -largest)).any():
        raise ValueError(f"expected codes of -{LEVELS} to {LEVELS} with symbols up to {MAX_SYMBOL}, found others")
    symbols *= columns.steps.astype(np.int8).repeat(len(columns.taps))
    return symbols


def _shape(codes: np.ndarray) -> tuple[int, int, int]:
    if codes.dtype != np.int8 or codes.ndim < 2:
        raise ValueError(f"expected codes int8 of two dimensions or more, found {codes.dtype} {list(codes.shape)}")
    return codes.shape[0], codes.shape[1], prod(codes.shape[2:])


def _sizes(symbols: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, Columns]:
    """Return the sizes of rows and columns of symbols int8 [O, I, T], by their mean magnitudes."""
    _, inputs, taps = symbols.shape
    magnitudes = np.abs(symbols)
    by_row = magnitudes.sum(axis=(1, 2), dtype=np.int64)
    by_input = magnitudes.sum(axis=(0, 2), dtype=np.int64)
    by_tap = magnitudes.sum(axis=(0, 1), dtype=np.int64)
    total = max(int(by_row.sum()), 1)
    of_rows = _half_octaves(by_row / (inputs * taps)) + _FIRST_CLASS
    columns = Columns(
        steps.astype(np.uint8),
        _limited(_half_octaves(by_input * inputs / total)),
        _limited(_half_octaves(by_tap * taps / total)),
    )
    return _limited(of_rows), columns


def _half_octaves(ratios: np.ndarray) -> np.ndarray:
    """Return 2 * log2 of ratios float64, rounded, by operations that round alike on every processor."""
    squares = ratios * ratios
    _, exponents = np.frexp(2 * squares * squares)
    return np.where(ratios > 0, (exponents - 1) // 2, -MAX_SIZE)


def _limited(sizes: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(sizes, -MAX_SIZE, MAX_SIZE).astype(np.int8))


def _classes(rows: np.ndarray, columns: Columns) -> np.ndarray:
    """Return the class of each code, uint8 [O, I * T], by sizes of at most MAX_SIZE."""
    of_columns = (columns.inputs[:, None] + columns.taps).ravel()
    classes: np.ndarray = np.clip(rows[:, None] + of_columns, 0, CLASSES - 1).view(np.uint8)
    return classes

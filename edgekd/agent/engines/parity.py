"""Relative errors of an engine's output by the golden set. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.agent.engines.records import PartErrors
from edgekd.core.detection.decode import candidate_rows
from edgekd.core.detection.parity import RelativeError, has_places, nearest, parts
from edgekd.core.detection.types import Head
from edgekd.core.formats.golden_set import GoldenSet

_EPSILON = 1e-12
_NOT_FINITE = 1e9  # in place of infinity and NaN: an error above every tolerance


@dataclass(frozen=True)
class WorstValue:
    """The number with the largest error.

    Args:
        frame: Index of the golden frame.
        part: Part of the output: `boxes` or `scores`.
        candidate: Index of the candidate in the output.
        column: Index of the number in the candidate: four of the box, then the others.
        expected: The golden value.
        found: The engine's value.
        error: Their difference by the norm of all golden values of the part.
    """

    frame: int
    part: str
    candidate: int
    column: int
    expected: float
    found: float
    error: float


def output_error(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> PartErrors:
    """Return the relative errors of the output for a golden frame: norm of the differences by that of the values.

    Boxes are weighted by their expected scores; scores are of all classes.

    Raises ValueError where it has another shape, or the golden set does not fit the head.
    """
    expected, found = _compared(output, golden, index, head)
    errors = {}
    for name, (columns, weights) in parts(expected, head).items():
        error = RelativeError()
        error.add(found[:, columns], expected[:, columns], weights)
        errors[name] = error.value()
    return PartErrors(**errors)


def worst_value(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> WorstValue:
    """Return the number of an output with the largest error. Raises ValueError as `output_error` does."""
    expected, found = _compared(output, golden, index, head)
    worst = []
    for name, (columns, weights) in parts(expected, head).items():
        size = max(float(np.linalg.norm(expected[:, columns] * weights)), _EPSILON)
        errors = np.abs(found[:, columns] - expected[:, columns]) * weights / size
        row, offset = divmod(int(errors.argmax()), errors.shape[1])
        column, candidate = int(np.arange(expected.shape[1])[columns][offset]), int(golden.places[index][row])
        values = float(expected[row, column]), float(found[row, column])
        worst.append(WorstValue(index, name, candidate, column, *values, float(errors.max())))
    return max(worst, key=lambda each: each.error)


def _compared(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Return the golden rows of a frame, and the rows of `output` to compare with them."""
    if output.shape != golden.output:
        raise ValueError(f"expected an output of shape {list(golden.output)}, found {list(output.shape)}")
    rows = np.where(np.isfinite(output), output, _NOT_FINITE).astype(np.float64)
    rows, places = candidate_rows(rows, head), golden.places[index].astype(np.int64)
    expected = golden.values[index].astype(np.float64)
    if places.max() >= len(rows) or expected.shape[1] != rows.shape[1]:
        raise ValueError("expected a golden set of this network, found one of another")
    return expected, rows[places] if has_places(head) else nearest(rows, expected, head)

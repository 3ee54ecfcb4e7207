"""The error of an engine's output against the golden set, and where it is largest. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.core.detection.types import Head
from edgekd.core.formats.golden_set import GoldenSet
from edgekd.detectors.parity import RelativeError, candidates, nearest, parts

_EPSILON = 1e-12
_WRONG = 1e9  # in place of what is not finite: an error that no tolerance allows


@dataclass(frozen=True)
class Drift:
    """Relative errors of one frame.

    boxes: each box counts as much as its expected score; scores: of all classes.
    """

    boxes: float
    scores: float


@dataclass(frozen=True)
class Departure:
    """Where an output departs most from the golden values.

    part: `boxes` or `scores`; candidate: its place in the output; column: of its numbers; error: relative as in Drift.
    """

    part: str
    candidate: int
    column: int
    expected: float
    found: float
    error: float


def drift(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> Drift:
    """Return the relative errors of `output`, of golden frame `index`.

    Raises ValueError where it has another shape, or the golden set does not fit the head.
    """
    expected, found = _compared(output, golden, index, head)
    errors = {}
    for name, (columns, weights) in parts(expected, head).items():
        error = RelativeError()
        error.add(found[:, columns], expected[:, columns], weights)
        errors[name] = error.value()
    return Drift(**errors)


def worst(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> Departure:
    """Return the number of an output that departs most from its golden value. Raises ValueError as `drift` does."""
    expected, found = _compared(output, golden, index, head)
    departures = []
    for name, (columns, weights) in parts(expected, head).items():
        size = max(float(np.linalg.norm(expected[:, columns] * weights)), _EPSILON)
        errors = np.abs(found[:, columns] - expected[:, columns]) * weights / size
        row, offset = divmod(int(errors.argmax()), errors.shape[1])
        column = columns.start + offset
        values = float(expected[row, column]), float(found[row, column])
        departures.append(Departure(name, int(golden.places[index][row]), column, *values, float(errors.max())))
    return max(departures, key=lambda departure: departure.error)


def _compared(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Return the golden rows of a frame, and those of `output` to compare with them."""
    if output.shape != golden.output:
        raise ValueError(f"expected an output of shape {list(golden.output)}, found {list(output.shape)}")
    rows = np.where(np.isfinite(output), output, _WRONG).astype(np.float64)
    rows, places = candidates(rows, head), golden.places[index].astype(np.int64)
    expected = golden.values[index].astype(np.float64)
    if places.max() >= len(rows) or expected.shape[1] != rows.shape[1]:
        raise ValueError("expected a golden set of this network, found one of another")
    return expected, nearest(rows, expected) if head.kind == "end2end" else rows[places]


def filled(golden: GoldenSet, index: int | None, head: Head) -> np.ndarray:
    """Return an output float32 that has the golden values of a frame at their places, or none, and zeros elsewhere."""
    output = np.zeros(golden.output, np.float32)
    if index is not None:
        candidates(output, head)[golden.places[index]] = golden.values[index]
    return output

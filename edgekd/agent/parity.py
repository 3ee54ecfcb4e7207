"""How far an engine's output is from what the golden set says, and how far it may be. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.core.detection.types import Head
from edgekd.core.formats.golden_set import GoldenSet

_EPSILON = 1e-12
_WRONG = 1e9  # in place of what is not finite: an error that no tolerance allows


@dataclass(frozen=True)
class Drift:
    """Relative errors of one frame: root of the squared differences by that of the expected values.

    boxes: each box counts as much as its expected score; scores: of all classes.
    """

    boxes: float
    scores: float


def candidates(output: np.ndarray, head: Head) -> np.ndarray:
    """The output of a head as rows [n, f], one for each candidate: a box of four numbers, then the rest."""
    rows: np.ndarray = output[0].T if head.kind == "yolo" else output[0]
    return rows


def confidence(rows: np.ndarray, head: Head) -> np.ndarray:
    """How sure each candidate of [n, f] is, 0 to 1: [n]."""
    if head.kind == "end2end":
        sure: np.ndarray = rows[:, 4]
        return sure
    best: np.ndarray = rows[:, 4:].max(axis=1) if head.kind == "yolo" else rows[:, 4] * rows[:, 5:].max(axis=1)
    return best


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
    """How far `output`, for one of the golden frames, is from the golden values.

    Raises ValueError where it has another shape, or the golden set does not fit the head.
    """
    expected, found = _compared(output, golden, index, head)
    return Drift(
        **{name: _relative(found[:, at], expected[:, at], by) for name, (at, by) in parts(expected, head).items()}
    )


def worst(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> Departure:
    """The one number of an output that departs most from its golden value. Raises ValueError as `drift` does."""
    expected, found = _compared(output, golden, index, head)
    departures = []
    for name, (columns, by) in parts(expected, head).items():
        size = max(float(np.linalg.norm(expected[:, columns] * by)), _EPSILON)
        errors = np.abs(found[:, columns] - expected[:, columns]) * by / size
        row, column = divmod(int(errors.argmax()), errors.shape[1])
        at = columns.start + column
        told = (int(golden.places[index][row]), at, float(expected[row, at]), float(found[row, at]))
        departures.append(Departure(name, *told, float(errors.max())))
    return max(departures, key=lambda each: each.error)


def _compared(output: np.ndarray, golden: GoldenSet, index: int, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """The golden rows of a frame, and those of `output` to hold against them."""
    if output.shape != golden.output:
        raise ValueError(f"expected an output of shape {list(golden.output)}, found {list(output.shape)}")
    rows = np.where(np.isfinite(output), output, _WRONG).astype(np.float64)
    rows, places = candidates(rows, head), golden.places[index].astype(np.int64)
    expected = golden.values[index].astype(np.float64)
    if places.max() >= len(rows) or expected.shape[1] != rows.shape[1]:
        raise ValueError("expected a golden set of this network, found one of another")
    return expected, nearest(rows, expected) if head.kind == "end2end" else rows[places]


def parts(expected: np.ndarray, head: Head) -> dict[str, tuple[slice, np.ndarray]]:
    """The columns of boxes and of scores, and how much each row of them counts."""
    weights = np.clip(confidence(expected, head), 0, 1)[:, None]
    scores = slice(4, 5) if head.kind == "end2end" else slice(4, None)
    return {"boxes": (slice(0, 4), np.sqrt(weights)), "scores": (scores, np.ones(1))}


def filled(golden: GoldenSet, index: int | None, head: Head) -> np.ndarray:
    """An output float32 that has the golden values of a frame at their places, or none, and zeros elsewhere."""
    output = np.zeros(golden.output, np.float32)
    if index is not None:
        candidates(output, head)[golden.places[index]] = golden.values[index]
    return output


def _relative(found: np.ndarray, expected: np.ndarray, weights: np.ndarray) -> float:
    error, size = (float(np.linalg.norm(each * weights)) for each in (found - expected, expected))
    return error / max(size, _EPSILON)


def nearest(rows: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """For each expected row of an end-to-end head the found one of its class that overlaps it most, or zeros.

    Such rows come in the order of their scores, in which a small difference makes two of them trade places.
    """
    found = np.zeros_like(expected)
    for at, wanted in enumerate(expected):
        overlaps = np.where(rows[:, 5] == wanted[5], _overlap(rows[:, :4], wanted[:4]), 0)
        best = int(overlaps.argmax())
        if overlaps[best] > 0:
            found[at] = rows[best]
    return found


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and one box, x1, y1, x2, y2."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.clip(sides, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    shares: np.ndarray = common / np.maximum(areas - common, _EPSILON)
    return shares

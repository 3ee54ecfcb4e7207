"""How far two outputs are apart is told by what matters of them."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.core.detection.types import Head
from edgekd.deploy.converters.parity import (
    FLOAT16_LIMITS,
    FLOAT32_LIMITS,
    INT8_FACTOR,
    MIN_INT8_LIMITS,
    Distance,
    distance,
    limits,
)

YOLO, END = Head("yolo"), Head("end2end", nms=False)
RNG = np.random.default_rng(0)


def output() -> np.ndarray:
    """A dense head of 40 candidates and two classes; a quarter are sure."""
    rows = np.concatenate([RNG.uniform(0, 64, (4, 40)), RNG.uniform(0, 0.1, (2, 40))])
    rows[4, ::4] = 0.9
    return rows[None].astype(np.float32)


def test_the_same_output_is_no_distance_away() -> None:
    assert distance([output()], [output()], YOLO).boxes > 0.1
    same = output()
    assert distance([same], [same.copy()], YOLO) == Distance(0, 0, 0, 0)


def test_a_box_counts_as_much_as_it_is_sure() -> None:
    base = output()
    sure, unsure = base.copy(), base.copy()
    sure[0, 0, 0] += 5
    unsure[0, 0, 1] += 5
    assert distance([sure], [base], YOLO).boxes > 3 * distance([unsure], [base], YOLO).boxes > 0
    assert distance([sure], [base], YOLO).largest_box == pytest.approx(5)
    assert distance([unsure], [base], YOLO).largest_box == 0
    assert distance([sure], [base], YOLO).scores == 0


def test_where_nothing_is_found_small_scores_are_not_blown_up() -> None:
    nothing = np.zeros((1, 6, 40), np.float32)
    nothing[0, :4], nothing[0, 4:] = 32, 1e-9
    other = nothing.copy()
    other[0, 4:] = 3e-9
    found = distance([other], [nothing], YOLO)
    assert found.scores < 1e-3
    assert found.largest_box is None


def test_rows_of_an_end_to_end_head_may_trade_places() -> None:
    rows = np.array([[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.8, 0]], np.float32)[None]
    assert distance([rows[:, ::-1]], [rows], END) == Distance(0, 0, 0, 0)
    other = rows.copy()
    other[0, 0, 5] = 0
    assert not distance([other], [rows], END).within(MIN_INT8_LIMITS)


def test_what_is_not_finite_or_has_another_shape_is_far_away() -> None:
    base = output()
    broken = base.copy()
    broken[0, 4, 0] = np.nan
    assert not distance([broken], [base], YOLO).within((1.0, 1.0))
    assert not distance([base[:, :, :20]], [base], YOLO).within((1e9, 1e9))


def test_limits_follow_what_is_rounded() -> None:
    assert limits(None, narrow=False) == FLOAT32_LIMITS
    assert limits(None, narrow=True) == FLOAT16_LIMITS
    assert limits(Distance(0, 0, 0, None), narrow=False) == MIN_INT8_LIMITS
    assert limits(Distance(0.1, 0.2, 0, None), narrow=True) == (INT8_FACTOR * 0.1, INT8_FACTOR * 0.2)

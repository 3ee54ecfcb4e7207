"""Rows of outputs, matched with those they are compared with."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.core.detection.parity import has_places, nearest
from edgekd.core.detection.types import NO_GRID, Head

QUERIES = Head("yolo", nms=False, strides=NO_GRID)


@pytest.mark.parametrize(
    ("head", "places"),
    [(Head("yolo"), True), (Head("yolo", nms=False), True), (QUERIES, False), (Head("end2end"), False)],
)
def test_candidates_of_a_grid_alone_have_places(head: Head, places: bool) -> None:
    assert has_places(head) == places


def test_queries_in_another_order_are_the_same() -> None:
    rng = np.random.default_rng(0)
    expected = np.concatenate([rng.uniform(0, 640, (30, 4)), rng.uniform(0, 1, (30, 5))], axis=1)
    noisy = expected * (1 + 1e-3 * rng.normal(size=expected.shape))
    order = rng.permutation(30)
    np.testing.assert_array_equal(nearest(noisy[order], expected, QUERIES), noisy)

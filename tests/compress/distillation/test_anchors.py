"""Which of another detector's anchors is nearest: the same one where both have the same grid."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.distillation.anchors import Grid, nearest_anchors, nearest_levels  # noqa: E402

FINE = Grid(((8, 12), (4, 6)), (8, 16))
COARSE = Grid(((4, 6), (2, 3), (1, 2)), (16, 32, 64))


def test_anchors_are_in_the_middle_of_their_cells() -> None:
    points, strides = FINE.points()
    assert points[:, 0].tolist() == [4, 4]
    assert points[:, 13].tolist() == [12, 12]
    assert points[:, 96].tolist() == [8, 8]
    assert strides.tolist() == [8] * 96 + [16] * 24


def test_the_same_grid_is_its_own_nearest() -> None:
    assert nearest_anchors(FINE, FINE).tolist() == list(range(120))


def test_an_anchor_finds_the_cell_that_it_lies_in() -> None:
    index = nearest_anchors(FINE, COARSE)
    assert nearest_levels(FINE.strides, COARSE.strides) == (0, 0)
    points, _ = FINE.points()
    others, strides = COARSE.points()
    assert ((points - others[:, index]).abs() <= strides[index] / 2).all()
    back = nearest_anchors(COARSE, FINE)
    assert back.max() < 120
    assert nearest_levels(COARSE.strides, FINE.strides) == (1, 1, 1)

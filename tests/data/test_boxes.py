"""Overlaps of boxes."""

from __future__ import annotations

import numpy as np

from edgekd.data.boxes import areas, overlaps

BOX, FAR = (10, 10, 50, 50), (60, 60, 90, 90)


def test_overlap_and_covered_share() -> None:
    shared, covered = overlaps(np.array([BOX]), np.array([BOX, FAR, (10, 10, 50, 30)]))
    assert shared.tolist() == [[1.0, 0.0, 0.5]]
    assert covered.tolist() == [[1.0, 0.0, 0.5]]
    shared, covered = overlaps(np.array([(10, 10, 50, 30)]), np.array([BOX]))
    assert (shared.tolist(), covered.tolist()) == ([[0.5]], [[1.0]])


def test_boxes_without_an_area_overlap_nothing() -> None:
    assert overlaps(np.zeros((0, 4)), np.array([BOX]))[0].shape == (0, 1)
    assert [each.tolist() for each in overlaps(np.array([[5, 5, 5, 5]]), np.array([[5, 5, 5, 5]]))] == [[[0.0]]] * 2
    assert areas(np.array([BOX, (5, 5, 5, 9)])).tolist() == [1600.0, 0.0]

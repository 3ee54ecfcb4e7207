"""A teacher's detections become labels where it is right often enough, and are ignored where that is open."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.detection.types import Detections
from edgekd.core.errors import SpecError
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import LABELLING, ClassThresholds, find_thresholds, mixed_order, pseudo_truth

SIDE = 100
PLACES = [(10.0 * at, 0.0, 10.0 * at + 8, 8.0) for at in range(10)]


def detections(*rows: tuple[int, float, int]) -> Detections:
    """Detections (class, score, place), best first."""
    rows = tuple(sorted(rows, key=lambda row: -row[1]))
    boxes = np.array([PLACES[place] for _, _, place in rows], np.float32).reshape(-1, 4)
    scores, classes = np.array([row[1] for row in rows], np.float32), np.array([row[0] for row in rows], np.int64)
    return Detections(boxes, scores, classes)


def objects(*rows: tuple[int, int], crowd: tuple[tuple[int, int], ...] = ()) -> tuple[Truth, int, int]:
    """Objects (class, place) and crowds, in an image of 100 x 100 pixels."""
    every = (*rows, *crowd)
    boxes = np.array([PLACES[place] for _, place in every], np.float32).reshape(-1, 4) / SIDE
    classes = np.array([row[0] for row in every], np.int64)
    return Truth(boxes, classes, np.arange(len(every)) >= len(rows)), SIDE, SIDE


def thresholds_of(
    found: Detections, truth: tuple[Truth, int, int], keep: float = 0.9, ignore: float = 0.5
) -> ClassThresholds:
    return find_thresholds([found], [truth], 2, keep, ignore)


def test_thresholds_are_the_lowest_scores_at_which_enough_is_right() -> None:
    found = detections((0, 0.9, 0), (0, 0.8, 1), (0, 0.7, 5), (0, 0.6, 2), (0, 0.5, 6), (0, 0.4, 7), (0, 0.3, 8))
    thresholds = thresholds_of(found, objects((0, 0), (0, 1), (0, 2)), keep=0.9, ignore=0.5)
    assert thresholds.keep[0] == pytest.approx(0.8)  # of three, two are right
    assert thresholds.ignore[0] == pytest.approx(0.4)  # of six, three are right


def test_each_class_has_its_own() -> None:
    found = detections((0, 0.9, 0), (0, 0.8, 5), (1, 0.3, 1))
    thresholds = thresholds_of(found, objects((0, 0), (1, 1)))
    assert thresholds.keep == pytest.approx((0.9, 0.3))


def test_the_wrong_class_is_wrong() -> None:
    assert thresholds_of(detections((0, 0.9, 0)), objects((1, 0))).keep[0] == math.inf


def test_an_object_is_found_once() -> None:
    thresholds = thresholds_of(detections((0, 0.9, 0), (0, 0.8, 0)), objects((0, 0)))
    assert thresholds.keep[0] == pytest.approx(0.9)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong() -> None:
    found = detections((0, 0.9, 1), (0, 0.8, 0), (0, 0.7, 1))
    assert thresholds_of(found, objects((0, 0), crowd=((0, 1),)), keep=1).keep[0] == pytest.approx(0.8)
    assert thresholds_of(found, objects((0, 0)), keep=1).keep[0] == math.inf


def test_a_class_that_is_never_sure_enough_is_never_background() -> None:
    thresholds = thresholds_of(detections((0, 0.9, 0), (1, 0.9, 1)), objects((1, 1)))
    assert thresholds.keep[0] == math.inf
    assert thresholds.ignore[0] == LABELLING.confidence
    truth = pseudo_truth(detections((0, 0.99, 0), (0, 0.06, 1)), thresholds, SIDE, SIDE)
    assert truth.crowd.tolist() == [True, True]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=30), st.floats(0.1, 1), st.floats(0.1, 1))
def test_kept_detections_are_right_as_often_as_was_asked(rows: list[tuple[int, bool]], a: float, b: float) -> None:
    """Each row is an image with one detection, right or not; scores have ties."""
    keep, ignore = max(a, b), min(a, b)
    found = [detections((0, 0.1 + score / 25, 0)) for score, _ in rows]
    truths = [objects((0, 0 if right else 5)) for _, right in rows]
    thresholds = find_thresholds(found, truths, 1, keep, ignore)
    assert thresholds.ignore[0] <= thresholds.keep[0]
    scores = np.array([float(each.scores[0]) for each in found])
    right = np.array([each for _, each in rows], bool)
    kept = scores >= thresholds.keep[0]
    assert not kept.any() or right[kept].mean() >= keep - 1e-9
    for lower in scores[scores < thresholds.keep[0]]:
        assert right[scores >= lower].mean() < keep


def test_scores_lower_than_any_that_was_judged_are_not_background() -> None:
    thresholds = thresholds_of(detections((0, 0.9, 0), (0, 0.6, 1)), objects((0, 0), (0, 1)))
    assert thresholds.keep[0] == pytest.approx(0.6)
    assert thresholds.ignore[0] == LABELLING.confidence


def test_bands_become_labels_ignored_boxes_and_background() -> None:
    found = detections((0, 0.9, 0), (0, 0.5, 1), (0, 0.2, 2), (1, 0.5, 3))
    truth = pseudo_truth(found, ClassThresholds(keep=(0.8, 0.4), ignore=(0.4, 0.3)), 200, 100)
    assert truth.classes.tolist() == [0, 0, 1]
    assert truth.crowd.tolist() == [False, True, False]
    assert truth.boxes.dtype == np.float32
    assert truth.boxes[0] == pytest.approx([0, 0, 8 / 200, 8 / 100])


def test_a_frame_with_nothing_has_no_labels() -> None:
    truth = pseudo_truth(detections(), ClassThresholds((0.5,), (0.1,)), SIDE, SIDE)
    assert truth.boxes.shape == (0, 4)


@pytest.mark.parametrize(("keep", "ignore"), [(0.5, 0.9), (1.1, 0.5), (0.5, 0)])
def test_shares_that_make_no_bands_are_refused(keep: float, ignore: float) -> None:
    with pytest.raises(SpecError, match="ignore <= keep"):
        thresholds_of(detections(), objects((0, 0)), keep, ignore)


sizes = {"labelled": st.integers(1, 40), "unlabelled": st.integers(1, 40), "batch": st.integers(2, 16)}


@given(**sizes, share=st.floats(0.05, 0.95), seed=st.integers(0, 99), epoch=st.integers(0, 50))
def test_every_batch_has_its_share(
    labelled: int, unlabelled: int, batch: int, share: float, seed: int, epoch: int
) -> None:
    count = round(share * batch)
    ours, theirs = np.arange(labelled)[::-1], labelled + np.arange(unlabelled)
    if not 0 < count < batch:
        with pytest.raises(SpecError, match="a batch needs both"):
            mixed_order(ours, theirs, batch, share, seed, epoch)
        return
    batches = mixed_order(ours, theirs, batch, share, seed, epoch)
    assert batches.shape[1] == batch
    assert ((batches >= labelled).sum(axis=1) == count).all()
    seen = batches[batches < labelled]
    assert seen[:labelled].tolist() == ours.tolist()
    assert len(seen) - labelled < batch - count  # no more than fills the last batch
    assert np.array_equal(batches, mixed_order(ours, theirs, batch, share, seed, epoch))


@given(**sizes, seed=st.integers(0, 99), epochs=st.integers(1, 6))
def test_unlabelled_frames_take_turns_over_epochs(
    labelled: int, unlabelled: int, batch: int, seed: int, epochs: int
) -> None:
    theirs = labelled + np.arange(unlabelled)
    every = [mixed_order(np.arange(labelled), theirs, batch, 0.5, seed, epoch) for epoch in range(epochs)]
    times = np.bincount(np.concatenate(every).ravel(), minlength=labelled + unlabelled)[labelled:]
    assert times.max() - times.min() <= 1


def test_seeds_give_other_frames() -> None:
    orders = {tuple(mixed_order(np.arange(9), np.arange(9, 99), 4, 0.5, seed, 0).ravel()) for seed in range(5)}
    assert len(orders) == 5


def test_mixing_needs_frames_of_both_kinds() -> None:
    none = np.zeros(0, np.int64)
    for labelled, unlabelled in ((none, np.arange(3)), (np.arange(3), none)):
        with pytest.raises(SpecError, match="frames of both kinds"):
            mixed_order(labelled, unlabelled, 4, 0.5, 0, 0)

"""Identities of objects in scenes where they are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from edgekd.agent.cameras.tracking import LOW, MAX_LOST_S, NO_TRACK, Tracker, tracking_thresholds
from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.core.detection.types import Detections

SIZE = np.array([60.0, 90.0])
CONFIDENT = 0.5


def detections(centres: np.ndarray, scores: Sequence[float], classes: Sequence[int] | None = None) -> Detections:
    """Boxes of SIZE around centres [n, 2]."""
    boxes = np.concatenate([centres - SIZE / 2, centres + SIZE / 2], axis=1).astype(np.float32)
    return Detections(boxes, np.array(scores, np.float32), np.array(classes or [0] * len(centres), np.int64))


def step(tracker: Tracker, found: Detections, now_s: float) -> np.ndarray:
    """Identities of all detections in a frame that are reported."""
    reported, identities = tracker.update(found, found.scores > CONFIDENT, now_s)
    assert len(reported) == len(identities)
    return identities


def walk(
    fps: float, seconds: float, speeds: np.ndarray, starts: np.ndarray, noise: float
) -> list[tuple[float, np.ndarray]]:
    """Times and noisy centres [n, 2] of objects that move straight ahead, with every fifth frame dropped."""
    rng = np.random.default_rng(0)
    times = [number / fps for number in range(int(fps * seconds)) if number % 5]
    return [(time, starts + time * speeds + rng.normal(0, noise, starts.shape)) for time in times]


def test_an_object_has_an_identity_from_its_second_detection_on() -> None:
    tracker = Tracker()
    there = detections(np.array([[100.0, 100.0]]), [0.9])
    found = [step(tracker, there, number / 15).tolist() for number in range(3)]
    assert found == [[NO_TRACK], [0], [0]]


def test_two_rows_of_people_who_pass_each_other_keep_their_identities() -> None:
    """Eight from either side, with places that are uncertain by 2 pixels and frames that were dropped."""
    lanes = np.arange(8) * 60.0 + 100
    starts = np.array([(0.0, lane) for lane in lanes] + [(900.0, lane + 30) for lane in lanes])
    speeds = np.array([(180.0, 0.0)] * 8 + [(-180.0, 0.0)] * 8)
    tracker, held = Tracker(), None
    for time, centres in walk(15, 5, speeds, starts, noise=2.0):
        order = np.random.default_rng(int(1000 * time)).permutation(16)
        found = step(tracker, detections(centres[order], [0.9] * 16), time)
        now = np.empty(16, np.int64)
        now[order] = found
        if held is not None:
            assert now.tolist() == held.tolist(), time
        held = now if (now != NO_TRACK).all() else None
    assert held is not None
    assert sorted(held) == list(range(16))


def test_a_hidden_object_is_followed_by_its_low_scores_and_across_a_gap() -> None:
    tracker, reported = Tracker(), []
    for time, centres in walk(15, 4, np.array([[120.0, 0.0]]), np.array([[50.0, 200.0]]), noise=1.0):
        if 1.5 < time < 1.5 + 0.8 * MAX_LOST_S:
            found = detections(np.empty((0, 2)), [])  # behind a car
        else:
            found = detections(centres, [0.3 if 0.5 < time < 1.2 else 0.9])
        reported.append(step(tracker, found, time).tolist())
    identities = {identity for frame in reported[1:] for identity in frame}
    assert identities == {0}
    assert sum(map(len, reported)) >= 36, "less confident detections are reported, too"


def test_low_scores_begin_no_track_and_are_not_reported() -> None:
    tracker = Tracker()
    found = [step(tracker, detections(np.array([[100.0, 100.0]]), [0.3]), number / 15) for number in range(5)]
    assert [len(each) for each in found] == [0] * 5


def test_an_object_that_was_gone_for_long_is_another_one() -> None:
    tracker, there = Tracker(), detections(np.array([[100.0, 100.0]]), [0.9])
    times = (0.0, 0.1, 0.2 + MAX_LOST_S, 0.3 + MAX_LOST_S)
    found = []
    for time in times:
        if time == times[2]:
            step(tracker, detections(np.empty((0, 2)), []), time - 0.05)
        found.append(step(tracker, there, time).tolist())
    assert found == [[NO_TRACK], [0], [NO_TRACK], [1]]


def test_classes_are_tracked_apart() -> None:
    tracker, same = Tracker(), np.array([[100.0, 100.0]])
    for number in range(3):
        step(tracker, detections(same, [0.9], [0]), number / 15)
    assert step(tracker, detections(same, [0.9], [1]), 0.2).tolist() == [NO_TRACK]


def test_noise_uses_no_identities_and_ends() -> None:
    tracker, rng = Tracker(), np.random.default_rng(0)
    for number in range(20):
        found = step(tracker, detections(rng.uniform(0, 1e5, (300, 2)), rng.uniform(0.2, 1, 300).tolist()), number / 15)
    assert (found == NO_TRACK).mean() > 0.99
    step(tracker, detections(np.empty((0, 2)), []), 60.0)
    assert step(tracker, detections(np.array([[5.0, 5.0]]), [0.9]), 61.0).tolist() == [NO_TRACK]
    assert len(tracker._identities) == 1


@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.0, 1e9, 2e9)])
def test_strange_times_and_boxes_do_no_harm(times: tuple[float, ...]) -> None:
    tracker = Tracker()
    empty = Detections(np.array([[9, 9, 9, 9]], np.float32), np.array([0.9], np.float32), np.zeros(1, np.int64))
    for time, boxes in itertools.product(times, (empty, detections(np.array([[1e30, -1e30]]), [0.9]))):
        step(tracker, boxes, time)
    assert np.isfinite(tracker._place).all()


def test_thresholds_for_tracking_are_a_share_of_the_bundles() -> None:
    limits = tracking_thresholds(DetectionThresholds((0.5, 0.25), 0.7, 100))
    assert limits == DetectionThresholds((0.5 * LOW, 0.25 * LOW), 0.7, 100)

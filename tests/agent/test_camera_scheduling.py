"""Rules of the service of cameras: turns, drops, pace, delays, percentiles."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.agent.cameras.board import FrameBoard
from edgekd.agent.cameras.scheduling import FIRST_DELAY_S, LONGEST_DELAY_S, Backoff, FairQueue, Pacer
from edgekd.agent.cameras.statistics import LatencyHistogram


def test_cameras_take_turns_whatever_one_of_them_delivers() -> None:
    frames: FairQueue[str] = FairQueue(3, depth=2)
    taken = []
    for number in range(6):
        for each in range(10):
            frames.put(0, f"flood {number} {each}")
        frames.put(1, f"b {number}")
        if number % 2 == 0:
            frames.put(2, f"c {number}")
        taken += [frames.take(), frames.take()]
    assert [str(each)[0] for each in taken] == list("fbcfbcfbcfbf")
    assert taken[0] == "flood 0 8", "the two newest wait, the older of them goes first"


def test_a_full_queue_gives_up_the_oldest_frame_of_that_camera_alone() -> None:
    frames: FairQueue[int] = FairQueue(2, depth=2)
    assert [frames.put(0, number) for number in range(4)] == [None, None, 0, 1]
    assert frames.put(1, 9) is None
    assert [frames.take() for _ in range(4)] == [2, 9, 3, None]


def test_frames_for_one_run_are_taken_in_turns_and_no_more_than_wait() -> None:
    board, frame = FrameBoard(3, depth=2), np.zeros((4, 4, 3), np.uint8)
    for camera in (0, 0, 0, 2, 2, 1):
        assert board.put(camera, frame, wait=False)
    first, second, third = (board.take(lambda count=count: count) for count in (1, 3, 9))  # type: ignore[misc]
    assert [each and each[0] for each in (first, second, third)] == [0, 1, 2]
    taken = [[(each.camera, each.number) for each in frames] for _, frames in (first, second, third)]  # type: ignore[misc]
    assert taken == [[(0, 1)], [(1, 0), (2, 0), (0, 2)], [(2, 1)]]
    assert board.counts(0)[0].dropped == 1


def test_a_pace_neither_drifts_nor_bursts() -> None:
    pacer, now, due = Pacer(10), 100.0, []
    for late in (0.0, 0.03, 0.0, 0.09, 0.0, 1.0, 0.0, 0.0):
        now += pacer.delay_s(now) + late
        due.append(now - 100)
    np.testing.assert_allclose(due, [0.0, 0.13, 0.2, 0.39, 0.4, 1.5, 1.5, 1.6], atol=1e-9)


def test_delays_double_up_to_a_bound_and_begin_anew_after_a_camera_has_worked() -> None:
    backoff = Backoff()
    delays = [backoff.delay_s(0.0) for _ in range(9)]
    assert delays[:4] == [FIRST_DELAY_S * 2**step for step in range(4)]
    assert delays[-1] == LONGEST_DELAY_S
    assert backoff.delay_s(LONGEST_DELAY_S - 1) == LONGEST_DELAY_S, "it failed again as soon as before"
    assert [backoff.delay_s(LONGEST_DELAY_S + 1), backoff.delay_s(0.0)] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S]


@pytest.mark.parametrize("scale", [0.1, 30.0, 5000.0])
def test_percentiles_of_a_histogram_are_those_of_the_samples(scale: float) -> None:
    samples = np.random.default_rng(0).lognormal(0, 0.5, 5000) * scale
    histogram = LatencyHistogram()
    assert histogram.summary() is None
    for sample in samples:
        histogram.add(float(sample))
    found = histogram.summary()
    assert found
    exact = np.sort(samples)[[2499, 4749, 4949]]
    ratios = np.array([found.p50, found.p95, found.p99]) / exact
    assert (ratios >= 1 - 1e-9).all()
    assert (ratios <= 1.01 + 1e-9).all()
    assert found.max == samples.max()


@pytest.mark.parametrize("ms", [0.0, 1e9])
def test_a_latency_outside_of_the_histogram_counts(ms: float) -> None:
    histogram = LatencyHistogram()
    histogram.add(ms)
    found = histogram.summary()
    assert found
    assert found.p50 <= found.max == ms

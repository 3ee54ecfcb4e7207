"""Streams run at once, each with its own session, and end together, also when one of them fails."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgekd.core.benchmark import FramePipeline
from edgekd.evaluation.throughput import WARMUP, between, run_streams


class Waits:
    """A session that takes 5 ms without holding Python's lock, and knows which threads ran it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.runs = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        threading.Event().wait(0.005)
        self.threads.add(threading.get_ident())
        self.runs += 1
        return batch


def stream(session: Waits, seen: list[int] | None = None) -> FramePipeline:
    return FramePipeline(
        session,
        lambda frame: (np.array([frame]), None),
        lambda output, context: None if seen is None else seen.append(int(output[0])),
        lambda item: item + 100,
    )


def test_each_stream_has_its_thread_its_session_and_begins_with_another_frame() -> None:
    sessions, seen = [Waits(), Waits()], ([], [])
    lanes = [stream(session, each) for session, each in zip(sessions, seen, strict=True)]
    done_s = run_streams(lanes, [0, 1, 2], 0.3)
    assert len(sessions[0].threads) == len(sessions[1].threads) == 1
    assert sessions[0].threads != sessions[1].threads
    assert seen[0][:4] == [100, 101, 102, 100]
    assert seen[1][:4] == [101, 102, 100, 101]
    assert list(done_s) == sorted(done_s)
    assert 0 < len(done_s) <= sum(session.runs for session in sessions) - 2 * WARMUP
    assert done_s[-1] <= 0.3
    assert between(done_s).sum() == pytest.approx(1000 * done_s[-1])


def test_a_stream_that_fails_ends_all_and_says_why() -> None:
    class Fails(Waits):
        def run(self, batch: np.ndarray) -> np.ndarray:
            if self.runs == self.last:
                raise ValueError("out of memory")
            return super().run(batch)

    before = set(threading.enumerate())  # those of other tests in this process may still run
    for last in (0, WARMUP + 5):  # before all have begun, and later
        failing = Fails()
        failing.last = last
        with pytest.raises(ValueError, match="out of memory"):
            run_streams([stream(Waits()), stream(failing)], [0], 30.0)
    assert set(threading.enumerate()) <= before

"""Throughput: several streams of frames at once, each in its thread with its own session, from frame to detections.

While one stream decodes frames, prepares them or decodes boxes, another one infers: OpenCV, NumPy and the runtimes let
go of Python's lock while they work.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgekd.core.benchmark import Candidate

WARMUP = 3


def run_streams(
    candidates: Sequence[Candidate],
    items: Sequence[Any],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """When frames were done, float64 [n] seconds from the start, ascending, in a run of about `seconds`.

    One candidate for each stream; stream k begins with item k. Raises what a candidate raises.
    """
    lanes = [_Stream(candidate, items, at) for at, candidate in enumerate(candidates)]
    begin, end = threading.Barrier(len(lanes) + 1), threading.Event()
    threads = [threading.Thread(target=lane.run, args=(begin, end, clock), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    started = 0.0
    try:
        begin.wait()
        started = clock()
        end.wait(seconds)
    except threading.BrokenBarrierError:
        pass
    finally:
        end.set()
        begin.abort()
        for thread in threads:
            thread.join()
    for lane in lanes:
        if lane.failed:
            raise lane.failed
    done = np.sort(np.concatenate([np.array(lane.done) for lane in lanes])) - started
    return done[done <= seconds]


def between(done_s: np.ndarray) -> np.ndarray:
    """Milliseconds from one frame done to the next, whichever stream did it: 1000 by their mean is the throughput."""
    return np.diff(done_s, prepend=0.0) * 1000


class _Stream:
    """One stream: its frames, when they were done, and what ended it too early."""

    def __init__(self, candidate: Candidate, items: Sequence[Any], first: int) -> None:
        self.done: list[float] = []
        self.failed: BaseException | None = None
        self._candidate, self._items = candidate, itertools.islice(itertools.cycle(items), first, None)

    def run(self, begin: threading.Barrier, end: threading.Event, clock: Callable[[], float]) -> None:
        try:
            for _ in range(WARMUP):
                self._one()
            begin.wait()
            while not end.is_set():
                self._one()
                self.done.append(clock())
        except threading.BrokenBarrierError:
            pass  # another stream failed, and says why
        except BaseException as error:
            self.failed = error
            begin.abort()
            end.set()

    def _one(self) -> None:
        self._candidate.process(next(self._items))

"""Throughput: several streams of frames at once, each in its thread with its own session, from frame to detections.

While one stream decodes frames, prepares them or decodes boxes, another one infers: OpenCV, NumPy and the runtimes
release the GIL.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekd.core.benchmark import Candidate

WARMUP = 3  # frames of each stream before the start


def run_streams(candidates: Sequence[Candidate], items: Sequence[Any], seconds: float) -> np.ndarray:
    """Run streams for about `seconds`; return the sorted times when frames were done, float64 [n] seconds.

    One candidate for each stream; stream k begins with item k. Raises what a candidate raises.
    """
    lanes = [_Stream(candidate, items, index) for index, candidate in enumerate(candidates)]
    begin, end = threading.Barrier(len(lanes) + 1), threading.Event()
    threads = [threading.Thread(target=lane.run, args=(begin, end), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    started = 0.0
    try:
        begin.wait()
        started = time.perf_counter()
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
    """Return the milliseconds between frames of all streams: 1000 by their mean is the throughput."""
    return np.diff(done_s, prepend=0.0) * 1000


class _Stream:
    """One stream: its frames, the times when they were done, and the error that ended it."""

    def __init__(self, candidate: Candidate, items: Sequence[Any], first: int) -> None:
        self.done: list[float] = []
        self.failed: BaseException | None = None
        self._candidate, self._items = candidate, itertools.islice(itertools.cycle(items), first, None)

    def run(self, begin: threading.Barrier, end: threading.Event) -> None:
        try:
            for _ in range(WARMUP):
                self._candidate.process(next(self._items))
            begin.wait()
            while not end.is_set():
                self._candidate.process(next(self._items))
                self.done.append(time.perf_counter())
        except threading.BrokenBarrierError:
            pass  # another stream failed, and keeps the error
        except BaseException as error:
            self.failed = error
            begin.abort()
            end.set()

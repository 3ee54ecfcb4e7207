"""Throughput: several streams of frames at once, each in its thread with its own session, from frame to detections.

While one stream decodes frames, prepares them or decodes boxes, another one infers: OpenCV, NumPy and the runtimes
release the GIL.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgekd.core.benchmark import FramePipeline

WARMUP = 3  # frames of each stream before the start


def run_streams(candidates: Sequence[FramePipeline], items: Sequence[Any], seconds: float) -> np.ndarray:
    """Run streams for about `seconds`; return the sorted times when frames were done, float64 [n] seconds.

    One candidate for each stream; stream k begins with item k. Raises the exception of a candidate that fails.
    """
    begin, end = threading.Barrier(len(candidates) + 1), threading.Event()

    def run(candidate: FramePipeline, first: int) -> list[float]:
        """Run one stream; return the clock's times when its frames were done."""
        done: list[float] = []
        frames = itertools.islice(itertools.cycle(items), first, None)
        try:
            for frame in itertools.islice(frames, WARMUP):
                candidate.process(frame)
            begin.wait()
            while not end.is_set():
                candidate.process(next(frames))
                done.append(time.perf_counter())
        except threading.BrokenBarrierError:
            pass  # another stream failed, and raises the error
        except BaseException:
            begin.abort()
            end.set()
            raise
        return done

    started = 0.0
    with ThreadPoolExecutor(len(candidates)) as pool:
        streams = [pool.submit(run, candidate, index) for index, candidate in enumerate(candidates)]
        try:
            begin.wait()
            started = time.perf_counter()
            end.wait(seconds)
        except threading.BrokenBarrierError:
            pass
        finally:
            end.set()
            begin.abort()
    done_s = np.sort(np.concatenate([stream.result() for stream in streams])) - started
    return done_s[done_s <= seconds]


def between(done_s: np.ndarray) -> np.ndarray:
    """Return the milliseconds between consecutive frames of all streams; FPS are 1000 divided by their mean."""
    return np.diff(done_s, prepend=0.0) * 1000

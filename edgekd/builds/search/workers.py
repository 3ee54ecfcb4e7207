"""Trials on this machine, in this process or in worker processes, and the time that they take."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

from edgekd.builds.search.loop import TrialRequest
from edgekd.builds.search.pareto import Point
from edgekd.builds.search.trials import Task, run_trial
from edgekd.core.progress import Progress

T = TypeVar("T")
RunTrials = Callable[[Sequence[TrialRequest]], list[Point]]
EVERY_S = 30.0
"""Seconds between two notes about the progress of a trial."""
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


@contextmanager
def local_trials(
    task: Callable[[TrialRequest], Task], out: Path, workers: int, progress: Progress
) -> Iterator[RunTrials]:
    """Yield a function that runs trials: in this process, or in workers that end with it. out: result folder."""
    if workers == 1:
        patient = SlowStepProgress(progress)
        yield lambda wanted: [run_trial(task(each), out, patient) for each in wanted]
        return
    context = get_context("spawn")
    start, others = partial(_end_with, os.getpid(), workers), active_children()
    with ProcessPoolExecutor(workers, context, initializer=start, initargs=(context.Value("i", 0),)) as pool:
        try:
            yield lambda wanted: list(pool.map(run_trial, map(task, wanted), [out] * len(wanted)))
        except BaseException:  # also Ctrl-C does not wait for trials, whose finished stages are in the store
            for worker in active_children():
                if worker not in others:
                    worker.kill()
            raise


def _end_with(parent: int, workers: int, started: Any) -> None:
    """Initialize a worker: it is killed when its parent ends, and runs on its share of the cores."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    with started.get_lock():
        own, started.value = started.value, started.value + 1
    cores = sorted(os.sched_getaffinity(0))
    if share := cores[own::workers]:
        os.sched_setaffinity(0, share)
        os.environ["OMP_NUM_THREADS"] = str(len(share))


class SlowStepProgress:
    """Progress of many trials that reports only long steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def items(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items; report every EVERY_S seconds how many are done."""
        reported_at = time.monotonic()
        for done, item in enumerate(iterable, start=1):
            yield item
            if time.monotonic() - reported_at >= EVERY_S:
                reported_at = time.monotonic()
                self._progress.note(f"search, {label}: {done}{f' of {total}' if total else ''}")

    def note(self, text: str) -> None:
        """Report nothing: each trial has dozens of stages."""


class Clock:
    """Time spent on the trials of a search, divided by the workers that share them.

    Trials in the store count with the time that they took, so a repeated search ends after the same trials.
    """

    def __init__(self, limit_s: float | None, workers: int) -> None:
        self.spent_s = 0.0
        self._limit_s, self._workers = limit_s, workers

    def timed(self, run_trials: RunTrials) -> RunTrials:
        """Wrap a trial runner so that the time of its trials is counted."""

        def timed(wanted: Sequence[TrialRequest]) -> list[Point]:
            points = run_trials(wanted)
            self.spent_s += sum(point.seconds for point in points) / min(self._workers, max(len(points), 1))
            return points

        return timed

    def left_s(self) -> float:
        """Return the seconds left of the limit; infinity without one."""
        return float("inf") if self._limit_s is None else self._limit_s - self.spent_s

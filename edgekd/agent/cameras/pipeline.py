"""Preprocessing, engine and postprocessing of captured frames, as stages that overlap.

Each stage has threads of its own, so that the engine finds its next input ready: NumPy, OpenCV and the runtimes release
the interpreter lock while they work. Copies from and to a GPU overlap with its work where `streams` is more than one:
each stream is a thread with a session, and with it a CUDA stream and pinned buffers, of its own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Callable, Protocol  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import numpy as np

from edgekd.agent.cameras.statistics import StageSeconds

if TYPE_CHECKING:
    from edgekd.agent.cameras.board import CapturedFrame, FrameBoard
    from edgekd.agent.serving import Model
    from edgekd.core.detection.preprocess import Placement


class ModelProvider(Protocol):
    """Gives the model to use, as `Served` does; opened, used and closed by one thread."""

    @property
    def model(self) -> Model:
        """The model to use for the next frame. Raises DeviceError, HashError."""
        ...

    def close(self) -> None:
        """Release the model."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """A frame on its way. ticket: its place in the order of frames; model: whose input `batch` is, and `output`."""

    ticket: int
    captured: CapturedFrame
    model: Model
    batch: np.ndarray
    placement: Placement
    output: np.ndarray | None = None


class Pipeline:
    """The stages between a board and `finish`, which gets each job with its output, in the order of tickets.

    open_model: called in the thread of each stream. fail: gets an error of a stage, whose frame counts as dropped.
    """

    def __init__(
        self,
        board: FrameBoard,
        open_model: Callable[[], ModelProvider],
        finish: Callable[[Job], None],
        fail: Callable[[BaseException], None],
        *,
        streams: int,
        preprocess_threads: int,
    ) -> None:
        self._board, self._open_model, self._finish, self._fail = board, open_model, finish, fail
        self._model: Model | None = None
        # An input for each stream is prepared while it works on another one: more would only become old.
        self._room = threading.Semaphore(max(streams, preprocess_threads))
        self._prepared: queue.Queue[Job | None] = queue.Queue()
        self._outputs: queue.Queue[Job | None] = queue.Queue(2 * streams)
        self._opened: list[Future[Model]] = [Future() for _ in range(streams)]
        self._engines = [_thread(self._run_engine, opened) for opened in self._opened]
        self._others = [*(_thread(self._preprocess) for _ in range(preprocess_threads)), _thread(self._postprocess)]
        self._watch = _Stopwatch()

    @property
    def model(self) -> Model | None:
        """The model of the last frame."""
        return self._model

    @property
    def seconds(self) -> StageSeconds:
        """Seconds of the stages until now."""
        return StageSeconds(**self._watch.seconds)

    def start(self) -> None:
        """Open the model, and begin. Raises what opening or running it raises."""
        for thread in self._engines:
            thread.start()
        try:
            for opened in self._opened:
                self._model = opened.result()
        except BaseException:
            self._end_engines()
            raise
        for thread in self._others:
            thread.start()

    def end(self) -> None:
        """Finish the frames on their way, once the board is closed, and release the model."""
        *preprocessing, postprocessing = self._others
        for thread in preprocessing:
            thread.join()
        self._end_engines()
        self._outputs.put(None)
        postprocessing.join()

    def _end_engines(self) -> None:
        for _ in self._engines:
            self._prepared.put(None)
        for thread in self._engines:
            thread.join()

    def _preprocess(self) -> None:
        while True:
            self._room.acquire()
            taken = self._board.take()
            if taken is None:
                self._room.release()  # to another thread of this stage, which has to end, too
                return
            ticket, captured = taken
            with self._giving_up(captured), self._watch.measures("preprocess_s"):
                assert self._model is not None
                self._prepared.put(_job(ticket, captured, self._model))
                continue
            self._room.release()  # the frame was given up

    def _run_engine(self, opened: Future[Model]) -> None:
        try:
            provider = self._open_model()
            with closing(provider):
                model = provider.model
                size = (model.spec.preprocess.height, model.spec.preprocess.width, 3)
                model.session.run(model.prepare(np.zeros(size, np.uint8))[0])  # warm-up
                opened.set_result(model)
                self._run_jobs(provider)
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    def _run_jobs(self, provider: ModelProvider) -> None:
        while True:
            waiting_s = time.monotonic()
            job = self._prepared.get()
            if job is None:
                return
            self._room.release()
            self._watch.add("starved_s", time.monotonic() - max(waiting_s, job.captured.captured_s))
            with self._giving_up(job.captured):
                model = provider.model
                if model.spec.preprocess != job.model.spec.preprocess:  # switched since the frame was prepared
                    job = _job(job.ticket, job.captured, model)
                with self._watch.measures("engine_s"):
                    output = model.session.run(job.batch)
                self._model = model
                with self._watch.measures("blocked_s"):
                    self._outputs.put(replace(job, model=model, output=output))

    def _postprocess(self) -> None:
        """Finish jobs by ticket: streams may overtake each other."""
        early: dict[int, Job] = {}
        ticket = 0
        for job in iter(self._outputs.get, None):
            early[job.ticket] = job
            while ticket in early:
                job = early.pop(ticket)
                ticket += 1
                with self._giving_up(job.captured), self._watch.measures("postprocess_s"):
                    self._finish(job)
        for job in early.values():  # behind one that was given up
            self._board.finish(job.captured.camera, None)

    @contextmanager
    def _giving_up(self, captured: CapturedFrame) -> Iterator[None]:
        """Give up a frame where the block raises."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            self._board.finish(captured.camera, None)


class _Stopwatch:
    """Seconds by what they were spent on, summed over threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys((field.name for field in fields(StageSeconds)), 0.0)

    @property
    def seconds(self) -> dict[str, float]:
        with self._lock:
            return dict(self._seconds)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds

    @contextmanager
    def measures(self, name: str) -> Iterator[None]:
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - began_s)


def _job(ticket: int, captured: CapturedFrame, model: Model) -> Job:
    batch, placement = model.prepare(captured.frame)
    return Job(ticket, captured, model, batch, placement)


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    return threading.Thread(target=target, args=arguments, name=target.__name__.strip("_"), daemon=True)

"""Preprocessing, engine and postprocessing of captured frames, as stages that overlap.

Each stage has threads of its own, so that the engine finds its next input ready: NumPy, OpenCV and the runtimes release
the interpreter lock while they work. Copies from and to a GPU overlap with its work where `streams` is more than one:
each stream is a thread with a session, and with it a CUDA stream and pinned buffers, of its own.

Where the model takes several frames at once, those that wait while the engine is busy go through its next run together.
A frame that finds an engine without work goes alone: none waits for others to come.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Callable, Protocol  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import numpy as np

from edgekd.agent.cameras.statistics import StageSeconds

if TYPE_CHECKING:
    from edgekd.agent.cameras.board import CapturedFrame, FrameBoard
    from edgekd.agent.serving import Model, Prepared
    from edgekd.core.detection.preprocess import Placement
    from edgekd.core.detection.types import Preprocess


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
    """Frames on their way through one run of the engine.

    ticket: place in the order of runs; model: for which they are prepared, and whose `output` it is, with a row for
    each frame.
    """

    ticket: int
    captured: Sequence[CapturedFrame]
    model: Model
    prepared: Prepared
    output: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class FrameOutput:
    """A frame after the engine. frame: as `letterbox` takes it; output: with a first side of 1."""

    captured: CapturedFrame
    model: Model
    frame: np.ndarray
    placement: Placement
    output: np.ndarray


class Pipeline:
    """The stages between a board and `finish`, which gets each frame with its output, in the order of tickets.

    open_model: called in the thread of each stream. fail: gets an error of a stage, whose frames count as dropped.
    """

    def __init__(
        self,
        board: FrameBoard,
        open_model: Callable[[], ModelProvider],
        finish: Callable[[FrameOutput], None],
        fail: Callable[[BaseException], None],
        *,
        streams: int,
        preprocess_threads: int,
    ) -> None:
        self._board, self._open_model, self._finish, self._fail = board, open_model, finish, fail
        self._model: Model | None = None
        self._waiting_engines = 0  # streams without work
        # An input for each stream is prepared while it works on another one: more would only become old.
        self._counting = threading.Lock()
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

    def _most_frames(self) -> int:
        """Return the most frames of the next run."""
        assert self._model is not None
        return 1 if self._waiting_engines else self._model.batch

    def _preprocess(self) -> None:
        while True:
            self._room.acquire()
            taken = self._board.take(self._most_frames)
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
                for count in {1, model.batch}:
                    model.run(model.prepare([np.zeros(size, np.uint8)] * count))  # warm-up
                opened.set_result(model)
                self._run_jobs(provider)
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    def _run_jobs(self, provider: ModelProvider) -> None:
        while True:
            job, waited_s = self._next_job()
            if job is None:
                return
            since_capture_s = time.monotonic() - min(each.captured_s for each in job.captured)
            self._watch.add("starved_s", min(waited_s, since_capture_s))
            with self._giving_up(job.captured):
                model = provider.model
                if _input_of(model) != _input_of(job.model):  # switched since the frames were prepared
                    job = _job(job.ticket, job.captured, model)
                with self._watch.measures("engine_s"):
                    output = model.run(job.prepared)
                self._model = model
                with self._watch.measures("blocked_s"):
                    self._outputs.put(replace(job, model=model, output=output))

    def _next_job(self) -> tuple[Job | None, float]:
        """Wait for the next job, None at the end; return the seconds, too."""
        began_s = time.monotonic()
        with self._counting:
            self._waiting_engines += 1
        job = self._prepared.get()
        with self._counting:
            self._waiting_engines -= 1
        self._room.release()
        return job, time.monotonic() - began_s

    def _postprocess(self) -> None:
        """Finish jobs by ticket: streams may overtake each other."""
        early: dict[int, Job] = {}
        ticket = 0
        for job in iter(self._outputs.get, None):
            early[job.ticket] = job
            while ticket in early:
                for each in _frames(early.pop(ticket)):
                    with self._giving_up([each.captured]), self._watch.measures("postprocess_s"):
                        self._finish(each)
                ticket += 1
        for job in early.values():  # behind one that was given up
            self._drop(job.captured)

    @contextmanager
    def _giving_up(self, captured: Sequence[CapturedFrame]) -> Iterator[None]:
        """Give up frames where the block raises."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            self._drop(captured)

    def _drop(self, captured: Sequence[CapturedFrame]) -> None:
        for each in captured:
            self._board.finish(each.camera, None)


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


def _job(ticket: int, captured: Sequence[CapturedFrame], model: Model) -> Job:
    return Job(ticket, captured, model, model.prepare([each.frame for each in captured]))


def _input_of(model: Model) -> tuple[Preprocess, bool]:
    """Return what an input depends on: the preprocessing, and whether the GPU does it."""
    return model.spec.preprocess, model.frame_session is not None


def _frames(job: Job) -> Iterator[FrameOutput]:
    """Yield the frames of a job, in their order."""
    assert job.output is not None
    parts = zip(job.captured, job.prepared.frames, job.prepared.placements)  # noqa: B905 strict= is Python 3.10
    for at, (captured, frame, placement) in enumerate(parts):
        yield FrameOutput(captured, job.model, frame, placement, job.output[at : at + 1])


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    return threading.Thread(target=target, args=arguments, name=target.__name__.strip("_"), daemon=True)

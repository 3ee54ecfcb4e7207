"""The service: the frames of several cameras through one model, by a fair scheduler.

A thread for each camera reads it. Old frames of live cameras are dropped before they cost more than their capture, so
that one that floods or dies does not slow the others. docs/guides/several-cameras.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.cameras.board import FrameBoard
from edgekd.agent.cameras.capture import STALL_S, Capture
from edgekd.agent.cameras.pipeline import Pipeline
from edgekd.agent.cameras.postprocessing import Postprocessor
from edgekd.agent.cameras.statistics import CameraStatus, ServiceStatus

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.cameras.pipeline import FrameOutput, ModelProvider
    from edgekd.agent.cameras.sources import CameraSource
    from edgekd.agent.serving import Model
    from edgekd.core.detection.types import Detections

_TICK_S = 0.05  # between looks at cameras that block, and at the end
_JOIN_S = 2.0  # for all readers together; one that hangs in a driver ends with the process


@dataclass(frozen=True)
class CameraOptions:
    """Options of the service.

    depth: frames of a camera that wait; streams: sessions of the engine that run at once; preprocess_threads: of all
    cameras; track: whether objects get identities; stall_s: seconds without a frame after which a camera is opened
    again.
    """

    depth: int = 1
    streams: int = 1
    preprocess_threads: int = 1
    track: bool = False
    stall_s: float = STALL_S


@dataclass(frozen=True, eq=False)
class CameraResult:
    """Detections in one frame.

    number: of the camera's frame, from 0, dropped ones included; taken_at: Unix time of its capture; latency_ms: from
    capture to detections; tracks: identities int64 [n], NO_TRACK for an object that is new, None without tracking;
    drift: distance of recent frames of this camera from the model's record, None where it is not known.
    """

    camera: str
    number: int
    taken_at: float
    latency_ms: float
    model: Model
    detections: Detections
    tracks: np.ndarray | None
    drift: float | None


class CameraService:
    """Detects objects in the frames of several cameras. An instance is for one `run`.

    open_model: called in the thread of each stream. on_result: called for each frame with detections, by one thread,
    in the order of each camera's frames; an error that it raises ends the service.
    """

    def __init__(
        self,
        sources: Sequence[CameraSource],
        open_model: Callable[[], ModelProvider],
        on_result: Callable[[CameraResult], None],
        options: CameraOptions = CameraOptions(),
    ) -> None:
        self._on_result = on_result
        self._board = FrameBoard(len(sources), options.depth)
        self._ended = threading.Event()
        self._captures = [
            Capture(
                source,
                partial(self._board.put, index, wait=not source.live),
                self._ended,
                stall_s=options.stall_s,
            )
            for index, source in enumerate(sources)
        ]
        self._postprocessors = [Postprocessor(track=options.track) for _ in sources]
        self._pipeline = Pipeline(
            self._board,
            open_model,
            self._finish,
            self._fail,
            streams=options.streams,
            preprocess_threads=options.preprocess_threads,
        )
        self._error: BaseException | None = None
        self._is_stopped = False
        self._began_s = 0.0

    def stop(self) -> None:
        """End `run` after the frames on their way. May be called by any thread, and by a signal handler."""
        self._is_stopped = True  # no lock: a signal handler may have interrupted whoever holds it

    def run(
        self,
        seconds: float = float("inf"),
        on_status: Callable[[ServiceStatus], None] | None = None,
        status_interval_s: float = 10.0,
    ) -> ServiceStatus:
        """Serve until `stop`, the end of all files, or so many seconds; return the final status.

        on_status: called every `status_interval_s` seconds. Raises what opening or running the model, `on_status` or
        `on_result` raises.
        """
        self._pipeline.start()
        self._began_s = time.monotonic()
        try:
            for capture in self._captures:
                capture.start()
            self._supervise(self._began_s + seconds, on_status, status_interval_s)
        finally:
            self._ended.set()
            self._board.close()
            self._pipeline.end()
            for capture in self._captures:
                capture.join(_JOIN_S / len(self._captures))
        if self._error is not None:
            raise self._error
        return self.status()

    def status(self) -> ServiceStatus:
        """Return the status of the service now, once it runs."""
        cameras = []
        for index, capture in enumerate(self._captures):
            frames, latency = self._board.counts(index)
            cameras.append(
                CameraStatus(
                    name=capture.source.name,
                    state=capture.state,
                    problem=capture.problem,
                    attempts=capture.attempts,
                    frames=frames,
                    latency_ms=latency,
                    drift=self._postprocessors[index].drift,
                )
            )
        model = self._pipeline.model
        seconds = time.monotonic() - self._began_s
        return ServiceStatus(seconds, model.identity if model else "", cameras, self._pipeline.seconds)

    def _supervise(
        self, end_s: float, on_status: Callable[[ServiceStatus], None] | None, status_interval_s: float
    ) -> None:
        """Return when the service is to end."""
        status_s = self._began_s + status_interval_s
        while not self._is_stopped and time.monotonic() < end_s:
            now_s = time.monotonic()
            for capture in self._captures:
                capture.check(now_s)
            if all(capture.is_over for capture in self._captures) and self._board.is_idle:
                return
            if on_status is not None and now_s >= status_s:
                status_s = now_s + status_interval_s
                on_status(self.status())
            time.sleep(_TICK_S)

    def _finish(self, frame: FrameOutput) -> None:
        captured, postprocessor = frame.captured, self._postprocessors[frame.captured.camera]
        detections, tracks = postprocessor.detections(
            frame.model, frame.frame, frame.placement, frame.output, captured.captured_s
        )
        latency_ms = 1000 * (time.monotonic() - captured.captured_s)
        self._on_result(
            CameraResult(
                camera=self._captures[captured.camera].source.name,
                number=captured.number,
                taken_at=captured.taken_at,
                latency_ms=latency_ms,
                model=frame.model,
                detections=detections,
                tracks=tracks,
                drift=postprocessor.drift,
            )
        )
        self._board.finish(captured.camera, latency_ms)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self.stop()

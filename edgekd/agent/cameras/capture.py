"""Capture of one camera: a thread reads it, and opens it again when it ends, fails or blocks."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import numpy as np

from edgekd.agent.cameras.scheduling import Backoff, Pacer
from edgekd.agent.cameras.sources import CameraSource, frame_problem, without_credentials
from edgekd.agent.cameras.statistics import ENDED, FAILED, OPENING, RETRYING, RUNNING, STALLED, State

STALL_S = 10.0
"""Seconds in one call of a source after which its camera counts as stalled."""
MAX_ABANDONED = 2
"""Threads of one camera that hang in a call. A thread cannot be stopped: no more are started until one returns."""
_PROBLEM = 200  # characters of a problem


class Capture:
    """Reads a camera into `deliver`, which returns False once no frames are wanted.

    deliver: gets the frame, or None for one that is damaged. stall_s: seconds without a sign of life.
    """

    def __init__(
        self,
        source: CameraSource,
        deliver: Callable[[np.ndarray | None], bool],
        stop: threading.Event,
        *,
        stall_s: float = STALL_S,
    ) -> None:
        self.source = source
        self.state: State = OPENING
        self.problem: str | None = None
        self.attempts = 0
        self._deliver, self._stop, self._stall_s = deliver, stop, stall_s
        self._backoff = Backoff()
        self._abandoned: list[_Reader] = []
        self._reader = _Reader(self, 0.0)

    def start(self) -> None:
        """Begin to read."""
        self._reader.start()

    @property
    def is_over(self) -> bool:
        """True where no frame will come any more."""
        return self.state in (ENDED, FAILED)

    def check(self, now_s: float) -> None:
        """Replace a reader that has been in one call of its source for too long. Call it often."""
        self._abandoned = [reader for reader in self._abandoned if reader.is_alive()]
        called_s = self._reader.called_s
        if called_s is None or now_s - called_s < self._stall_s:
            return
        self.state, self.problem = STALLED, f"no frame for {self._stall_s:g} s"
        if self.source.live and len(self._abandoned) < MAX_ABANDONED:
            self._reader.is_wanted = False
            self._abandoned.append(self._reader)
            self._reader = _Reader(self, self._backoff.delay_s(self._reader.lived_s))
            self._reader.start()

    def join(self, seconds: float) -> None:
        """Wait until the reader has returned, at most so long."""
        self._reader.join(seconds)

    def deliver(self, frame: Any) -> bool:
        """Pass a frame on; return False once no frames are wanted."""
        problem = frame_problem(frame, nv12=self.source.nv12)
        self.state = RUNNING
        if problem:
            self.problem = f"a frame was rejected: {problem}"
        return self._deliver(None if problem else frame)

    def failed(self, error: Exception | None, lived_s: float) -> float | None:
        """Note an end or an error; return the seconds until the next attempt, None for no other.

        lived_s: seconds since the first frame, 0 without one.
        """
        if error is not None:
            self.problem = without_credentials(f"{error}" or type(error).__name__)[:_PROBLEM]
        if not self.source.live:
            self.state = ENDED if error is None else FAILED
            return None
        if error is None:
            self.problem = "the stream ended"
        self.state = RETRYING
        return self._backoff.delay_s(lived_s)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the service stops; return whether it goes on."""
        return not self._stop.wait(seconds)


class _Reader(threading.Thread):
    """One thread that reads a camera. called_s: since when it has been in a call of the source, None outside."""

    def __init__(self, capture: Capture, delay_s: float) -> None:
        super().__init__(name=f"capture {capture.source.name}", daemon=True)
        self._capture, self._delay_s = capture, delay_s
        self._first_s: float | None = None
        self.called_s: float | None = None
        self.is_wanted = True

    @property
    def lived_s(self) -> float:
        """Seconds since the first frame, 0 without one."""
        return 0.0 if self._first_s is None else time.monotonic() - self._first_s

    def run(self) -> None:
        delay_s: float | None = self._delay_s
        while delay_s is not None and self.is_wanted and self._capture.wait(delay_s):
            error, self._first_s = None, None
            self._capture.state = OPENING
            self._capture.attempts += 1
            try:
                if not self._read():
                    return
            except Exception as raised:  # whatever a driver or a decoder raises, the other cameras go on
                error = raised
            finally:
                self.called_s = None
            if not self.is_wanted:
                return
            delay_s = self._capture.failed(error, self.lived_s)

    def _read(self) -> bool:
        """Read until the source ends; return False where no more frames are wanted."""
        source, pacer = self._capture.source, Pacer(self._capture.source.max_fps)
        self.called_s = time.monotonic()
        frames = source.open()
        try:
            while True:
                self.called_s = time.monotonic()
                frame = next(frames, _END)
                self.called_s = None
                if frame is _END:
                    return self.is_wanted
                if self._first_s is None:
                    self._first_s = time.monotonic()
                if not self.is_wanted or not self._capture.deliver(frame):
                    return False
                if not self._capture.wait(pacer.delay_s(time.monotonic())):
                    return False
        finally:
            self.called_s = time.monotonic()
            close = getattr(frames, "close", None)
            if close is not None:
                close()


_END = object()

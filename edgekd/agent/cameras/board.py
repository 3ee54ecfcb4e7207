"""Frames between capture and preprocessing, and the account of every frame; the only state that threads share."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import islice
from typing import Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import numpy as np

from edgekd.agent.cameras.scheduling import FairQueue
from edgekd.agent.cameras.statistics import FrameCounts, Latency, LatencyHistogram


@dataclass(frozen=True, eq=False)
class CapturedFrame:
    """A frame of a camera.

    camera: position of the camera; number: of the frame, from 0, where a gap is of dropped and rejected ones;
    captured_s: by time.monotonic; taken_at: Unix time.
    """

    camera: int
    number: int
    frame: np.ndarray
    captured_s: float
    taken_at: float


class _Account:
    """Frames of one camera by what became of them."""

    def __init__(self) -> None:
        self.captured = self.detected = self.dropped = self.rejected = 0
        self.latency = LatencyHistogram()

    @property
    def counts(self) -> FrameCounts:
        return FrameCounts(self.captured, self.detected, self.dropped, self.rejected)


class FrameBoard:
    """The waiting frames of all cameras, at most `depth` of each. Thread-safe."""

    def __init__(self, cameras: int, depth: int) -> None:
        self._changed = threading.Condition()
        self._waiting: FairQueue[CapturedFrame] = FairQueue(cameras, depth)
        self._accounts = [_Account() for _ in range(cameras)]
        self._tickets = 0
        self._is_closed = False

    def put(self, camera: int, frame: np.ndarray | None, *, wait: bool) -> bool:
        """Add a frame, None for a damaged one; return False once no frames are wanted.

        wait: wait for room, instead of dropping the oldest frame of this camera.
        """
        captured_s, taken_at = time.monotonic(), time.time()
        with self._changed:
            account = self._accounts[camera]
            number = account.captured
            account.captured += 1
            if frame is None:
                account.rejected += 1
                return not self._is_closed
            while wait and self._waiting.is_full(camera) and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                account.dropped += 1
                return False
            dropped = self._waiting.put(camera, CapturedFrame(camera, number, frame, captured_s, taken_at))
            account.dropped += dropped is not None
            self._changed.notify_all()
            return True

    def take(self, most: Callable[[], int]) -> tuple[int, list[CapturedFrame]] | None:
        """Wait for a frame of the next camera; return it after its ticket, 0, 1, 2, ...; None once closed.

        most: called once there is one; as many frames are returned, in turns of the cameras, if more wait.
        """
        with self._changed:
            while not self._is_closed:
                first = self._waiting.take()
                if first is not None:
                    others = iter(self._waiting.take, None)
                    self._tickets += 1
                    self._changed.notify_all()
                    return self._tickets - 1, [first, *islice(others, most() - 1)]
                self._changed.wait()
            return None

    def finish(self, camera: int, latency_ms: float | None) -> None:
        """Account for a frame that was taken: detected after `latency_ms`, None where it was dropped."""
        with self._changed:
            account = self._accounts[camera]
            if latency_ms is None:
                account.dropped += 1
                return
            account.detected += 1
            account.latency.add(latency_ms)

    def close(self) -> None:
        """Take no more frames, and drop those that wait."""
        with self._changed:
            self._is_closed = True
            for captured in iter(self._waiting.take, None):
                self._accounts[captured.camera].dropped += 1
            self._changed.notify_all()

    @property
    def is_idle(self) -> bool:
        """True where no frame waits or is on its way."""
        with self._changed:
            return all(account.counts.pending == 0 for account in self._accounts)

    def counts(self, camera: int) -> tuple[FrameCounts, Latency | None]:
        """Return the frames of a camera until now, and their latency."""
        with self._changed:
            account = self._accounts[camera]
            return account.counts, account.latency.summary()

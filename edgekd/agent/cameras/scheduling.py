"""Rules of the service without threads, clocks or I/O: whose frame is next, when to read again, when to open again."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

FIRST_DELAY_S = 1.0
"""Seconds before the first attempt to open a camera again."""
LONGEST_DELAY_S = 60.0
"""Upper bound of the delay, which doubles with each attempt."""


class FairQueue(Generic[Item]):
    """The newest frames of each camera, at most `depth` of each, which are taken in turns (round robin)."""

    def __init__(self, cameras: int, depth: int) -> None:
        self._frames: list[deque[Item]] = [deque() for _ in range(cameras)]
        self._depth, self._next = depth, 0

    def is_full(self, camera: int) -> bool:
        """Return whether the next frame of a camera replaces one."""
        return len(self._frames[camera]) >= self._depth

    def put(self, camera: int, frame: Item) -> Item | None:
        """Add a frame; return the oldest one of this camera where it had to go."""
        frames = self._frames[camera]
        dropped = frames.popleft() if self.is_full(camera) else None
        frames.append(frame)
        return dropped

    def take(self) -> Item | None:
        """Return the oldest frame of the next camera that has one; None where none has."""
        for step in range(len(self._frames)):
            camera = (self._next + step) % len(self._frames)
            if self._frames[camera]:
                self._next = camera + 1
                return self._frames[camera].popleft()
        return None


class Pacer:
    """Spreads events evenly, at most so many a second. Up to one interval of delay is caught up, no more."""

    def __init__(self, per_second: float) -> None:
        self._interval_s = 1 / per_second
        self._due_s: float | None = None

    def delay_s(self, now_s: float) -> float:
        """Return the seconds until the next event is due, 0 where it is."""
        due_s = now_s if self._due_s is None else self._due_s + self._interval_s
        self._due_s = now_s if due_s < now_s - self._interval_s else due_s
        return max(self._due_s - now_s, 0.0)


class Backoff:
    """Growing delays between attempts to open a camera that fails."""

    def __init__(self) -> None:
        self._delay_s = FIRST_DELAY_S

    def delay_s(self, lived_s: float) -> float:
        """Return the next delay. lived_s: seconds that the camera delivered; longer than the delay, it starts anew."""
        delay_s = FIRST_DELAY_S if lived_s > self._delay_s else self._delay_s
        self._delay_s = min(2 * delay_s, LONGEST_DELAY_S)
        return delay_s

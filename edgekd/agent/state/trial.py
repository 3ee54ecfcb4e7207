"""The trial of a bundle after its installation, and the rules by which it ends. Its only I/O reads the uptime.

Each start of the application uses a try; a bundle that is not committed by then, or not in time, is rolled back at the
next start. Time is the uptime of the kernel, because a camera's clock may jump.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekd.core.procfs import text_of

TRIES = 3
"""Default number of starts."""
MAX_TRIES = 1000


@dataclass(frozen=True)
class Uptime:
    """A time: id of the boot, None where it cannot be read, and seconds since then."""

    boot: str | None
    seconds: float


def read_uptime(root: Path) -> Uptime:
    """Return the current time of the system below `root`; suspended time counts, too."""
    try:
        seconds = float((text_of(root / "proc/uptime") or "").split()[0])
    except (IndexError, ValueError):
        return Uptime(None, 0.0)
    return Uptime(text_of(root / "proc/sys/kernel/random/boot_id"), seconds)


@dataclass(frozen=True)
class Trial:
    """State of a trial.

    tries_left, tries_done: starts; window_s: seconds after the installation or a start within which it has to be
    committed, None for any time; boot, since_s: time of the installation, or of the last start.
    """

    tries_left: int
    tries_done: int = 0
    window_s: float | None = None
    boot: str | None = None
    since_s: float = 0.0

    def begun(self, now: Uptime) -> Trial:
        """Return the trial with its window counted from now."""
        return replace(self, boot=now.boot, since_s=now.seconds)

    def started(self, now: Uptime) -> Trial:
        """Return the trial after one more start."""
        return replace(self.begun(now), tries_left=self.tries_left - 1, tries_done=self.tries_done + 1)

    def left_s(self, now: Uptime) -> float | None:
        """Return the seconds left for a commit; None without a window, or where the system was booted since.

        After a boot the window begins with the next start.
        """
        if self.window_s is None or self.boot is None or self.boot != now.boot:
            return None
        return self.window_s - (now.seconds - self.since_s)

    def late(self, now: Uptime) -> bool:
        """Return whether the window is over."""
        left = self.left_s(now)
        return left is not None and left < 0

    def over(self, now: Uptime) -> bool:
        """Return whether the next start rolls back."""
        return self.tries_left <= 0 or self.late(now)

    def status(self, now: Uptime) -> TrialStatus:
        """Describe the trial for output."""
        left = self.left_s(now)
        left_s = None if left is None else round(max(left, 0.0), 1)
        return TrialStatus(self.tries_left, self.tries_done, self.window_s, left_s, self.over(now))


@dataclass(frozen=True)
class TrialStatus:
    """The trial of the bundle in service.

    Args:
        tries_left: Starts that are left without a commit.
        tries_done: Starts so far.
        window_s: Seconds after the installation or a start within which it has to be committed; null for any time.
        left_s: Seconds left of that; null without a window, and after a boot until the next start.
        over: True where the next start rolls back.
    """

    tries_left: int
    tries_done: int
    window_s: float | None
    left_s: float | None
    over: bool


def trial_from_json(document: Any) -> Trial | None:
    """Parse the trial in a record; None where there is none. Raises TypeError or ValueError."""
    if document is None:
        return None
    trial = Trial(**document)
    counts = (trial.tries_left, trial.tries_done)
    numbers = (trial.since_s, 0.0 if trial.window_s is None else trial.window_s)
    if any(type(count) is not int for count in counts) or any(type(each) not in (int, float) for each in numbers):
        raise ValueError(f"{document} is no trial")
    return trial

"""The trial of a bundle after its installation: the rules by which it ends. No I/O but reading the system's uptime.

As a boot loader counts boots, a trial begins with some tries. Each start of what runs the model takes one; a bundle
that is not committed by then, or not in time, is led away from at the next start. Time is the kernel's since it booted:
a camera's clock may jump by years when it first hears from a time server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekd.core.procfs import text_of

TRIES = 3
"""Starts that a bundle has unless something else is said."""
MAX_TRIES = 1000


@dataclass(frozen=True)
class Uptime:
    """When something is: which boot of the kernel, None where that cannot be read, and seconds since then."""

    boot: str | None
    seconds: float


def read_uptime(root: Path) -> Uptime:
    """Now, by the system below `root`; its seconds also count while it sleeps."""
    told = (text_of(root / "proc/uptime") or "").split()
    try:
        seconds = float(told[0])
    except (IndexError, ValueError):
        return Uptime(None, 0.0)
    return Uptime(text_of(root / "proc/sys/kernel/random/boot_id"), seconds)


@dataclass(frozen=True)
class Trial:
    """What is left of a trial.

    tries_left: starts that may still come; tries_done: that have come; window_s: after the installation or a start it
    has to be committed within so many seconds, None for any time; boot, since_s: when it was installed, or started
    last.
    """

    tries_left: int
    tries_done: int = 0
    window_s: float | None = None
    boot: str | None = None
    since_s: float = 0.0

    def begun(self, now: Uptime) -> Trial:
        """The same, its window counted from now."""
        return replace(self, boot=now.boot, since_s=now.seconds)

    def started(self, now: Uptime) -> Trial:
        """The same, one start later."""
        return replace(self.begun(now), tries_left=self.tries_left - 1, tries_done=self.tries_done + 1)

    def left_s(self, now: Uptime) -> float | None:
        """Seconds in which it may still be committed; None where that is any time, or the system was booted since.

        After a boot the window begins with the start that follows.
        """
        if self.window_s is None or self.boot is None or self.boot != now.boot:
            return None
        return self.window_s - (now.seconds - self.since_s)

    def late(self, now: Uptime) -> bool:
        """Whether the time is over in which it could be committed."""
        left = self.left_s(now)
        return left is not None and left < 0

    def over(self, now: Uptime) -> bool:
        """Whether another start leads back to what was in service before."""
        return self.tries_left <= 0 or self.late(now)

    def as_json(self, now: Uptime) -> dict[str, Any]:
        """As the agent tells of it."""
        left = self.left_s(now)
        return {
            "tries_left": self.tries_left,
            "tries_done": self.tries_done,
            "window_s": self.window_s,
            "left_s": None if left is None else round(max(left, 0.0), 1),
            "over": self.over(now),
        }


def trial_from_json(found: Any) -> Trial | None:
    """The trial in a record; None where there is none. Raises TypeError or ValueError for anything else."""
    if found is None:
        return None
    trial = Trial(**found)
    counts = (trial.tries_left, trial.tries_done)
    numbers = (trial.since_s, 0.0 if trial.window_s is None else trial.window_s)
    if any(type(count) is not int for count in counts) or any(type(each) not in (int, float) for each in numbers):
        raise ValueError(f"{found} is no trial")
    return trial

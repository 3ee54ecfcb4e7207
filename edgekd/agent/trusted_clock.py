"""The time by which signatures are judged: that of the camera's clock, but not before the last time that it has shown.

A clock that was set back would make a key valid again that has expired. The last time is kept with the slots, and grows
when a command judges something by the trust file. It never exceeds the last expiry in that file, so that a clock that
is wrong by years costs one trust file, not all: docs/concepts/security.md.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.state.slots import State
    from edgekd.core.bundle.trust import Trust

CLOCK = "clock.json"


def current_time(state: State, clock: datetime) -> datetime:
    """Return the later of the clock's time and the last one stored. Raises DeviceError where that is damaged."""
    last = _last_time(state)
    return max(clock, last) if last else clock


def judging_time(state: State, trust: Trust, clock: datetime) -> datetime:
    """Return the current time, and store it. Raises DeviceError, SpecError where the state cannot be written.

    It is stored where it is on a later day than the last, or an expiry has passed since: the disk is not worn by an
    updater that asks every minute.
    """
    from edgekd.core.bundle.trust import TIME

    last, now = _last_time(state), current_time(state, clock)
    expiries = [time for time in (trust.expires, *(key.expires for key in trust.keys)) if time is not None]
    if expiries:
        before = last.strftime(TIME) if last else ""
        new = min(now.strftime(TIME), max(expiries))
        if new > before and (new[:10] > before[:10] or any(before < time <= new for time in expiries)):
            state.create_folder()
            write_file(state.base / CLOCK, canonical_json({"last": new}))
    return now


def _last_time(state: State) -> datetime | None:
    from edgekd.core.bundle.trust import TIME

    path = state.base / CLOCK
    try:
        return datetime.strptime(json.loads(path.read_bytes())["last"], TIME).replace(tzinfo=timezone.utc)
    except (FileNotFoundError, PermissionError):
        return None  # `verify` works for users who cannot read the state, and cannot install either
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"{path}: damaged", found=str(error), fix="restore the state folder") from error

"""What a machine draws, as far as it can say so itself: one seam, `Meter`, and a file for each kind of sensor.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Meter(Protocol):
    """A sensor. name: of its kind; covers: what it measures, in words, which is never the whole kit.

    counts: whether `read` gives joules since some beginning; else it gives watts now.
    """

    name: str
    covers: str
    counts: bool

    def read(self) -> float:
        """Joules or watts. Raises OSError where the sensor stopped answering."""
        ...


def text_of(path: Path) -> str | None:
    """The text of a small system file; None where it is not there, not for us, or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def number_in(path: Path) -> float | None:
    """The number in a small system file; None where there is none."""
    try:
        return float(text_of(path) or "")
    except ValueError:
        return None

"""What a machine draws, as far as it can say so itself: one seam, `Meter`, and a file for each kind of sensor.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

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

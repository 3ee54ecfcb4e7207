"""Power of a machine by its own sensors: one interface, `Meter`, and a module for each kind of sensor.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from typing import Literal, Protocol

MeterKind = Literal["ina3221", "ina238", "nvml", "rapl", "null"]


class Meter(Protocol):
    """A sensor. name: of its kind; covers: description of the measured part of the device.

    counts: whether `read` returns joules since a fixed time; else it returns watts.
    """

    name: MeterKind
    covers: str
    counts: bool

    def read(self) -> float:
        """Return joules or watts. Raises OSError where the sensor does not answer."""
        ...

"""A fake meter, for tests.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Callable

from edgekd.core.power import MeterKind


class NullMeter:
    """Returns the values of a function, as joules or as watts."""

    name: MeterKind = "null"
    covers = "nothing"

    def __init__(self, watts: Callable[[], float], counts: bool = False) -> None:
        self.read = watts
        self.counts = counts

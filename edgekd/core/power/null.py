"""A meter that says what it was told, for tests of what measures energy.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Callable


class NullMeter:
    """Draws `watts(now)` at any time of a clock; counts joules, or tells watts."""

    name = "null"
    covers = "nothing"

    def __init__(self, watts: Callable[[], float], counts: bool = False) -> None:
        self.read = watts
        self.counts = counts

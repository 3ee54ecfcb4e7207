"""The energy that CPU packages count themselves (RAPL), on Intel and AMD. Kernels since 5.10 show it to root only.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd.core.procfs import number_in, text_of


class Packages:
    """All CPU packages together, without memory and board."""

    name = "rapl"
    counts = True

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = tuple(zones)
        self._ranges = [number_in(zone / "max_energy_range_uj") or 0.0 for zone in zones]
        self._last = [_microjoules(zone) for zone in zones]
        self._total = 0.0
        self.covers = f"CPU packages without memory: {len(self._zones)}"

    def read(self) -> float:
        """Joules since this object was made. Raises OSError."""
        for at, zone in enumerate(self._zones):
            now = _microjoules(zone)
            passed = now - self._last[at]
            self._total += (passed if passed >= 0 else passed + self._ranges[at]) / 1e6  # the counter starts over
            self._last[at] = now
        return self._total


def find_packages(root: Path) -> Packages | None:
    """The packages of the machine whose system lies below `root`; None where they do not count, or not for us."""
    zones = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
    packages = [zone for zone in zones if (text_of(zone / "name") or "").startswith("package")]
    if not packages or any(number_in(zone / "energy_uj") is None for zone in packages):
        return None
    return Packages(packages)


def _microjoules(zone: Path) -> float:
    found = number_in(zone / "energy_uj")
    if found is None:
        raise OSError(f"{zone / 'energy_uj'}: no number")
    return found

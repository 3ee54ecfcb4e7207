"""Energy counters of CPU packages (RAPL), on Intel and AMD. Kernels since 5.10 show them to root only.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd.core.power import MeterKind
from edgekd.core.procfs import number_in, text_of


class Packages:
    """All CPU packages together, without memory and board."""

    name: MeterKind = "rapl"
    counts = True

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = tuple(zones)
        self._ranges = [number_in(zone / "max_energy_range_uj") or 0.0 for zone in zones]
        self._last = [_microjoules(zone) for zone in zones]
        self._total = 0.0
        self.covers = f"CPU packages without memory: {len(self._zones)}"

    def read(self) -> float:
        """Return joules since this object was made. Raises OSError."""
        for index, zone in enumerate(self._zones):
            now = _microjoules(zone)
            used = now - self._last[index]
            self._total += (used if used >= 0 else used + self._ranges[index]) / 1e6  # the counter wraps
            self._last[index] = now
        return self._total


def find_packages(root: Path) -> Packages | None:
    """Return the packages of the machine whose system lies below `root`; None without readable counters."""
    zones = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
    packages = [zone for zone in zones if (text_of(zone / "name") or "").startswith("package")]
    if not packages or any(number_in(zone / "energy_uj") is None for zone in packages):
        return None
    return Packages(packages)


def _microjoules(zone: Path) -> float:
    count = number_in(zone / "energy_uj")
    if count is None:
        raise OSError(f"{zone / 'energy_uj'}: no number")
    return count

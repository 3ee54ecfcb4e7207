"""The power monitors of a Jetson, by the drivers of its kernels.

On the module these are TI INA3221 with three rails each. L4T 32 (JetPack 4) has NVIDIA's driver `ina3221x`, with
milliwatts; later ones have the kernel's `ina3221`, with millivolts and milliamperes. They leave out the carrier board
and the loss of its power supply. The carrier board of a Thor has a TI INA238 at its input, with microwatts. Sources:
the kernel's Documentation/hwmon/ina238.rst; jetson_stats, pull request 900; NVIDIA's forum, thread 366461.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.core.power import MeterKind
from edgekd.core.procfs import text_of

BOARD_INPUT = "VIN"
"""Rail of the module and its carrier board; the INA238 has no label of its own."""
TOTALS = (BOARD_INPUT, "VDD_IN", "POM_5V_IN")
"""Rails of the whole module; without any of them, the rails are parallel and add up."""
FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails by the rail that feeds them. AGX Orin: energymon's JetsonPowerRails.md, after NVIDIA's forum, thread 223111."""
SUM = "sum"
_INA3221: MeterKind = "ina3221"
_INA238: MeterKind = "ina238"
_MILLIWATT = 1e-3
_MICROWATT = 1e-6  # also millivolts times milliamperes


@dataclass(frozen=True)
class Rail:
    """One rail. files: of numbers whose product is its power in `unit_watts`; monitor: the chip."""

    name: str
    files: tuple[Path, ...]
    unit_watts: float
    monitor: MeterKind = _INA3221

    def watts(self) -> float:
        """Return the power it carries now. Raises OSError."""
        try:
            return math.prod(float(file.read_text()) for file in self.files) * self.unit_watts
        except ValueError as error:
            raise OSError(f"{self.files[0]}: no number") from error


class Rails:
    """The power of a module or of its board: one rail that feeds all of it, or the sum of rails side by side."""

    counts = False

    def __init__(self, rails: Sequence[Rail]) -> None:
        self.rails = tuple(rails)
        self.name: MeterKind = self.rails[0].monitor
        names = [rail.name for rail in self.rails]
        part = "with" if names == [BOARD_INPUT] else "without"
        self.covers = f"module {part} carrier board: " + " + ".join(names)

    def read(self) -> float:
        """Return the current watts. Raises OSError."""
        return sum(rail.watts() for rail in self.rails)


def find_rails(root: Path, names: Sequence[str] = (), total: str | None = None) -> Rails | None:
    """Return the rails of the module whose system lies below `root`; None where there is no monitor.

    names, total: of a target: its rails, and the total among them, or `sum`. Raises SpecError where they are missing.
    """
    rails = (*_by_kernel(root), *_by_nvidia(root), *_board_inputs(root))
    by_name = {rail.name: rail for rail in rails if rail.name != "NC"}
    if not by_name:
        return None
    if total is None:
        total = next((name for name in TOTALS if name in by_name), SUM)
    selected = (total,) if total != SUM else tuple(names) or _parallel(by_name)
    missing = [name for name in selected if name not in by_name]
    if missing:
        raise SpecError(
            f"power rails {', '.join(missing)} are not here",
            expected="the rails of the target",
            found=", ".join(sorted(by_name)),
            fix="name the target that this machine is",
        )
    return Rails([by_name[name] for name in selected])


def _parallel(names: Iterable[str]) -> tuple[str, ...]:
    """Return the rails that add up: none of them feeds another."""
    present = set(names)
    return tuple(sorted(name for name in present if FED_BY.get(name) not in present))


def _by_kernel(root: Path) -> list[Rail]:
    labels = root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[123]_label")
    rails = []
    for label in sorted(labels):
        number = label.name[2]
        files = (label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
        if (name := text_of(label)) and all(file.exists() for file in files):
            rails.append(Rail(name, files, _MICROWATT))
    return rails


def _by_nvidia(root: Path) -> list[Rail]:
    labels = root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_[012]")
    rails = []
    for label in sorted(labels):
        file = label.with_name(f"in_power{label.name[-1]}_input")
        if (name := text_of(label)) and file.exists():
            rails.append(Rail(name, (file,), _MILLIWATT))
    return rails


def _board_inputs(root: Path) -> list[Rail]:
    files = sorted(root.glob("sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*/power1_input"))
    # Of several, the input is unknown.
    return [Rail(BOARD_INPUT, (files[0],), _MICROWATT, _INA238)] if len(files) == 1 else []

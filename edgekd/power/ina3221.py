"""The power monitors of a Jetson module (TI INA3221), three rails each, as the drivers of both kernels show them.

L4T 32 (JetPack 4) has NVIDIA's driver `ina3221x`, with milliwatts; later ones have the kernel's `ina3221`, with
millivolts and milliamperes. The rails leave out the carrier board and the loss of its power supply.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.errors import SpecError
from edgekd.system_files import text_of

TOTALS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module; where there is none of them, the rails are fed side by side and add up."""
SUM = "sum"


@dataclass(frozen=True)
class Rail:
    """One rail: milliwatts in one file, or millivolts and milliamperes in two."""

    name: str
    files: tuple[Path, ...]

    def watts(self) -> float:
        """What it carries now. Raises OSError."""
        try:
            values = [float(file.read_text()) for file in self.files]
        except ValueError as error:
            raise OSError(f"{self.files[0]}: no number") from error
        return values[0] / 1e3 if len(values) == 1 else values[0] * values[1] / 1e6


class Rails:
    """The module's power: the total rail, or the sum of the rails."""

    name = "ina3221"
    counts = False

    def __init__(self, rails: Sequence[Rail]) -> None:
        self.rails = tuple(rails)
        self.covers = "module without carrier board: " + " + ".join(rail.name for rail in self.rails)

    def read(self) -> float:
        """Watts now. Raises OSError."""
        return sum(rail.watts() for rail in self.rails)


def find_rails(root: Path, names: Sequence[str] = (), total: str | None = None) -> Rails | None:
    """The rails of the module whose system lies below `root`; None where there is no monitor.

    names, total: of a target, where one is given: which rails there are, and which is the total, or `sum`. Raises
    SpecError where they are not there.
    """
    found = {rail.name: rail for rail in (*_by_kernel(root), *_by_nvidia(root)) if rail.name != "NC"}
    if not found:
        return None
    if total is None:
        total = next((name for name in TOTALS if name in found), SUM)
    wanted = (total,) if total != SUM else tuple(names) or tuple(sorted(found))
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SpecError(
            f"power rails {', '.join(missing)} are not here",
            expected="the rails of the target",
            found=", ".join(sorted(found)),
            fix="name the target that this machine is",
        )
    return Rails([found[name] for name in wanted])


def _by_kernel(root: Path) -> list[Rail]:
    labels = root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[123]_label")
    rails = []
    for label in sorted(labels):
        number = label.name[2]
        files = (label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
        rails += [Rail(name, files)] if (name := text_of(label)) and all(file.exists() for file in files) else []
    return rails


def _by_nvidia(root: Path) -> list[Rail]:
    labels = root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_[012]")
    rails = []
    for label in sorted(labels):
        file = label.with_name(f"in_power{label.name[-1]}_input")
        rails += [Rail(name, (file,))] if (name := text_of(label)) and file.exists() else []
    return rails

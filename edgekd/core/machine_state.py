"""State of a machine during a measurement: clocks, temperatures, governors, power mode. Read below a root, never set.

Sources: NVIDIA's nvpmodel service writes /etc/nvpmodel.conf and /var/lib/nvpmodel/status.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.procfs import number_in, text_of

_MODE = re.compile(r"< *POWER_MODEL +ID=(?P<id>\d+) +NAME=(?P<name>\S+) *>")
_CPUS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
_GPUS = ("gv11b", "ga10b", "gp10b", "gm20b", "gpu", "gpu-gpc-0")
"""Names of the device of a Jetson's GPU: Xavier, Orin, TX2, Nano, later ones, Thor (jetson_stats jtop/core/gpu.py)."""
_MAX_CELSIUS = 130.0  # a zone that reads more, or less than nothing, is no thermometer
_NOT_MEASURED = "PMIC-Die"
"""Type of a thermal zone of Nano, TX2 and Xavier that always reads 100 degrees C.

jetson_stats leaves it out, too: jtop/core/temperature.py.
"""


@dataclass(frozen=True)
class Moment:
    """Clocks and temperature at one time; null where one cannot be read.

    Args:
        cpu_mhz: Mean clock of the cores.
        gpu_mhz: Clock of the GPU.
        temperature_c: Temperature of the hottest zone.
    """

    cpu_mhz: float | None
    gpu_mhz: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class PowerMode:
    """Mode set by nvpmodel.

    Args:
        id: Number of the mode.
        name: Its name, where the configuration has it.
    """

    id: int
    name: str | None


@dataclass(frozen=True)
class Setting:
    """Settings of a machine.

    Args:
        governors: Frequency governors of the CPUs.
        clocks_locked: True where minimum and maximum clock are equal, which is what `jetson_clocks` does, and visible
            without root; null where clocks cannot be read.
        power_mode: Mode set by `nvpmodel`; null where there is none.
    """

    governors: tuple[str, ...]
    clocks_locked: bool | None
    power_mode: PowerMode | None


def read_moment(root: Path = Path("/")) -> Moment:
    """Return the current clocks and temperature."""
    khz = _known(number_in(folder / "scaling_cur_freq") for folder in root.glob(_CPUS))
    hz = _known(number_in(folder / "cur_freq") for folder in _gpu_clocks(root))
    zones = [zone for zone in root.glob("sys/class/thermal/thermal_zone*") if text_of(zone / "type") != _NOT_MEASURED]
    millidegrees = _known(number_in(zone / "temp") for zone in zones)
    celsius = [value / 1000 for value in millidegrees if 0 < value / 1000 < _MAX_CELSIUS]
    return Moment(
        cpu_mhz=sum(khz) / len(khz) / 1000 if khz else None,
        gpu_mhz=max(hz) / 1e6 if hz else None,
        temperature_c=max(celsius) if celsius else None,
    )


def read_setting(root: Path = Path("/")) -> Setting:
    """Return governors, whether clocks are locked, and the power mode."""
    folders = sorted(root.glob(_CPUS))
    governors = {text for folder in folders if (text := text_of(folder / "scaling_governor"))}
    limits = [(folder / "scaling_min_freq", folder / "scaling_max_freq") for folder in folders]
    limits += [(folder / "min_freq", folder / "max_freq") for folder in _gpu_clocks(root)]
    both = [(number_in(low), number_in(high)) for low, high in limits]
    locked = all(low == high for low, high in both) if both and None not in {v for pair in both for v in pair} else None
    return Setting(tuple(sorted(governors)), locked, read_power_mode(root))


def read_power_mode(root: Path = Path("/")) -> PowerMode | None:
    """Return the mode in /var/lib/nvpmodel/status, such as `pmode:0002 fmode:quiet`; None without nvpmodel."""
    status = re.match(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status") or "")
    if not status:
        return None
    number = int(status[1])
    names = {int(mode["id"]): mode["name"] for mode in _MODE.finditer(text_of(root / "etc/nvpmodel.conf") or "")}
    return PowerMode(number, names.get(number))


def _gpu_clocks(root: Path) -> list[Path]:
    folders = sorted(root.glob("sys/class/devfreq/*"))
    return [folder for folder in folders if folder.name.rpartition(".")[2] in _GPUS]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]

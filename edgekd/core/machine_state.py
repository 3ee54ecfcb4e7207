"""In what state a machine is measured: clocks, temperatures, governor and power mode, read below a root, never set.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.core.procfs import number_in, text_of

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
    """What changes during a run; None where it cannot be read. cpu_mhz: the mean; temperature_c: the hottest zone."""

    cpu_mhz: float | None
    gpu_mhz: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class Setting:
    """How a machine is set. governors: of its CPUs; clocks_locked: whether lowest and highest clock are one.

    That is what `jetson_clocks` does, and how it can be seen without root; None where clocks cannot be read.
    power_mode: what `nvpmodel` has set.
    """

    governors: tuple[str, ...]
    clocks_locked: bool | None
    power_mode: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """The same, as plain types for JSON."""
        return {**asdict(self), "governors": list(self.governors)}


def read_moment(root: Path = Path("/")) -> Moment:
    """Clocks and temperature now."""
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
    """Governors, whether clocks are locked, and the power mode."""
    from edgekd.agent.device import read_device

    folders = sorted(root.glob(_CPUS))
    governors = {text for folder in folders if (text := text_of(folder / "scaling_governor"))}
    limits = [(folder / "scaling_min_freq", folder / "scaling_max_freq") for folder in folders]
    limits += [(folder / "min_freq", folder / "max_freq") for folder in _gpu_clocks(root)]
    both = [(number_in(low), number_in(high)) for low, high in limits]
    locked = all(low == high for low, high in both) if both and None not in {v for pair in both for v in pair} else None
    mode = read_device(root).power_mode
    return Setting(tuple(sorted(governors)), locked, asdict(mode) if mode else None)


def _gpu_clocks(root: Path) -> list[Path]:
    folders = sorted(root.glob("sys/class/devfreq/*"))
    return [folder for folder in folders if folder.name.rpartition(".")[2] in _GPUS]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]

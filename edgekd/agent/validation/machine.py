"""State of a device as evidence: versions of libraries, clocks, power mode, temperatures.

Nothing is set. Serial numbers and host names are left out, and names of home folders removed.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.agent.state.device import DeviceFacts, read_device
from edgekd.core.machine_state import PowerMode, read_setting
from edgekd.core.procfs import number_in, text_of, value_of

_FOLDERS = ("usr/lib/*-linux-gnu", "usr/local/cuda*/lib64", "usr/local/cuda*/targets/*/lib")
_CUDA = re.compile(r"CUDA Version (?P<version>[\d.]+)|\"cuda\"\s*:\s*\{[^}]*\"version\"\s*:\s*\"(?P<json>[\d.]+)\"")
_HOME = re.compile(r"(/home/|/Users/)[^/\s\"':;,]+")


@dataclass(frozen=True)
class Versions:
    """Versions of libraries, by the names of their files; null for one that is not found.

    Args:
        python: Version of Python.
        numpy: Version of NumPy.
        cuda: Version of the CUDA toolkit.
        tensorrt: Version of libnvinfer.
        cudnn: Version of libcudnn.
        cudart: Version of libcudart.
    """

    python: str
    numpy: str | None
    tensorrt: str | None
    cudnn: str | None
    cudart: str | None
    cuda: str | None


@dataclass(frozen=True)
class SystemFacts:
    """The device and its settings, without serial number and names of hosts and people.

    Where only a shell ran, all but `kernel`, `machine` and `l4t` is null.

    Args:
        kernel: Release of the kernel.
        machine: Architecture of the processor.
        l4t: Release of Jetson Linux.
        power_mode: Mode that nvpmodel has set.
        governors: Frequency governors of the processors.
        clocks_locked: True where minimum and maximum clock are equal, as jetson_clocks sets them.
        clock_limits_mhz: Minimum and maximum clock by processor and device.
    """

    kernel: str | None
    machine: str
    l4t: str | None
    power_mode: PowerMode | None
    device: DeviceFacts | None
    versions: Versions | None
    governors: Sequence[str] | None
    clocks_locked: bool | None
    clock_limits_mhz: Mapping[str, Sequence[float | None]] | None


@dataclass(frozen=True)
class MachineMoment:
    """The machine at one time.

    Args:
        temperatures_c: Degrees Celsius by type of thermal zone; raw, with zones that are no thermometers.
        clocks_mhz: Clock by processor, and by device of /sys/class/devfreq, such as `15880000.nvdla0`.
        available_bytes: Available memory; null where the system does not report it.
    """

    temperatures_c: Mapping[str, float]
    clocks_mhz: Mapping[str, float]
    available_bytes: int | None


def read_system(root: Path) -> SystemFacts:
    """Return the facts on the system below a root."""
    device, setting = read_device(root), read_setting(root)
    return SystemFacts(
        device.kernel,
        platform.machine(),
        device.l4t,
        device.power_mode,
        device.facts,
        read_versions(root),
        setting.governors,
        setting.clocks_locked,
        {name: (low, high) for name, (_, low, high) in _clocks(root).items()},
    )


def read_versions(root: Path) -> Versions:
    """Return the versions of the libraries."""
    return Versions(
        python=".".join(map(str, sys.version_info[:3])),
        numpy=_numpy(),
        tensorrt=_library(root, "libnvinfer.so"),
        cudnn=_library(root, "libcudnn.so"),
        cudart=_library(root, "libcudart.so"),
        cuda=_cuda(root),
    )


def read_moment(root: Path) -> MachineMoment:
    """Return the current temperatures, clocks and available memory."""
    zones = {}
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = number_in(folder / "temp")
        if value is not None:
            name = text_of(folder / "type") or folder.name
            zones[name if name not in zones else f"{name}, {folder.name}"] = value / 1000
    memory = (value_of(root / "proc/meminfo", "MemAvailable", ":") or "").split()
    clocks = {name: now for name, (now, _, _) in _clocks(root).items() if now is not None}
    return MachineMoment(zones, clocks, int(memory[0]) * 1024 if memory and memory[0].isdigit() else None)


def anonymous(value: Any, folders: Sequence[Path]) -> Any:
    """Remove these folders, and the names of home folders, from every text of a JSON value."""
    if isinstance(value, dict):
        return {key: anonymous(each, folders) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [anonymous(each, folders) for each in value]
    if not isinstance(value, str):
        return value
    for folder in sorted(map(str, folders), key=len, reverse=True):
        value = value.replace(f"{folder}/", "") if len(folder) > 1 else value
    return _HOME.sub(r"\1USER", value)


def _clocks(root: Path) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Return current, minimum and maximum clock in MHz by processor and device."""
    clocks = {}
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")):
        khz = (number_in(folder / f"scaling_{name}_freq") for name in ("cur", "min", "max"))
        clocks[folder.parent.name] = tuple(None if each is None else each / 1e3 for each in khz)
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        hertz = (number_in(folder / name) for name in ("cur_freq", "min_freq", "max_freq"))
        clocks[folder.name] = tuple(None if each is None else each / 1e6 for each in hertz)
    return clocks  # type: ignore[return-value]


def _library(root: Path, name: str) -> str | None:
    """Return the longest version among the file names of a library; None where there is no file."""
    versions = {path.name[len(name) + 1 :] for folder in _FOLDERS for path in root.glob(f"{folder}/{name}.*")}
    return max(versions, key=lambda version: (version.count("."), version), default=None)


def _cuda(root: Path) -> str | None:
    for name in ("version.json", "version.txt"):
        match = _CUDA.search(text_of(root / "usr/local/cuda" / name) or "")
        if match:
            return match["json"] or match["version"]
    return None


def _numpy() -> str | None:
    """Return the version from the package's metadata; NumPy is not imported in this process."""
    from importlib import metadata

    try:
        return metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return None

"""Read the state of a device as evidence: versions of libraries, clocks, power mode, temperatures.

Nothing is set. Serial numbers and host names are not read; names of home folders are taken out.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.agent.device import read_device
from edgekd.core.machine_state import read_setting
from edgekd.core.procfs import number_in, text_of, value_of

_LIBRARIES = {"tensorrt": "libnvinfer.so", "cudnn": "libcudnn.so", "cudart": "libcudart.so"}
"""Names of libraries without the version that JetPack's file names end with."""
_FOLDERS = ("usr/lib/*-linux-gnu", "usr/local/cuda*/lib64", "usr/local/cuda*/targets/*/lib")
_CUDA = re.compile(r"CUDA Version (?P<version>[\d.]+)|\"cuda\"\s*:\s*\{[^}]*\"version\"\s*:\s*\"(?P<json>[\d.]+)\"")
_HOME = re.compile(r"(/home/|/Users/)[^/\s\"':;,]+")


def read_system(root: Path) -> dict[str, Any]:
    """Return the device without its serial number, the versions, and the settings of clocks and power."""
    device = {name: value for name, value in read_device(root).as_json().items() if name != "serial"}
    setting = read_setting(root).as_json()
    return {
        "kernel": device.pop("kernel"),
        "machine": platform.machine(),
        "l4t": device.pop("l4t"),
        "power_mode": device.pop("power_mode"),
        "device": device,
        "versions": read_versions(root),
        "governors": setting["governors"],
        "clocks_locked": setting["clocks_locked"],
        "clock_limits_mhz": _clock_limits(root),
    }


def read_versions(root: Path) -> dict[str, str | None]:
    """Return versions by name; None for a library that is not found."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": _numpy(),
        **{name: _library(root, file) for name, file in _LIBRARIES.items()},
        "cuda": _cuda(root),
    }


def read_moment(root: Path) -> dict[str, Any]:
    """Return temperatures, clocks and available memory. Raw: also zones that are no thermometers."""
    zones = {}
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = number_in(folder / "temp")
        if value is not None:
            name = text_of(folder / "type") or folder.name
            zones[name if name not in zones else f"{name}, {folder.name}"] = value / 1000
    memory = (value_of(root / "proc/meminfo", "MemAvailable", ":") or "").split()
    return {
        "temperatures_c": zones,
        "clocks_mhz": {name: now for name, (now, _, _) in _clocks(root).items() if now is not None},
        "available_bytes": int(memory[0]) * 1024 if memory and memory[0].isdigit() else None,
    }


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
    found = {}
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")):
        khz = (number_in(folder / f"scaling_{name}_freq") for name in ("cur", "min", "max"))
        found[folder.parent.name] = tuple(None if each is None else each / 1e3 for each in khz)
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        hertz = (number_in(folder / name) for name in ("cur_freq", "min_freq", "max_freq"))
        found[folder.name] = tuple(None if each is None else each / 1e6 for each in hertz)
    return found  # type: ignore[return-value]


def _clock_limits(root: Path) -> dict[str, list[float | None]]:
    return {name: [low, high] for name, (_, low, high) in _clocks(root).items()}


def _library(root: Path, name: str) -> str | None:
    """Return the longest version among the file names of a library; None where there is no file."""
    found = {path.name[len(name) + 1 :] for folder in _FOLDERS for path in root.glob(f"{folder}/{name}.*")}
    return max(found, key=lambda version: (version.count("."), version), default=None)


def _cuda(root: Path) -> str | None:
    for name in ("version.json", "version.txt"):
        found = _CUDA.search(text_of(root / "usr/local/cuda" / name) or "")
        if found:
            return found["json"] or found["version"]
    return None


def _numpy() -> str | None:
    """Return the version from the package's metadata; NumPy is not imported in this process."""
    from importlib import metadata

    try:
        return metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return None

"""What the device is: read from /proc, /etc and /var below a root, so that a recorded tree can stand in for a camera.

Nothing is ever written there, and no program is run. Sources: NVIDIA's L4T writes /etc/nv_tegra_release, its nvpmodel
service /etc/nvpmodel.conf and /var/lib/nvpmodel/status; the device tree is the kernel's; the NVIDIA driver's own files
are there where it is the driver of a card.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.agent.modules import fits_module, modules_of
from edgekd.core.procfs import text_of, value_of

_L4T = re.compile(r"# R(?P<major>\d+) \(release\), REVISION: (?P<minor>[\d.]+)")
_MODE = re.compile(r"< *POWER_MODEL +ID=(?P<id>\d+) +NAME=(?P<name>\S+) *>")
_DRIVER = re.compile(r"Kernel Module.*?\s(?P<version>\d+(\.\d+)+)\s")
_FIRMWARE = Path("etc/edgekd/compatible")


@dataclass(frozen=True)
class PowerMode:
    """The mode that nvpmodel has set: its number, and its name where the configuration says it."""

    id: int
    name: str | None


@dataclass(frozen=True)
class Device:
    """A device; what cannot be read is None, or empty.

    firmware: what the firmware calls itself, from /etc/edgekd/compatible; compatible: the names in the device tree;
    l4t: release of Jetson Linux, such as 35.4.1; driver: version of NVIDIA's driver for cards; gpus: their names;
    memory_bytes: of the system, which a Jetson shares with its GPU.
    """

    firmware: str | None
    compatible: tuple[str, ...]
    model: str | None
    serial: str | None
    cpu: str | None
    gpus: tuple[str, ...]
    driver: str | None
    l4t: str | None
    os: str | None
    kernel: str | None
    memory_bytes: int | None
    power_mode: PowerMode | None

    def as_json(self) -> dict[str, Any]:
        """The same, as plain types for JSON."""
        return asdict(self)

    def engine_belongs_to(self) -> dict[str, str | None]:
        """What an engine is made for: where one of these differs, it has to be made again."""
        return {
            "device": " ".join(self.compatible) or None,
            "gpu": ", ".join(self.gpus) or None,
            "cpu": self.cpu,
            "driver": self.driver,
            "l4t": self.l4t,
            "os": self.os,
        }

    def fits(self, compatible: str) -> bool | None:
        """Return whether a bundle for `compatible` is for this device; None where that cannot be known.

        What the firmware calls itself decides; without that the module that the device tree names.
        """
        if self.firmware is not None:
            return self.firmware == compatible
        return fits_module(compatible, self.compatible)

    @property
    def expected_bundle(self) -> str:
        """The bundles that fit, in words for an error."""
        if self.firmware is not None:
            return f"compatible {self.firmware}"
        return "one for " + " or ".join(module.title for module in modules_of(self.compatible))


def read_device(root: Path) -> Device:
    """The device whose system lies below `root`."""
    names = text_of(root / "proc/device-tree/compatible")
    driver = _DRIVER.search(text_of(root / "proc/driver/nvidia/version") or "")
    memory = (value_of(root / "proc/meminfo", "MemTotal", ":") or "").split()
    return Device(
        firmware=text_of(root / _FIRMWARE),
        compatible=tuple(names.split("\0")) if names else (),
        model=text_of(root / "proc/device-tree/model"),
        serial=text_of(root / "proc/device-tree/serial-number"),
        cpu=value_of(root / "proc/cpuinfo", "model name", ":"),
        gpus=_gpus(root / "proc/driver/nvidia/gpus"),
        driver=driver["version"] if driver else None,
        l4t=_l4t(root),
        os=value_of(root / "etc/os-release", "PRETTY_NAME", "="),
        kernel=text_of(root / "proc/sys/kernel/osrelease"),
        memory_bytes=int(memory[0]) * 1024 if memory and memory[0].isdigit() else None,
        power_mode=_power_mode(root),
    )


def _gpus(folder: Path) -> tuple[str, ...]:
    cards = sorted(folder.glob("*/information"))
    return tuple(filter(None, (value_of(card, "Model", ":") for card in cards)))


def _l4t(root: Path) -> str | None:
    found = _L4T.match(text_of(root / "etc/nv_tegra_release") or "")
    return f"{found['major']}.{found['minor']}" if found else None


def _power_mode(root: Path) -> PowerMode | None:
    """What /var/lib/nvpmodel/status has, such as `pmode:0002 fmode:quiet`."""
    found = re.match(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status") or "")
    if not found:
        return None
    names = {int(mode["id"]): mode["name"] for mode in _MODE.finditer(text_of(root / "etc/nvpmodel.conf") or "")}
    return PowerMode(int(found[1]), names.get(int(found[1])))

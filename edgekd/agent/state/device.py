"""Identity of the device, read from /proc and /etc below a root, so that a recorded tree can stand in for a camera.

Nothing is written there, and no program is run. Sources: NVIDIA's L4T writes /etc/nv_tegra_release; the kernel has the
device tree; the NVIDIA driver of a card has files of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from edgekd.agent.state.modules import fits_module, modules_of
from edgekd.core.machine_state import PowerMode, read_power_mode
from edgekd.core.procfs import text_of, value_of

_L4T = re.compile(r"# R(?P<major>\d+) \(release\), REVISION: (?P<minor>[\d.]+)")
_DRIVER = re.compile(r"Kernel Module.*?\s(?P<version>\d+(\.\d+)+)\s")
_FIRMWARE = Path("etc/edgekd/compatible")


@dataclass(frozen=True)
class DeviceFacts:
    """Facts on a device that do not identify it; one that cannot be read is null, or empty.

    Args:
        firmware: Name in its firmware, by /etc/edgekd/compatible.
        compatible: Names in the device tree.
        model: Model in the device tree.
        cpu: Model of the processor.
        gpus: Names of the cards of NVIDIA's driver.
        driver: Version of NVIDIA's driver for cards.
        os: Name and version of the system, by /etc/os-release.
        memory_bytes: Memory of the system, which a Jetson shares with its GPU.
    """

    firmware: str | None
    compatible: tuple[str, ...]
    model: str | None
    cpu: str | None
    gpus: tuple[str, ...]
    driver: str | None
    os: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Device(DeviceFacts):
    """A device; a fact that cannot be read is null, or empty.

    Args:
        serial: Serial number in the device tree.
        l4t: Release of Jetson Linux, such as 35.4.1.
        kernel: Release of the kernel.
        power_mode: Mode that nvpmodel has set.
    """

    serial: str | None
    l4t: str | None
    kernel: str | None
    power_mode: PowerMode | None

    @property
    def facts(self) -> DeviceFacts:
        """The facts that do not identify it."""
        return DeviceFacts(**{each.name: getattr(self, each.name) for each in fields(DeviceFacts)})

    def engine_belongs_to(self) -> dict[str, str | None]:
        """Return what an engine depends on: where one of these differs, it has to be rebuilt."""
        return {
            "device": " ".join(self.compatible) or None,
            "gpu": ", ".join(self.gpus) or None,
            "cpu": self.cpu,
            "driver": self.driver,
            "l4t": self.l4t,
            "os": self.os,
        }

    def fits(self, compatible: str) -> bool | None:
        """Return whether a bundle for `compatible` is for this device; None where that is unknown.

        The name in the firmware decides; without one the module in the device tree.
        """
        if self.firmware is not None:
            return self.firmware == compatible
        return fits_module(compatible, self.compatible)

    @property
    def expected_bundle(self) -> str:
        """Description of the bundles that fit, for an error."""
        if self.firmware is not None:
            return f"compatible {self.firmware}"
        return "one for " + " or ".join(module.title for module in modules_of(self.compatible))


def read_device(root: Path) -> Device:
    """Return the device whose system lies below `root`."""
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
        power_mode=read_power_mode(root),
    )


def _gpus(folder: Path) -> tuple[str, ...]:
    cards = sorted(folder.glob("*/information"))
    return tuple(filter(None, (value_of(card, "Model", ":") for card in cards)))


def _l4t(root: Path) -> str | None:
    release = _L4T.match(text_of(root / "etc/nv_tegra_release") or "")
    return f"{release['major']}.{release['minor']}" if release else None

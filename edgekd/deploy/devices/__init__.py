"""Devices that run a bundle's agent; those on this machine also run graphs in this process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgekd.deploy.devices.connection import Connection, Stop


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it; None for values that the driver does not report."""

    name: str
    driver: str
    compute_capability: str
    memory_bytes: int | None


@dataclass(frozen=True)
class HostFacts:
    """Description of the machine of a measurement; None for unreadable values.

    cores: usable by this process; threads: used by the runtime; governor: CPU frequency policy; clock_mhz: of the first
    core at the time of reading; libraries: versions by name.
    """

    device: str
    engine: str
    cpu: str
    cores: int
    threads: int
    governor: str | None
    clock_mhz: float | None
    memory_bytes: int | None
    board: str | None
    os: str
    kernel: str
    machine: str
    python: str
    libraries: dict[str, str] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()


class AgentDevice(Protocol):
    """A machine that runs a bundle's agent: this one, or a camera over SSH."""

    @property
    def name(self) -> str:
        """Name on the command line, such as `local`."""
        ...

    @property
    def runtime(self) -> str | None:
        """Default runtime of the agent; None if the agent chooses."""
        ...

    def connect(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Connection]:
        """Connect to the device. Raises DeviceError.

        python: its interpreter, None for the default; stop: interrupts the work from another thread.
        """
        ...

"""Devices on which bundles are built, tested and timed, and graphs run, behind one protocol."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.graph.runtimes.types import Session

if TYPE_CHECKING:
    from edgekd.deploy.devices.session import Site, Stop


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it; what the driver does not say is None."""

    name: str
    driver: str
    compute_capability: str
    memory_bytes: int | None


@dataclass(frozen=True)
class HostFacts:
    """Description of the machine of a measurement; None for what cannot be read.

    cores: usable by this process; threads: used by the engine; governor: the CPU frequency policy;
    clock_mhz: of the first core when asked; libraries: name to version.
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

    def as_json(self) -> dict[str, Any]:
        """The same, as plain types for JSON."""
        return asdict(self)


class Device(Protocol):
    """A machine on which a bundle's agent works: this one, or a camera over SSH."""

    @property
    def name(self) -> str:
        """Name that users write, such as `local`."""
        ...

    @property
    def runtime(self) -> str | None:
        """Runtime that is used there by default; None where the agent chooses."""
        ...

    def site(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Site]:
        """The device, open for work; `python` is its interpreter, None for the usual one. Raises DeviceError.

        stop: ends the work from another thread.
        """
        ...


class GraphDevice(Device, Protocol):
    """A device that also runs graphs in this process, frame by frame: this machine, and its fake."""

    def facts(self) -> HostFacts:
        """Return a description of the machine."""
        ...

    def load(self, graph: Path) -> Session:
        """Open the ONNX file `graph` there. Raises DeviceError."""
        ...

    def load_streams(self, graph: Path, streams: int) -> tuple[Session, ...]:
        """Open it for as many frames at once, a session for each. Raises DeviceError."""
        ...

    def clock(self) -> float:
        """Seconds, from any fixed beginning: the clock that measurements on this device use."""
        ...

"""Devices on which bundles are built, tested and timed, and graphs run, behind one protocol."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekd.core.host_facts import HostFacts
from edgekd.graph.runtimes.types import Session

if TYPE_CHECKING:
    from edgekd.deploy.devices.session import Site, Stop


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

"""Devices that run an agent; those on this machine also run graphs in this process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgekd.deploy.devices.connection import Connection, Stop


class AgentDevice(Protocol):
    """A machine that runs an agent: this one, or a camera over SSH."""

    @property
    def name(self) -> str:
        """Name on the command line, such as `local`."""
        ...

    @property
    def runtime(self) -> str | None:
        """Default runtime of the agent; None if the agent chooses."""
        ...

    @property
    def remote(self) -> bool:
        """True for another machine; this one runs no agent of a bundle."""
        ...

    def connect(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Connection]:
        """Connect to the device. Raises DeviceError.

        python: its interpreter, None for the default; stop: interrupts the work from another thread.
        """
        ...

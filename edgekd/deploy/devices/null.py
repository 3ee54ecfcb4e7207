"""A device that computes nothing and has scripted latencies, for tests of measurements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.core.errors import SpecError
from edgekd.core.host_facts import HostFacts
from edgekd.graph.runtimes.types import Session

if TYPE_CHECKING:
    from edgekd.deploy.devices.connection import Connection, Stop


class NullDevice:
    """Runs every graph by returning `output` after the next of `latencies_s`, which repeat, on its own clock."""

    name = "null"
    runtime: str | None = "null"
    remote = False

    def __init__(self, latencies_s: Sequence[float] = (0.010,), output: np.ndarray | None = None) -> None:
        if not latencies_s or min(latencies_s) <= 0:
            raise SpecError("a null device needs latencies", expected="seconds above 0", found=str(list(latencies_s)))
        self._latencies_s = itertools.cycle(latencies_s)
        self._output = np.zeros((1, 300, 6), np.float32) if output is None else output
        self._now_s = 0.0

    def connect(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Connection]:
        """Connect to this machine, for the agent's null runtime. Raises DeviceError."""
        from edgekd.deploy.devices.process import connect_local

        return connect_local(self.name, python, stop)

    def facts(self) -> HostFacts:
        """Return a constant description."""
        return HostFacts(
            device=self.name,
            engine="null",
            cpu="none",
            cores=1,
            threads=1,
            governor=None,
            clock_mhz=None,
            memory_bytes=None,
            board=None,
            os="none",
            kernel="none",
            machine="none",
            python="none",
        )

    def load(self, graph: Path) -> ScriptedSession:
        """Return a session that ignores `graph`."""
        return ScriptedSession(self)

    def load_streams(self, graph: Path, streams: int) -> tuple[ScriptedSession, ...]:
        """Return a session for each stream; their latencies add up."""
        return tuple(self.load(graph) for _ in range(streams))

    def clock(self) -> float:
        """Return the seconds since the device was made, advanced by runs and `advance` alone."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self._now_s += seconds

    def infer(self) -> np.ndarray:
        """Advance the clock by the next latency, and return the scripted output."""
        self.advance(next(self._latencies_s))
        return self._output


class ScriptedSession(Session):
    """A session on a null device."""

    title = "null"
    outputs = ("output",)

    def __init__(self, device: NullDevice) -> None:
        self._device = device

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        return self._device.infer()

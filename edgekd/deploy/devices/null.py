"""A device that computes nothing and takes exactly as long as it was told: for tests of what measures devices."""

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
    from edgekd.deploy.devices.session import Site, Stop


class NullDevice:
    """Runs every graph by returning `output` after the next of `latencies_s`, which repeat; time is its own clock's."""

    name = "null"
    runtime: str | None = "null"

    def __init__(self, latencies_s: Sequence[float] = (0.010,), output: np.ndarray | None = None) -> None:
        if not latencies_s or min(latencies_s) <= 0:
            raise SpecError("a null device needs latencies", expected="seconds above 0", found=str(list(latencies_s)))
        self._latencies_s = itertools.cycle(latencies_s)
        self._output = np.zeros((1, 300, 6), np.float32) if output is None else output
        self._now_s = 0.0

    def site(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Site]:
        """This machine, open for a bundle's agent, whose null runtime computes nothing. Raises DeviceError."""
        from edgekd.deploy.devices.process import local_site

        return local_site(self.name, python, stop)

    def facts(self) -> HostFacts:
        """Facts that never change."""
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

    def load(self, graph: Path) -> NullSession:
        """A session that does not look at `graph`."""
        return NullSession(self)

    def load_streams(self, graph: Path, streams: int) -> tuple[NullSession, ...]:
        """A session for each stream; they take their time one after the other."""
        return tuple(self.load(graph) for _ in range(streams))

    def clock(self) -> float:
        """Seconds since the device was made: only runs and `advance` move it."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._now_s += seconds

    def infer(self) -> np.ndarray:
        """Let the next latency pass; the scripted output."""
        self.advance(next(self._latencies_s))
        return self._output


class NullSession(Session):
    """A session on a null device."""

    title = "null"
    outputs = ("output",)

    def __init__(self, device: NullDevice) -> None:
        self._device = device

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        return self._device.infer()

"""How long a detector takes on what it is made for: measured on this machine, or predicted for another one.

A choice between two detectors asks a `Latency` and need not know which it is; what is told of the choice says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgekd.compress.channels import Cost
from edgekd.data.dataset import Split
from edgekd.devices.local import LocalDevice
from edgekd.stages import Stages
from edgekd.store import Stage
from edgekd.target import Target


class Latency(Protocol):
    """basis: `measured`, `stand-in` or `predicted`; where: on what, in words; identity: what a choice by it depends on.

    cost: of a convolution, in microseconds; None where only whole networks are timed.
    """

    @property
    def basis(self) -> str: ...

    @property
    def where(self) -> str: ...

    @property
    def identity(self) -> Any: ...

    @property
    def cost(self) -> Cost | None: ...

    def of_both(self, before: Stage, after: Stage) -> tuple[float, float]:
        """Milliseconds a frame of two graphs."""
        ...


@dataclass(frozen=True)
class Measured:
    """On this machine, both graphs in turns, from frame to detections, median."""

    stages: Stages
    split: Split
    data: str
    device: LocalDevice
    basis: str = "measured"
    cost: Cost | None = None
    identity: Any = None

    @property
    def where(self) -> str:
        """The engine."""
        return f"{self.device.engine.name} on this machine"

    def of_both(self, before: Stage, after: Stage) -> tuple[float, float]:
        """Milliseconds a frame of two graphs."""
        found = self._timed(before, after)
        return found["before"]["total_ms"]["p50"], found["after"]["total_ms"]["p50"]

    def host(self, before: Stage, after: Stage) -> Mapping[str, Any]:
        """What the machine was when these two were timed."""
        found: Mapping[str, Any] = self._timed(before, after)["host"]
        return found

    def _timed(self, before: Stage, after: Stage) -> Mapping[str, Any]:
        return self.stages.benchmark(before, after, self.split, self.data, self.device, self.basis).results


def latency_on(target: Target | None, measured: Measured) -> Latency:
    """Of what decides for a target: its prediction where there are figures to predict from, else what is measured here.

    Measured here for a target that is no CPU is a stand-in, and says so.
    """
    if target is None or target.kind == "cpu":
        return measured
    return replace(measured, basis="stand-in")

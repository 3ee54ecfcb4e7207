"""How long a detector takes on what it is made for: measured on this machine, or predicted for another one.

A choice between two detectors asks a `Latency` and need not know which it is; what is told of the choice says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import GRAPH, Stages
from edgekd.compress.pruning import Convolution, Cost
from edgekd.data.types import Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.latency import Predictor, narrowest
from edgekd.hardware.predict.work import convolution
from edgekd.hardware.target import Target


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
        found = self.timed(before, after)
        return found["before"]["total_ms"]["p50"], found["after"]["total_ms"]["p50"]

    def host(self, before: Stage, after: Stage) -> Mapping[str, Any]:
        """What the machine was when these two were timed."""
        found: Mapping[str, Any] = self.timed(before, after)["host"]
        return found

    def timed(self, before: Stage, after: Stage) -> Mapping[str, Any]:
        """`host`, and a summary of each: `before`, `after`."""
        return self.stages.benchmark(before, after, self.split, self.data, self.device, self.basis).results


@dataclass(frozen=True)
class Predicted:
    """For a target that is not here: engine only, from the figures in its file."""

    predictor: Predictor
    basis: str = "predicted"

    @property
    def where(self) -> str:
        """Target and precision."""
        return f"{self.predictor.target.title} in {self.predictor.device.precision}"

    @property
    def identity(self) -> Any:
        """The numbers that are computed with."""
        predictor = self.predictor
        return [asdict(predictor.device), asdict(predictor.model.coefficients), predictor.correction]

    def cost(self, layer: Convolution) -> float:
        """Microseconds of a convolution with its activation; none of one that does not ship."""
        if not layer.positions:
            return 0.0
        shape = (layer.inputs, layer.outputs, layer.positions, layer.kernel)
        return self.predictor.layer_us(convolution("", *shape, stride=layer.stride, depthwise=layer.depthwise))

    def of_both(self, before: Stage, after: Stage) -> tuple[float, float]:
        """Milliseconds a frame of two graphs."""
        found = [self.predictor.predict(works_in(stage.path / GRAPH)).latency_ms for stage in (before, after)]
        return found[0], found[1]


def latency_on(target: Target | None, measured: Measured) -> Latency:
    """What decides for a target: its prediction, in the narrowest precision that there are figures for.

    Without figures it is what is measured here, which for a target that is no CPU is a stand-in, and says so.
    """
    if target is None or target.kind == "cpu":
        return measured
    predictor = narrowest(target)
    return Predicted(predictor) if predictor else replace(measured, basis="stand-in")

"""Latency of detectors on their target: measured on this machine, or predicted for another one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from edgekd.builds.stages import benchmark
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.builds.stages.benchmark import TimingResult
from edgekd.compress.pruning import Convolution, CostFunction
from edgekd.core.benchmark import Basis as TimingBasis
from edgekd.data.types import Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.hardware.budget import Basis
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.latency import Predictor, narrowest
from edgekd.hardware.predict.work import convolution
from edgekd.hardware.target import Target


class LatencySource(Protocol):
    """The latency by which two detectors are compared.

    Args:
        basis: `measured`, `stand-in` or `predicted`.
        where: Machine or target, for people.
        identity: Values that a choice by this latency depends on, for keys of stages.
        cost: Returns the microseconds of a convolution; None if only whole networks are timed.
    """

    @property
    def basis(self) -> Basis: ...

    @property
    def where(self) -> str: ...

    @property
    def identity(self) -> Any: ...

    @property
    def cost(self) -> CostFunction | None: ...

    def of_both(self, before: GraphStage, after: GraphStage) -> tuple[float, float]:
        """Return the milliseconds of a frame for two graphs."""
        ...


@dataclass(frozen=True)
class Measured:
    """Median latency on this machine from frame to detections, both graphs interleaved.

    data: the fingerprint of the split.
    """

    context: StageContext
    split: Split
    data: str
    device: LocalDevice
    basis: TimingBasis = "measured"
    cost: CostFunction | None = None
    identity: Any = None

    @property
    def where(self) -> str:
        """The runtime."""
        return f"{self.device.engine.name} on this machine"

    def of_both(self, before: GraphStage, after: GraphStage) -> tuple[float, float]:
        """Return the milliseconds of a frame for two graphs."""
        timing = self.timed(before, after)
        return timing.before.total_ms.p50, timing.after.total_ms.p50

    def timed(self, before: GraphStage, after: GraphStage) -> TimingResult:
        """Return the times of two graphs, measured now or found in the store."""
        stage = benchmark.run(self.context, before, after, self.split, self.data, self.device, self.basis)
        return stage.result


@dataclass(frozen=True)
class Predicted:
    """Predicted latency of the engine alone on a target, from the figures in the target's file."""

    predictor: Predictor
    basis: Basis = "predicted"

    @property
    def where(self) -> str:
        """Target and precision."""
        return f"{self.predictor.target.title} in {self.predictor.device.precision}"

    @property
    def identity(self) -> Any:
        """The numbers that determine the prediction."""
        predictor = self.predictor
        return [asdict(predictor.device), asdict(predictor.model.coefficients), predictor.correction]

    def cost(self, layer: Convolution) -> float:
        """Return the microseconds of a convolution with its activation; 0 for one that is not in the exported graph."""
        if not layer.positions:
            return 0.0
        shape = (layer.inputs, layer.outputs, layer.positions, layer.kernel)
        return self.predictor.layer_us(convolution("", *shape, stride=layer.stride, depthwise=layer.depthwise))

    def of_both(self, before: GraphStage, after: GraphStage) -> tuple[float, float]:
        """Return the milliseconds of a frame for two graphs."""
        first, last = (self.predictor.predict(works_in(stage.path / GRAPH)).latency_ms for stage in (before, after))
        return first, last


def latency_on(target: Target | None, measured: Measured) -> LatencySource:
    """Return the source of latencies for a target: predicted in the narrowest precision with figures.

    Without figures it is measured on this machine, as a stand-in unless the target is a CPU or None.
    """
    if target is None or target.kind == "cpu":
        return measured
    predictor = narrowest(target)
    return Predicted(predictor) if predictor else replace(measured, basis="stand-in")

"""The result of `edgekd engine`, of one device and of a fleet, as docs/json.md describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgekd.agent.engines.choice import Measurement, TuningLimits
from edgekd.agent.engines.records import PartErrors, RuntimeVersion
from edgekd.core.benchmark import Stats
from edgekd.core.documents import INLINE, Result
from edgekd.core.machine_state import PowerMode
from edgekd.core.power.energy import Energy
from edgekd.core.statistics import Outliers, SlowDown

Basis = Literal["measured", "rehearsed"]
"""`rehearsed`: by the null runtime, which computes nothing."""


@dataclass(frozen=True)
class DeviceReport:
    """The device; a fact that cannot be read is null, or empty.

    Args:
        name: Name of the device, as given.
        firmware: Name in its firmware, by /etc/edgekd/compatible.
        compatible: Names in the device tree.
        model, serial: Model, and serial number, in the device tree.
        cpu: Model of the processor.
        gpus: Names of the cards of NVIDIA's driver.
        driver: Version of NVIDIA's driver for cards.
        l4t: Release of Jetson Linux, such as 35.4.1.
        os: Name and version of the system, by /etc/os-release.
        kernel: Release of the kernel.
        memory_bytes: Memory of the system.
        power_mode: Mode that nvpmodel has set.
    """

    name: str
    firmware: str | None
    compatible: tuple[str, ...]
    model: str | None
    serial: str | None
    cpu: str | None
    gpus: tuple[str, ...]
    driver: str | None
    l4t: str | None
    os: str | None
    kernel: str | None
    memory_bytes: int | None
    power_mode: PowerMode | None

    @property
    def where(self) -> str:
        """Return the device for people."""
        return self.model or self.cpu or self.name


@dataclass(frozen=True)
class DeviceEngine:
    """The engine on the device.

    Args:
        slot: Name of its slot.
        key: Name of the engine: a hash of all that it belongs to.
        file: Path of the engine.
        bytes: Its size.
        seconds: Duration of its build.
        changed: False where it was built already.
        layers: Number of layers by the precision that they compute in; null where the runtime does not report it.
        float_layers: Layers that are INT8 in the graph and were built in float: no INT8 kernel was found for them, or
            `--tune` chose it.
        missing_scales: Activations without an INT8 scale, next to which the DLA's layers run in FP16; null where no
            calibration cache was used.
    """

    slot: str
    key: str
    file: str
    bytes: int | None
    seconds: float | None
    changed: bool
    layers: Mapping[str, int] | None
    float_layers: tuple[str, ...]
    missing_scales: tuple[str, ...] | None


@dataclass(frozen=True)
class TunedAccuracy:
    """Accuracy of the form that `--tune` chose.

    Args:
        images: Number of scored images.
        map50_95: COCO's mAP50-95.
        retention: Its share of the mAP50-95 before compression; null where that is 0.
        min_retention: Least share that the bundle was built to keep; null without that limit.
    """

    images: int
    map50_95: float
    retention: float | None
    min_retention: float | None


@dataclass(frozen=True)
class Tuning:
    """The choice of `--tune`.

    Args:
        source: `graph`: the bundle's graph; `float`: the same network without Q/DQ.
        float_layers: Names of the graph's layers whose Q/DQ is left out.
        candidates: Forms that were compared, the shipped one first; empty without a comparison.
        limits: Limits of the comparison; null without one.
        accuracy: Score of that form on `--data`; null without it.
    """

    source: Literal["graph", "float"]
    float_layers: tuple[str, ...]
    candidates: tuple[Measurement, ...]
    limits: TuningLimits | None
    accuracy: TunedAccuracy | None = None


@dataclass(frozen=True)
class SelfTestSummary:
    """The golden frames through the engine.

    Args:
        passed: True where both errors are within the tolerance.
        precision: Precision of the graph.
        frames: Number of golden frames.
        error: Relative errors of the engine.
        tolerance: Maximum relative errors.
    """

    passed: bool
    precision: Literal["float", "int8"]
    frames: int
    error: PartErrors
    tolerance: PartErrors


@dataclass(frozen=True)
class EngineTimes:
    """The engine alone, timed on the device.

    Args:
        iterations: Number of runs that were timed.
        fps: Runs a second, one after the other; null where `refused` has the reason.
        refused: Figures that are not reported, each with its reason and remedy.
        slow_down: Null where the run did not become slower.
        energy: Energy of a run; null where `refused` has the reason.
    """

    iterations: int
    fps: float | None
    refused: tuple[str, ...]
    inference_ms: Stats
    slow_down: SlowDown | None
    outliers: Outliers
    energy: Energy | None


@dataclass(frozen=True)
class Upload:
    """Bundle and agent.

    Args:
        bytes: Their size.
        sent_bytes: Bytes that were not on the device yet.
    """

    bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class StepTime:
    """A step.

    Args:
        name: `upload`, `score`, or a command of the agent.
        seconds: Wall time, from here.
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class EngineResult(Result):
    """A bundle on a device.

    Args:
        bundle: Path of the bundle here.
        identity: Identity of the bundle.
        name: Name of the model.
        target: Name of the target that it was built for.
        fits: True where the device reports that it is that target; null where that cannot be known.
        basis: `measured` by the runtime on the device, or `rehearsed` by the null runtime, which computes nothing.
        tuning: Null without `--tune`.
        activated: True where it is in service now, as `--activate` asks for.
        steps: The steps, in their order.
    """

    bundle: Path
    identity: str
    name: str
    target: str
    fits: bool | None
    device: DeviceReport
    basis: Basis
    runtime: RuntimeVersion
    engine: DeviceEngine
    tuning: Tuning | None
    self_test: SelfTestSummary
    bench: EngineTimes
    activated: bool
    upload: Upload
    steps: tuple[StepTime, ...]


@dataclass(frozen=True)
class BoardError:
    """The error of a board.

    Args:
        kind: Class of the error, such as DeviceError.
        text: All of it, on one line.
        what: The problem.
        expected, found: What would have been right, and what there was.
        fix: The remedy.
    """

    kind: str
    text: str
    what: str
    expected: str | None
    found: str | None
    fix: str | None


@dataclass(frozen=True)
class BoardMeasurement:
    """The work on a board.

    Args:
        measured_at: Its beginning in UTC, as ISO 8601.
        seconds: Wall time, from here.
        jetpack: JetPack of the board's release of Jetson Linux; null where that is not known.
        error: Why there is no result.
        result: The result of `edgekd engine --device`; null after an error.
    """

    measured_at: str
    seconds: float
    jetpack: str | None
    error: BoardError | None
    result: EngineResult | None


@dataclass(frozen=True)
class FleetBoard:
    """A board of a fleet.

    Args:
        name: Its name in the fleet's file.
        device: Its address there.
        kept: True where it was measured by an earlier call, and not again.
    """

    name: str
    device: str
    measurement: BoardMeasurement = field(metadata=INLINE)
    kept: bool


@dataclass(frozen=True)
class FleetResult(Result):
    """A bundle on each board of a fleet.

    Args:
        bundle: Path of the bundle here.
        name: Name of the model.
        target: Name of the target that it was built for.
        out: Folder of results: this document, and in `boards` that of each board.
        passed: True where every board did all steps.
        boards: Every board, in the order of the fleet's file.
    """

    bundle: Path
    name: str
    target: str
    out: Path
    passed: bool
    boards: tuple[FleetBoard, ...]

    @property
    def exit_status(self) -> int:
        """1 where a board failed."""
        return 0 if self.passed else 1

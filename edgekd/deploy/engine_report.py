"""Result of `edgekd engine` on one device: what the agent reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgekd.agent.engines.choice import RelativeTime, TuningLimits
from edgekd.agent.engines.records import PartErrors, RuntimeVersion
from edgekd.agent.runtimes.types import Source
from edgekd.core.benchmark import RunSummary, Stats
from edgekd.core.documents import Result
from edgekd.core.machine_state import PowerMode
from edgekd.core.power.energy import Energy
from edgekd.deploy.tuned_accuracy import TunedAccuracy


@dataclass(frozen=True)
class DeviceReport:
    """The device; null or empty for unreadable values.

    Args:
        name: Value of `--device`.
        firmware: Name of the firmware, from /etc/edgekd/compatible.
        compatible: Names in the device tree.
        model: Model in the device tree.
        serial: Serial number in the device tree.
        cpu: Model of the processor.
        gpus: Cards of the NVIDIA driver.
        driver: Version of NVIDIA's driver for cards.
        l4t: Release of Jetson Linux.
        os: Name of the system in /etc/os-release.
        kernel: Release of the kernel.
        memory_bytes: Memory of the system.
        power_mode: Mode set by nvpmodel.
    """

    name: str
    firmware: str | None = None
    compatible: tuple[str, ...] = ()
    model: str | None = None
    serial: str | None = None
    cpu: str | None = None
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    l4t: str | None = None
    os: str | None = None
    kernel: str | None = None
    memory_bytes: int | None = None
    power_mode: PowerMode | None = None


@dataclass(frozen=True)
class EngineReport:
    """The engine on the device.

    Args:
        slot: Slot of the engine: `a` or `b`.
        key: Name of the engine: a hash of all that it depends on.
        file: Path on the device.
        bytes: Size of the file.
        seconds: Build time.
        changed: False if it was built before.
        layers: Number of layers by precision; null where the runtime does not report it.
        float_layers: INT8 layers of the graph that were built in float, for lack of a kernel or by `--tune`.
        missing_scales: Activations without an INT8 scale, around which a DLA computes in FP16; null without a
            calibration cache.
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
class FormReport:
    """A form of the network, built and tested.

    Args:
        source: `graph`, or `float` for the network without Q/DQ.
        float_layers: Layers of the graph whose Q/DQ is left out.
        key: Name of its engine; null where it could not be built.
        passed: Whether it passed the self-test.
        found: Reason of a failure; null where it passed.
        ms: Time of a run; null where it could not be built.
    """

    source: Source
    float_layers: tuple[str, ...]
    key: str | None
    passed: bool
    found: str | None
    ms: RelativeTime | None


@dataclass(frozen=True)
class TuningReport:
    """Choice of `--tune`.

    Args:
        source: `graph`, or `float` for the network without Q/DQ.
        float_layers: Layers of the graph whose Q/DQ is left out.
        candidates: Compared forms, the shipped one first; empty without a comparison.
        limits: Null without a comparison.
        accuracy: Null without `--data`.
    """

    source: Source
    float_layers: tuple[str, ...]
    candidates: tuple[FormReport, ...]
    limits: TuningLimits | None
    accuracy: TunedAccuracy | None = None


@dataclass(frozen=True)
class SelfTestErrors:
    """Errors of the engine on the golden frames.

    Args:
        passed: Whether both errors are within tolerance.
        precision: Precision of the graph: `float` or `int8`.
        frames: Number of golden frames.
        error: Largest relative errors over all frames.
        tolerance: Largest allowed errors.
    """

    passed: bool
    precision: str
    frames: int
    error: PartErrors
    tolerance: PartErrors


@dataclass(frozen=True)
class EngineLatency(RunSummary):
    """Latency of the engine alone.

    Args:
        inference_ms: Statistics over all runs, in milliseconds.
        energy: Energy of a run; null where `refused` has the reason.
    """

    inference_ms: Stats
    energy: Energy | None


@dataclass(frozen=True)
class UploadReport:
    """Transfer to the device.

    Args:
        bytes: Size of the bundle and its agent.
        sent_bytes: Bytes that were not on the device yet.
    """

    bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class StepTime:
    """Duration of a step.

    Args:
        name: `upload`, or a command of the agent.
        seconds: Wall time on this host.
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class InstallReport(Result):
    """A bundle's engine, built, tested and timed on a device.

    Args:
        bundle: Path of the bundle on this host.
        identity: SHA-256 of its manifest.
        name: Name of the model.
        target: Name of the target that it was built for.
        fits: Whether the device is that target; null if unknown.
        basis: `measured` by the runtime on the device, or `rehearsed` by the null runtime, which computes nothing.
        tuning: Null without `--tune`.
        activated: Whether it was put into service.
        steps: Steps, in order.
    """

    bundle: str
    identity: str
    name: str
    target: str
    fits: bool | None
    device: DeviceReport
    basis: Literal["measured", "rehearsed"]
    runtime: RuntimeVersion
    engine: EngineReport
    tuning: TuningReport | None
    self_test: SelfTestErrors
    bench: EngineLatency
    activated: bool
    upload: UploadReport
    steps: tuple[StepTime, ...]

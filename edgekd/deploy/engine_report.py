"""Result of `edgekd engine`: what the agent reported of one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.agent.engines.records import PartErrors, RuntimeVersion
from edgekd.core.benchmark import Stats
from edgekd.core.machine_state import PowerMode
from edgekd.deploy.tuned_accuracy import TunedAccuracy


@dataclass(frozen=True)
class DeviceReport:
    """The device; None or empty for unreadable values.

    name: as passed to `--device`; the others: see `agent.state.device.Device`.
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

    key: hash of all that it depends on; seconds: build time; changed: False if it was built before; layers: number by
    precision; float_layers: INT8 layers of the graph that were built in float; missing_scales: activations without an
    INT8 scale; None without a calibration cache.
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
class TuningReport:
    """Choice of `--tune`. candidates: compared forms, the shipped one first; accuracy: None without `--data`."""

    source: str
    float_layers: tuple[str, ...]
    candidates: tuple[Mapping[str, Any], ...]
    limits: Mapping[str, Any]
    accuracy: TunedAccuracy | None = None


@dataclass(frozen=True)
class SelfTestReport:
    """Errors of the engine on the golden frames, and their tolerances. precision: of the graph."""

    passed: bool
    precision: str
    frames: int
    error: PartErrors
    tolerance: PartErrors


@dataclass(frozen=True)
class LatencyReport:
    """Latency of the engine alone, and its energy; `refused` has the reasons for a figure that is None."""

    iterations: int
    fps: float | None
    refused: tuple[str, ...]
    inference_ms: Stats
    slow_down: Mapping[str, Any] | None
    outliers: Mapping[str, Any]
    energy: Mapping[str, Any] | None


@dataclass(frozen=True)
class UploadReport:
    """Size of the bundle and its agent, and the bytes that had to be sent."""

    bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class StepTime:
    """Duration of a step."""

    name: str
    seconds: float


@dataclass(frozen=True)
class InstallReport:
    """Result for one device; docs/json.md explains every field."""

    bundle: str
    identity: str
    name: str
    target: str
    fits: bool | None
    device: DeviceReport
    basis: str
    runtime: RuntimeVersion
    engine: EngineReport
    tuning: TuningReport | None
    self_test: SelfTestReport
    bench: LatencyReport
    activated: bool
    upload: UploadReport
    steps: tuple[StepTime, ...]

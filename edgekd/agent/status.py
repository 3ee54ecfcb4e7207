"""Descriptions of bundles, engines and slots for the output of the agent, and the command `status`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.engine import Engine, engine_of, fitting_engine
from edgekd.agent.engines.records import Change, FailedBuild, RuntimeVersion, SelfTest
from edgekd.agent.runtimes.precision import Shares
from edgekd.agent.state.device import Device, read_device
from edgekd.agent.state.documents import INLINE
from edgekd.agent.state.slots import Slot, State, model_names
from edgekd.agent.state.trial import TrialStatus, read_uptime
from edgekd.agent.trust_state import TrustStatus, counter, trust_status
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.version import __version__


@dataclass(frozen=True)
class BundleStatus:
    """A bundle, for output. identity: SHA-256 of its manifest; target, compatible: the device that it is for."""

    identity: str
    name: str
    counter: int
    created_by: str
    target: str
    compatible: str


@dataclass(frozen=True)
class EngineStatus:
    """An engine, for output. precision: that was requested."""

    key: str
    file: Path
    runtime: RuntimeVersion
    precision: str
    seconds: float | None
    bytes: int | None


@dataclass(frozen=True)
class TestedEngine:
    """An engine with its self-test."""

    engine: EngineStatus = field(metadata=INLINE)
    self_test: SelfTest | None


@dataclass(frozen=True)
class BuildDetails:
    """The record of a build, for output. layers, share: by the precision that the engine computes in."""

    layers: Mapping[str, int] | None
    share: Shares | None
    unread: str | None
    allowed: Sequence[str]
    fallbacks: Sequence[str]
    float_layers: Sequence[str]
    attempts: Sequence[FailedBuild]
    missing_scales: Sequence[str] | None
    log: Sequence[str]
    command: str | None


@dataclass(frozen=True)
class ServiceStatus:
    """Names of the slots in service and before, and identity and engine of the bundle in service."""

    active: str | None
    identity: str | None
    key: str | None
    previous: str | None


def bundle_status(manifest: Manifest, identity: str) -> BundleStatus:
    """Describe a bundle."""
    target = manifest.target
    return BundleStatus(identity, manifest.name, manifest.counter, manifest.created_by, target.name, target.compatible)


def engine_status(engine: Engine) -> EngineStatus:
    """Describe an engine."""
    record = engine.record
    return EngineStatus(engine.name, engine.file, record.key.runtime, record.precision, record.seconds, record.bytes)


def tested_engine_status(engine: Engine) -> TestedEngine:
    """Describe an engine with its self-test."""
    return TestedEngine(engine_status(engine), engine.self_test)


def build_details(engine: Engine) -> BuildDetails:
    """Describe the build of an engine."""
    record, details = engine.record, engine.record.details
    return BuildDetails(
        record.realized.layers if record.realized else None,
        record.realized.share if record.realized else None,
        record.unread,
        record.allowed,
        record.fallbacks,
        record.form.float_layers,
        record.attempts,
        details.get("missing_scales"),
        details.get("log", []),
        details.get("command"),
    )


def service_status(state: State) -> ServiceStatus:
    """Describe what is in service."""
    active, previous = state.active, state.previous
    return ServiceStatus(
        active.name if active else None,
        active.identity if active else None,
        active.engine.name if active and active.engine else None,
        previous.name if previous else None,
    )


@dataclass(frozen=True)
class SlotEngine:
    """The engine of a slot. stale: changes since its build, None without a runtime."""

    tested: TestedEngine = field(metadata=INLINE)
    stale: Sequence[Change] | None


@dataclass(frozen=True)
class SlotStatus:
    """A slot with its bundle and its engine."""

    bundle: BundleStatus = field(metadata=INLINE)
    slot: str
    engine: SlotEngine | None


@dataclass(frozen=True)
class DiskStatus:
    """Size of the disk with the state folder."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class StatusResult:
    """Result of `status`."""

    agent: str
    state: Path
    model: str | None
    models: Sequence[str]
    active: SlotStatus | None
    candidate: SlotStatus | None
    previous: SlotStatus | None
    rejected: str | None
    trial: TrialStatus | None
    counter: int
    trust: TrustStatus | None
    runtime: RuntimeVersion | None
    device: Device
    disk: DiskStatus


def status(camera: Camera) -> StatusResult:
    """Describe what is in service, the candidate, and the device. Changes nothing, and waits for no lock."""
    state, runtime = camera.state, camera.runtime
    existing = next(path for path in (state.root, *state.root.absolute().parents) if path.is_dir())
    disk, record = shutil.disk_usage(existing), state.activation
    return StatusResult(
        agent=__version__,
        state=state.root,
        model=state.model,
        models=[name for name in model_names(state.base) if name],
        active=_slot_status(camera, state.active),
        candidate=_slot_status(camera, state.candidate),
        previous=_slot_status(camera, state.previous),
        rejected=record.rejected,
        trial=record.trial.status(read_uptime(camera.root)) if record.trial else None,
        counter=counter(state),
        trust=trust_status(state, camera.root, camera.clock()),
        runtime=RuntimeVersion(runtime.name, runtime.version()) if runtime else None,
        device=read_device(camera.root),
        disk=DiskStatus(disk.total, disk.free),
    )


def _slot_status(camera: Camera, slot: Slot | None) -> SlotStatus | None:
    """Describe a slot with the engine for the device in its current state, else the one in service, which is stale."""
    if slot is None:
        return None
    engine, stale = engine_of(slot), None
    if camera.runtime:
        key = camera.engine_key(slot)
        engine = fitting_engine(slot, key) or engine
        stale = key.changes_since(engine.record.key) if engine else None
    described = SlotEngine(tested_engine_status(engine), stale) if engine else None
    return SlotStatus(bundle_status(slot.manifest, slot.identity), slot.name, described)

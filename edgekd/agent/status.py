"""Descriptions of bundles, engines and slots for the output of the agent, and the command `status`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.engine import Engine, engine_of, fitting_engine
from edgekd.agent.engines.records import EnvironmentChange, FailedBuild, RuntimeVersion, SelfTest
from edgekd.agent.runtimes.precision import Shares
from edgekd.agent.runtimes.types import DlaDetails, TensorRtDetails, TrtexecDetails
from edgekd.agent.state.device import Device, read_device
from edgekd.agent.state.slots import Slot, State, model_names
from edgekd.agent.state.trial import TrialStatus, read_uptime
from edgekd.agent.trust_state import (
    TrustStatus,
    is_strict,
    minimum_counter,
    revocation_of,
    trust_status,
)
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.documents import INLINE
from edgekd.core.version import __version__

if TYPE_CHECKING:
    from edgekd.core.bundle.trust import SignedTrust


@dataclass(frozen=True)
class BundleStatus:
    """A bundle.

    Args:
        identity: Identity of the bundle: SHA-256 of its manifest.
        name: Name of the model, for people.
        counter: Counter of the bundle: once it was in service, none with a lower one is accepted.
        created_by: Program and version that made the bundle.
        target: Target that it was built for.
        compatible: Name of that device in its firmware.
        role: Name of the only model, by `--model`, as which it may be installed; null for any.
    """

    identity: str
    name: str
    counter: int
    created_by: str
    target: str
    compatible: str
    role: str | None


@dataclass(frozen=True)
class EngineStatus:
    """An engine.

    Args:
        key: Name of the engine: a hash of all that it depends on.
        file: Path of the engine.
        runtime: Runtime that it was built by.
        precision: Requested precision: `graph` for each layer as in the graph, else `fp16` or `fp32` for all layers.
        seconds: Duration of the build.
        bytes: Its size.
    """

    key: str
    file: Path
    runtime: RuntimeVersion
    precision: str
    seconds: float | None
    bytes: int | None


@dataclass(frozen=True)
class TestedEngine:
    """An engine with its self-test.

    Args:
        self_test: Null where it had none.
    """

    engine: EngineStatus = field(metadata=INLINE)
    self_test: SelfTest | None


@dataclass(frozen=True)
class EngineBuildStatus:
    """An engine with the record of its build.

    Args:
        layers: Number of layers by the precision that they compute in, or by what they do instead, such as `reformat`;
            null where the runtime does not report it.
        share: Shares of the precisions; null where the runtime does not report them.
        unread: Why the precisions could not be read; null where they could, or the runtime never reports them.
        allowed: Precisions that the builder could choose from; empty where it had no choice.
        fallbacks: Layers that the DLA does not accept, and that run on the GPU.
        float_layers: Layers that are INT8 in the graph, and were built in float.
        attempts: Earlier builds that found no kernel for a layer.
        missing_scales: Activations without an INT8 scale, beside which the DLA's layers run in FP16; null without a
            calibration cache.
        log: The builder's messages from WARNING up, each once: `W message` or `E message`.
        command: Command that built it; null where a library did.
    """

    engine: EngineStatus = field(metadata=INLINE)
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
class ActiveSlot:
    """The slot in service.

    Args:
        active: Name of the slot in service; null where none is.
        key: Name of the engine in service.
        previous: Name of the slot that a rollback leads to.
    """

    active: str | None
    key: str | None
    previous: str | None


@dataclass(frozen=True)
class ServiceStatus:
    """The slot in service, and its bundle.

    Args:
        identity: Identity of the bundle in service.
    """

    slot: ActiveSlot = field(metadata=INLINE)
    identity: str | None


def bundle_status(manifest: Manifest, identity: str) -> BundleStatus:
    """Describe a bundle."""
    return BundleStatus(
        identity,
        manifest.name,
        manifest.counter,
        manifest.created_by,
        manifest.target.name,
        manifest.target.compatible,
        manifest.role,
    )


def engine_status(engine: Engine) -> EngineStatus:
    """Describe an engine."""
    record = engine.record
    return EngineStatus(engine.name, engine.file, record.key.runtime, record.precision, record.seconds, record.bytes)


def tested_engine_status(engine: Engine) -> TestedEngine:
    """Describe an engine with its self-test."""
    return TestedEngine(engine_status(engine), engine.self_test)


def built_engine_status(engine: Engine) -> EngineBuildStatus:
    """Describe an engine with the record of its build."""
    record, details = engine.record, engine.record.details
    return EngineBuildStatus(
        engine_status(engine),
        record.realized.layers if record.realized else None,
        record.realized.share if record.realized else None,
        record.unread,
        record.allowed,
        record.fallbacks,
        record.form.float_layers,
        record.attempts,
        details.missing_scales if isinstance(details, DlaDetails) else None,
        details.log if isinstance(details, (TensorRtDetails, TrtexecDetails)) else (),
        details.command if isinstance(details, TrtexecDetails) else None,
    )


def service_status(state: State) -> ServiceStatus:
    """Describe what is in service."""
    active, previous = state.active, state.previous
    engine = active.engine if active else None
    slot = ActiveSlot(
        active.name if active else None, engine.name if engine else None, previous.name if previous else None
    )
    return ServiceStatus(slot, active.identity if active else None)


@dataclass(frozen=True)
class SlotEngine:
    """The engine of a slot: for the device in its current state, else the one in service.

    Args:
        stale: Changes since its build, empty where it is up to date; null without a runtime to compare with.
    """

    tested: TestedEngine = field(metadata=INLINE)
    stale: Sequence[EnvironmentChange] | None


@dataclass(frozen=True)
class SlotStatus:
    """A slot with its bundle.

    Args:
        slot: Name of the slot, `a` or `b`.
        revoked: True where the trust file revokes the bundle, or a key without which its signatures are too few. It
            stays in service until another bundle is installed, and does not return to service.
        engine: Null where there is none.
    """

    bundle: BundleStatus = field(metadata=INLINE)
    slot: str
    revoked: bool
    engine: SlotEngine | None


@dataclass(frozen=True)
class DiskStatus:
    """The file system of the state folder.

    Args:
        total_bytes: Its size.
        free_bytes: Free space on it.
    """

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class StatusResult:
    """Result of `status`.

    Args:
        agent: Version of the agent.
        state: The state folder.
        model: Name of the model; null for the one without a name.
        models: Names of all models of this camera.
        active: Slot in service.
        candidate: Slot for the next activation.
        previous: Slot that a rollback leads to.
        rejected: Identity of the bundle that a rollback has replaced.
        trial: Trial of the bundle in service; null where it is committed.
        counter: Minimum counter of a bundle: the highest committed, unless a reset in the trust file has lowered it.
        trust: Trust file in effect; null where there is none, and every bundle is accepted.
        strict: True where unsigned bundles, those for unknown devices, and those of other models are refused.
        runtime: Runtime of networks on this device.
    """

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
    strict: bool
    runtime: RuntimeVersion | None
    device: Device
    disk: DiskStatus


def status(camera: Camera) -> StatusResult:
    """Describe what is in service, the candidate, and the device. Changes nothing, and waits for no lock."""
    state, runtime = camera.state, camera.runtime
    existing = next(path for path in (state.root, *state.root.absolute().parents) if path.is_dir())
    disk, record = shutil.disk_usage(existing), state.activation
    held, trust = trust_status(state, camera.root, camera.clock())
    return StatusResult(
        agent=__version__,
        state=state.root,
        model=state.model,
        models=[name for name in model_names(state.base) if name],
        active=_slot_status(camera, state.active, held),
        candidate=_slot_status(camera, state.candidate, held),
        previous=_slot_status(camera, state.previous, held),
        rejected=record.rejected,
        trial=record.trial.status(read_uptime(camera.root)) if record.trial else None,
        counter=minimum_counter(state, held),
        trust=trust,
        strict=is_strict(camera.root),
        runtime=RuntimeVersion(runtime.name, runtime.version()) if runtime else None,
        device=read_device(camera.root),
        disk=DiskStatus(disk.total, disk.free),
    )


def _slot_status(camera: Camera, slot: Slot | None, held: SignedTrust | None) -> SlotStatus | None:
    """Describe a slot with the engine for the device in its current state, else the one in service, which is stale."""
    if slot is None:
        return None
    engine, stale = engine_of(slot), None
    if camera.runtime:
        key = camera.engine_key(slot)
        engine = fitting_engine(slot, key) or engine
        stale = key.changes_since(engine.record.key) if engine else None
    described = SlotEngine(tested_engine_status(engine), stale) if engine else None
    revoked = revocation_of(slot, held) is not None
    return SlotStatus(bundle_status(slot.manifest, slot.identity), slot.name, revoked, described)

"""Installation of a bundle by one command, and the trial that decides whether it stays.

An installation runs under one lock. Each step is on the disk before the next, so that another run continues after a
power cut; what is in service changes by one rename, after everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent import commands
from edgekd.agent.apply_delta import opened_update
from edgekd.agent.commands import UnpackedSlot
from edgekd.agent.engines.engine import Engine, fitting_engine, require_engine
from edgekd.agent.memory import DEFAULT_SHARE, ModelMemory, model_memory, other_models, require_memory
from edgekd.agent.state.device import read_device
from edgekd.agent.state.trial import TrialStatus, read_uptime
from edgekd.agent.status import ActiveSlot, ServiceStatus, TestedEngine, service_status, tested_engine_status
from edgekd.agent.trust_state import camera_judge, effective_trust, raise_counter
from edgekd.core.documents import INLINE
from edgekd.core.errors import BundleError, DeviceError

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.state.slots import Slot, State
    from edgekd.agent.state.trial import Trial


@dataclass(frozen=True)
class Requirements:
    """Requirements on an engine besides its self-test.

    shares: minimum share by precision; max_latency_ms: of the median run, None for the limit by the bundle's frames per
    second; max_memory: bytes of all models of the camera together, None for half of the device's.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    max_latency_ms: float | None = None
    max_memory: int | None = None


@dataclass(frozen=True)
class Service:
    """The bundle in service, and its trial.

    Args:
        trial: Null where it is committed.
    """

    service: ServiceStatus = field(metadata=INLINE)
    trial: TrialStatus | None


@dataclass(frozen=True)
class MemoryReport:
    """Memory of all models of the camera.

    Args:
        bytes: Memory of all models together.
        limit_bytes: Their limit; null for no limit.
        models: The models, this one first.
    """

    bytes: int
    limit_bytes: int | None
    models: Sequence[ModelMemory]


@dataclass(frozen=True)
class InstallResult:
    """Result of `install`.

    Args:
        trial: Trial of the bundle; null where it is committed.
        changed: False where the bundle was in service already, with such an engine.
        engine: The engine in service.
        memory: Null where nothing was installed.
    """

    unpacked: UnpackedSlot = field(metadata=INLINE)
    slot: ActiveSlot = field(metadata=INLINE)
    trial: TrialStatus | None
    changed: bool
    engine: TestedEngine
    memory: MemoryReport | None


def install(camera: Camera, bundle: Path, trial: Trial | None, requirements: Requirements) -> InstallResult:
    """Verify, unpack, build, test and activate a bundle; steps that are done already are skipped.

    trial: of the bundle, where a rollback is possible; None for no trial. Raises BundleError, HashError,
    SignatureError, RollbackError, DeviceError, SelfTestError; then what is in service stays.
    """
    state = camera.state
    with _update(camera, bundle) as new, state.locked():
        _end_if_over(camera)
        _require_not_rejected(state, new.head.identity, bundle)
        unpacked = commands.unpack_prepared(camera, new).slot
        chosen = replace(camera, slot=unpacked.slot)
        engine, memory = _engine_in_service(chosen), None
        changed = engine is None
        if engine is None:
            commands.build(chosen, requirements.shares)
            commands.selftest(chosen, max_latency_ms=requirements.max_latency_ms)
            slot = chosen.chosen_slot()
            engine = require_engine(slot, chosen.engine_key(slot))
            memory = _memory(chosen, slot, engine, requirements)
            commands.activate(chosen, trial and trial.begun(read_uptime(camera.root)))
        now = _service(camera)
        return InstallResult(unpacked, now.service.slot, now.trial, changed, tested_engine_status(engine), memory)


@contextmanager
def _update(camera: Camera, bundle: Path) -> Iterator[commands.Prepared]:
    """Judge and prepare a bundle or delta, without the lock: rebuilding a delta takes long."""
    judge = camera_judge(camera.state, camera.root, camera.clock())
    with opened_update(bundle, judge) as update:
        _require_not_rejected(camera.state, update.head.identity, bundle)
        with commands.prepared(camera, update, judge) as new:
            yield new


def _memory(chosen: Camera, slot: Slot, engine: Engine, requirements: Requirements) -> MemoryReport:
    """Return the memory of the models of this camera with a new engine. Raises DeviceError where it is too much."""
    state, available = chosen.state, read_device(chosen.root).memory_bytes
    models = [model_memory(state.model, slot, engine), *other_models(state)]
    limit = requirements.max_memory or (int(available * DEFAULT_SHARE) if available else None)
    require_memory(state, models, limit)
    return MemoryReport(sum(each.bytes for each in models), limit, models)


@dataclass(frozen=True)
class CommitResult:
    """Result of `commit`.

    Args:
        changed: False where it was committed already.
    """

    service: Service = field(metadata=INLINE)
    changed: bool


def commit(camera: Camera) -> CommitResult:
    """End the trial of the bundle in service, which stays, and raise the minimum counter to its own.

    Raises DeviceError where nothing is in service, or the window is over.
    """
    state, now = camera.state, read_uptime(camera.root)
    with state.locked():
        active, record = state.active, state.activation
        if active is None:
            raise DeviceError(f"{state.root}: nothing in service", fix="install BUNDLE")
        if record.trial and record.trial.late(now):
            raise DeviceError(
                f"slot {active.name}: too late to be committed",
                expected=f"within {record.trial.window_s:g} s of its installation or start",
                found=f"{now.seconds - record.trial.since_s:.0f} s",
                fix="boot, which rolls back; then install it again with a longer --window",
            )
        if record.trial:
            raise_counter(state, effective_trust(state, camera.root), active.manifest.counter)
            state.note(replace(record, trial=None))
        return CommitResult(_service(camera), record.trial is not None)


@dataclass(frozen=True)
class BootResult:
    """Result of `boot`.

    Args:
        changed: True where the bundle was rolled back.
        rejected: Identity of the bundle that was rolled back; null where none was.
        stays: Why a bundle stays whose trial is over; null where it is not over, or the bundle was rolled back.
    """

    service: Service = field(metadata=INLINE)
    changed: bool
    rejected: str | None
    stays: str | None


def boot(camera: Camera) -> BootResult:
    """Count a start of the application, or, where the trial is over, roll back.

    A camera with a doubtful model is better than one without: where a rollback is impossible, the bundle stays in
    service. Raises SpecError where the state cannot be written.
    """
    state = camera.state
    with state.locked():
        rejected, stays = _end_if_over(camera)
        record = state.activation
        if record.trial and rejected is None and stays is None:
            state.note(replace(record, trial=record.trial.started(read_uptime(camera.root))))
        return BootResult(_service(camera), rejected is not None, rejected, stays)


def _end_if_over(camera: Camera) -> tuple[str | None, str | None]:
    """Roll back where a trial is over; return the identity of the rejected bundle, or why a rollback is impossible.

    The trial ends in both cases, so that it does not block the next bundle.
    """
    state = camera.state
    active, trial = state.active, state.activation.trial
    if active is None or trial is None or not trial.over(read_uptime(camera.root)):
        return None, None
    try:
        commands.rollback(camera)
    except (BundleError, DeviceError) as error:
        state.note(replace(state.activation, trial=None))
        return None, str(error)
    return active.identity, None


def _require_not_rejected(state: State, identity: str, bundle: Path) -> None:
    """Raise DeviceError for a bundle that was rolled back: an updater would install it again and again."""
    if identity == state.activation.rejected:
        raise DeviceError(
            f"{bundle}: was in service here, and was rolled back",
            expected="another bundle",
            fix="build a better one; to try this one again, unpack it first",
        )


def _engine_in_service(chosen: Camera) -> Engine | None:
    """Return the engine of the chosen slot where it is in service, up to date, undamaged and tested; else None."""
    slot = chosen.chosen_slot()
    engine = fitting_engine(slot, chosen.engine_key(slot))
    if engine is None or slot.name != chosen.state.active_name or slot.engine != engine.folder.resolve():
        return None
    return engine if engine.whole and engine.passed else None


def _service(camera: Camera) -> Service:
    trial = camera.state.activation.trial
    return Service(service_status(camera.state), trial.status(read_uptime(camera.root)) if trial else None)

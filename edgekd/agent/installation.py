"""A bundle into service by one command, and the trial that decides whether it stays.

All of an installation is done under one lock. Each of its steps leaves something that the next run goes on from, so
that a power cut costs time and nothing else; what is in service changes by one rename, when everything else is on the
disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent import commands
from edgekd.agent.apply_delta import any_head
from edgekd.agent.device import read_device
from edgekd.agent.engines import Engine, fitting_engine, require_engine
from edgekd.agent.memory import SHARE, need_of, needs_beside, require_memory
from edgekd.agent.trial import read_uptime
from edgekd.agent.trust_state import held_trust, judge, raise_counter
from edgekd.core.errors import BundleError, DeviceError

if TYPE_CHECKING:
    from edgekd.agent.commands import Camera
    from edgekd.agent.slots import Slot, State
    from edgekd.agent.trial import Trial


@dataclass(frozen=True)
class Demands:
    """What an engine has to do besides passing its self-test.

    shares: by precision, the least share that it computes in it; max_latency_ms: what its median run may take, None for
    what the bundle's frames per second leave; max_memory: bytes that all models of the camera may take together, None
    for half of the device's.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    max_latency_ms: float | None = None
    max_memory: int | None = None


def install(camera: Camera, bundle: Path, trial: Trial | None, demands: Demands) -> dict[str, Any]:
    """Verify, unpack, build, test and activate a bundle, whatever of that is still to be done.

    trial: how it has to prove itself where there is something to go back to; None puts it into service for good. Raises
    BundleError, HashError, SignatureError, RollbackError, DeviceError, SelfTestError; what is in service then stays.
    """
    state = camera.state
    with state.locked():
        head = any_head(bundle, judge(held_trust(state, camera.root), camera.clock()))
        _end_if_over(camera)
        _require_not_rejected(state, head.identity, bundle)
        unpacked = commands.unpack(camera, bundle)
        chosen = replace(camera, slot=unpacked["slot"])
        engine, memory = _engine_in_service(chosen), None
        changed = engine is None
        if engine is None:
            commands.build(chosen, demands.shares)
            commands.selftest(chosen, max_latency_ms=demands.max_latency_ms)
            slot = chosen.chosen_slot()
            engine = require_engine(slot, chosen.wanted(slot))
            memory = _memory(chosen, slot, engine, demands)
            commands.activate(chosen, trial and trial.begun(read_uptime(camera.root)))
        about = {name: value for name, value in unpacked.items() if name not in ("graph", "graph_bytes")}
        told = {**commands.engine_json(engine), "self_test": engine.self_test}
        return {**about, **_in_service(camera), "changed": changed, "engine": told, "memory": memory}


def _memory(chosen: Camera, slot: Slot, engine: Engine, demands: Demands) -> dict[str, Any]:
    """What the models of this camera need with the one that is to come. Raises DeviceError where that is too much."""
    state, there = chosen.state, read_device(chosen.root).memory_bytes
    needs = [need_of(state.model, slot, engine), *needs_beside(state)]
    limit = demands.max_memory or (int(there * SHARE) if there else None)
    require_memory(state, needs, limit)
    total = sum(need.bytes for need in needs)
    return {"bytes": total, "limit_bytes": limit, "models": [need.as_json() for need in needs]}


def commit(camera: Camera) -> dict[str, Any]:
    """End the trial of what is in service, which stays, and lets nothing older in from now on.

    Raises DeviceError where there is nothing in service, or the time for it is over.
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
                fix="boot, which leads back; then install it again with a longer --window",
            )
        if record.trial:
            raise_counter(state, active.manifest.counter)
            state.note(replace(record, trial=None))
        return {**_in_service(camera), "changed": record.trial is not None}


def boot(camera: Camera) -> dict[str, Any]:
    """Count a start of what runs the model, or, where the trial is over, go back to what was in service before.

    A camera without a model is worse than one with a doubtful one: where there is no way back, `stays` says why, and
    the bundle stays in service. Raises SpecError where nothing can be written.
    """
    state = camera.state
    with state.locked():
        left, why = _end_if_over(camera)
        record = state.activation
        if record.trial and left is None and why is None:
            state.note(replace(record, trial=record.trial.started(read_uptime(camera.root))))
        return {**_in_service(camera), "changed": left is not None, "rejected": left, "stays": why}


def _end_if_over(camera: Camera) -> tuple[str | None, str | None]:
    """Go back where a trial is over: identity of the bundle that was led away from; else why there is no way back.

    Then the trial ends, too: nothing could come of it, and it must not keep the next bundle out.
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
    """Else whatever brings updates would install it again and again."""
    if identity == state.activation.rejected:
        raise DeviceError(
            f"{bundle}: was in service here, and was led away from",
            expected="another bundle",
            fix="build a better one; to try this one again, unpack it first",
        )


def _engine_in_service(chosen: Camera) -> Engine | None:
    """The engine of the chosen slot, where it is in service, for the device as it is, undamaged and tested."""
    slot = chosen.chosen_slot()
    engine = fitting_engine(slot, chosen.wanted(slot))
    if engine is None or slot.name != chosen.state.active_name or slot.engine != engine.folder.resolve():
        return None
    return engine if engine.whole and engine.passed else None


def _in_service(camera: Camera) -> dict[str, Any]:
    trial = camera.state.activation.trial
    return {**commands.in_service(camera.state), "trial": trial and trial.as_json(read_uptime(camera.root))}

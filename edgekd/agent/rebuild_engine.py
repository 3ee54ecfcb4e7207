"""A new engine for the bundle in service after an update of the system; the old one serves until the new one passed.

Its form is the choice of `tune`, else the graph as shipped; where that cannot be built, or fails its self-test, the
network in float. Each step is on the disk before the next, so that another run continues after a power cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.agent.engines.choice import forms
from edgekd.agent.engines.engine import Engine, build_engine, engine_folder, engine_of, read_engine
from edgekd.agent.engines.records import EngineKey, EnvironmentChange, Form
from edgekd.agent.state.slots import Activation
from edgekd.agent.status import ServiceStatus, TestedEngine, service_status, tested_engine_status
from edgekd.core.documents import INLINE, to_plain
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.state.slots import Slot


@dataclass(frozen=True)
class FailedEngine:
    """An engine that was not built, or failed its self-test.

    Args:
        precision: Requested precision.
        found: Reason of the failure.
    """

    precision: str
    found: str


@dataclass(frozen=True)
class RenewResult:
    """Result of `renew`.

    Args:
        changed: False where the engine was in service already.
        stale: Changes since the build of the engine that was in service.
        engine: The engine in service now.
        tried: Engines that failed before it.
    """

    service: ServiceStatus = field(metadata=INLINE)
    changed: bool
    stale: Sequence[EnvironmentChange]
    engine: TestedEngine
    tried: Sequence[FailedEngine]


def renew(camera: Camera) -> RenewResult:
    """Build, test and activate an engine for the device in its current state, unless one is in service.

    Raises DeviceError where none passes; then the earlier one stays in service.
    """
    state = camera.state
    with state.locked():
        slot = state.active
        if slot is None:
            raise DeviceError(f"{state.root}: nothing in service", fix="unpack and activate a bundle")
        key, earlier = camera.engine_key(slot), engine_of(slot)
        stale = key.changes_since(earlier.record.key) if earlier else []
        tried: list[FailedEngine] = []
        engine = earlier if earlier and _up_to_date(earlier, slot, key) else _passing(camera, slot, key, tried)
        changed = state.put_into_service(slot, engine.folder, Activation())
        return RenewResult(service_status(state), changed, stale, tested_engine_status(engine), tried)


def _up_to_date(engine: Engine, slot: Slot, key: EngineKey) -> bool:
    """Return whether an engine is for the device in its current state, undamaged, and passed its self-test."""
    names = [engine_folder(slot, key, form).name for form in forms(slot, key)]
    return engine.name in names and engine.whole and engine.passed


def _passing(camera: Camera, slot: Slot, key: EngineKey, tried: list[FailedEngine]) -> Engine:
    """Return an engine that passes its self-test, and add the others to `tried`. Raises DeviceError without one."""
    for form in forms(slot, key):
        try:
            engine = tested_engine(camera, slot, key, form)
        except DeviceError as error:
            tried.append(FailedEngine(form.source, str(error)))
            continue
        if engine.passed:
            return engine
        tried.append(FailedEngine(engine.record.precision, failure(engine)))
    raise DeviceError(
        f"slot {slot.name}: no new engine passes its self-test",
        expected="one from the graph, or one in float",
        found="; ".join(f"{each.precision}: {each.found}" for each in tried),
        fix="the old engine stays in service; report this with the device's status",
    )


def failure(engine: Engine) -> str:
    """Describe why a tested engine failed."""
    test = engine.self_test
    return f"self-test failed: errors {to_plain(test.error) if test else None}"


def tested_engine(camera: Camera, slot: Slot, key: EngineKey, form: Form) -> Engine:
    """Return the engine of a form, built where it is missing or damaged, and tested unless it has passed."""
    from edgekd.agent.engines.selftest import keep_self_test

    runtime = camera.required_runtime()
    engine = read_engine(engine_folder(slot, key, form))
    if engine is None or not engine.whole:
        engine = build_engine(slot, runtime, key, camera.request(form))
    if not engine.passed:
        keep_self_test(slot, runtime, engine)
    return engine

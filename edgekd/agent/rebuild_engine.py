"""A new engine for the bundle in service after an update of the system, with the old one in service until it passed.

First in the form that `tune` chose, where it did, then from the graph as it is; where that cannot be built, or does not
pass its self-test, from the same network in float. Every step leaves something that the next run goes on from, so that
a power cut costs time and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekd.agent.choice import Form, forms
from edgekd.agent.commands import engine_json, in_service
from edgekd.agent.engines import Engine, build_engine, engine_folder, engine_of, read_engine
from edgekd.agent.slots import Activation
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.commands import Camera
    from edgekd.agent.slots import Slot


def renew(camera: Camera) -> dict[str, Any]:
    """Make, test and put into service an engine for the device as it is, unless there is one in service.

    Raises DeviceError where none passes; what was in service then stays.
    """
    state = camera.state
    with state.locked():
        slot = state.active
        if slot is None:
            raise DeviceError(f"{state.root}: nothing in service", fix="unpack and activate a bundle")
        wanted = camera.wanted(slot)
        used = engine_of(slot)
        stale = used.stale(wanted) if used else []
        tried: list[dict[str, Any]] = []
        engine = _fit(used, slot, wanted) or _passing(camera, slot, wanted, tried)
        changed = state.put_into_service(slot, engine.folder, Activation())
        told = {**engine_json(engine), "self_test": engine.self_test}
        return {**in_service(state), "changed": changed, "stale": stale, "engine": told, "tried": tried}


def _fit(used: Engine | None, slot: Slot, wanted: dict[str, Any]) -> Engine | None:
    """The engine in service, where it is for the device as it is, undamaged, and passed its self-test."""
    keys = [engine_folder(slot, wanted, form).name for form in forms(slot, wanted)]
    return used if used and used.folder.name in keys and used.whole and used.passed else None


def _passing(camera: Camera, slot: Slot, wanted: dict[str, Any], tried: list[dict[str, Any]]) -> Engine:
    """An engine that passes its self-test. What does not is added to `tried`. Raises DeviceError where none does."""
    for form in forms(slot, wanted):
        try:
            engine = tested_engine(camera, slot, wanted, form)
        except DeviceError as error:
            tried.append({"precision": form.source, "found": str(error)})
            continue
        if engine.passed:
            return engine
        seen = engine.self_test and engine.self_test["error"]
        tried.append({"precision": engine.record.get("precision"), "found": f"self-test failed: errors {seen}"})
    raise DeviceError(
        f"slot {slot.name}: no new engine passes its self-test",
        expected="one from the graph, or one in float",
        found="; ".join(f"{each['precision']}: {each['found']}" for each in tried),
        fix="the old engine stays in service; report this with the device's status",
    )


def tested_engine(camera: Camera, slot: Slot, wanted: dict[str, Any], form: Form) -> Engine:
    """The engine of a form, built and tested where it is not yet, or did not pass the last time."""
    from edgekd.agent.selftest import keep_self_test

    runtime = camera.required_runtime()
    engine = read_engine(engine_folder(slot, wanted, form))
    if engine is None or not engine.whole:
        engine = build_engine(slot, runtime, wanted, camera.order(form))
    if not engine.passed:
        keep_self_test(slot, runtime, engine)
    return engine

"""What the agent can do, a function for each command: each returns the figures that it prints, as plain JSON types.

docs/agent.md and docs/schemas/agent.json say what is in them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.apply_delta import any_head, old_bundle, whole
from edgekd.agent.choice import AS_SHIPPED, Form, forms
from edgekd.agent.device import read_device
from edgekd.agent.engines import (
    Engine,
    Order,
    build_engine,
    built_engine,
    engine_of,
    fitting_engine,
    latencies,
    read_engine,
    require_engine,
    wanted_record,
)
from edgekd.agent.runtimes.types import GRAPH, ON_CPU, Wish
from edgekd.agent.slots import Activation, Slot, State, model_names
from edgekd.agent.trial import Trial, read_uptime
from edgekd.agent.trust_state import (
    counter,
    held_trust,
    judge,
    raise_counter,
    read_trust,
    require_admissible,
    require_not_older,
    require_not_revoked,
    take_trust,
    told_json,
    trust_json,
    utc_now,
)
from edgekd.core.bundle.archive import read_head
from edgekd.core.bundle.archive import verify as verify_archive
from edgekd.core.bundle.delta import is_delta, rebuild
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.canonical import json_sha256
from edgekd.core.errors import BundleError, DeviceError, HashError, RollbackError
from edgekd.core.version import __version__

if TYPE_CHECKING:
    from edgekd.agent.runtimes.types import Runtime


@dataclass(frozen=True)
class Camera:
    """What a command works on.

    state: the slots; root: below which the system's own files lie; runtime: what runs networks here, None where nothing
    can; slot: the one that was asked for; clock: the time in UTC.
    """

    state: State
    root: Path = Path("/")
    runtime: Runtime | None = None
    slot: str | None = None
    clock: Callable[[], datetime] = utc_now

    def chosen_slot(self) -> Slot:
        """The slot that was asked for, else the one that waits to be put into service, else the one in service.

        Raises DeviceError where there is no bundle in it.
        """
        named = self.state.slot(self.slot) if self.slot else self.state.candidate or self.state.active
        if named is None:
            where = f"slot {self.slot}" if self.slot else f"{self.state.root}"
            raise DeviceError(f"{where}: empty", expected="a bundle", fix="unpack BUNDLE")
        return named

    def required_runtime(self) -> Runtime:
        """What runs networks here. Raises DeviceError where nothing can."""
        if self.runtime is None:
            raise DeviceError(
                "nothing here can run a network",
                expected="TensorRT or ONNX Runtime for this Python",
                fix="use the Python and the packages of the firmware; docs/agent.md says which",
            )
        return self.runtime

    def wanted(self, slot: Slot) -> dict[str, Any]:
        """What an engine for a slot must belong to, to run here and now."""
        return wanted_record(slot, self.required_runtime(), read_device(self.root))

    def timings(self) -> Path:
        """The file in which a builder keeps what it timed: one for each runtime, version and state of the device.

        Those of other versions and states are of no use to it, and are removed.
        """
        runtime, device = self.required_runtime(), read_device(self.root)
        belongs = {"version": runtime.version(), "built_on": device.engine_belongs_to()}
        file = self.state.root / "timings" / runtime.name / f"{json_sha256(belongs)[:16]}.cache"
        for other in file.parent.glob("*.cache"):
            if other != file:
                other.unlink()
        return file

    def order(self, form: Form = AS_SHIPPED, shares: Mapping[str, float] | None = None) -> Order:
        """How an engine of a form is to be built on this device."""
        memory = read_device(self.root).memory_bytes
        return Order(Wish(form.source, memory, self.timings(), form.float_layers), shares or {})


def verify(camera: Camera, bundle: Path, trust: Path | None = None) -> dict[str, Any]:
    """Check a bundle from its first byte to its last, and whether it is to be trusted.

    By the trust file given, else the one that the camera holds; where there is none, nothing is said of trust. Raises
    BundleError, HashError, SignatureError.
    """
    now, held = camera.clock(), read_trust(trust) if trust else held_trust(camera.state, camera.root)
    head = read_head(bundle)
    manifest = verify_archive(bundle, judge(held, now))
    return {
        **bundle_json(manifest, head.identity),
        "bytes": bundle.stat().st_size,
        "files": len(manifest.files),
        "signatures": [signature.key for signature in head.seal.signatures],
        "trust": told_json(held, now) if held else None,
    }


def trust(camera: Camera, paths: Sequence[Path]) -> dict[str, Any]:
    """Hold a newer trust file in place of the one that is held. Raises SignatureError where that does not allow it."""
    now = camera.clock()
    with camera.state.locked():
        held, changed = take_trust(camera.state, camera.root, paths, now)
    return {**told_json(held, now), "changed": changed}


def patch(camera: Camera, delta: Path, out: Path) -> dict[str, Any]:
    """Write the bundle that a delta leads to. Raises BundleError, HashError, SignatureError, DeviceError, SpecError."""
    allowed = judge(held_trust(camera.state, camera.root), camera.clock())
    if not is_delta(delta):
        raise BundleError(f"{delta}: not a delta", expected="what `edgekd delta` writes", fix="a bundle needs none")
    with camera.state.locked():
        old = old_bundle(camera.state, delta)
        head = rebuild(delta, old, out, allowed)
    return {
        **bundle_json(head.manifest, head.identity),
        "file": str(out),
        "bytes": out.stat().st_size,
        "old": old.identity,
    }


def unpack(camera: Camera, bundle: Path) -> dict[str, Any]:
    """Verify a bundle, or put it together of a delta, and put it, its graph expanded, into the slot not in service.

    Raises BundleError, HashError; SignatureError where the camera's trust file does not allow it, RollbackError where
    it is older than what was in service; DeviceError where it is for another device, there is no room, or what is in
    service is on trial.
    """
    state = camera.state
    allowed = judge(held_trust(state, camera.root), camera.clock())
    head, device = any_head(bundle, allowed), read_device(camera.root)
    fits = device.fits(head.manifest.target.compatible)
    if fits is False:
        raise BundleError(
            f"{bundle}: for another device",
            expected=device.expected_bundle,
            found=head.manifest.target.compatible,
            fix="build it for the target of this device, or say in /etc/edgekd/compatible what the device is",
        )
    with state.locked():
        require_not_older(state, head.manifest.counter, bundle)
        there = state.find(head.identity)
        require_no_trial(state, there)
        state.allow(head.identity)
        if there:
            if allowed:
                state.seal(there, head)
            slot = there
        else:
            with whole(state, bundle, head, allowed) as path:
                slot = state.fill(path, allowed)
        graph = slot.graph.stat().st_size
    return {
        **bundle_json(slot.manifest, slot.identity),
        "slot": slot.name,
        "changed": there is None,
        "fits": fits,
        "graph": str(slot.graph),
        "graph_bytes": graph,
    }


def build(camera: Camera, shares: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Build the engine for this device, unless a whole one is there.

    shares: by precision, the least share that it has to compute in it. Raises DeviceError, PrecisionError.
    """
    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        wanted = camera.wanted(slot)
        form = forms(slot, wanted)[0]
        order, there = camera.order(form, shares), built_engine(slot, wanted, form)
        changed = there is None or not there.whole
        engine = build_engine(slot, runtime, wanted, order) if there is None or changed else there
        order.require(slot, engine.record.get("realized"))
    return {"slot": slot.name, "changed": changed, **engine_json(engine), **built_json(engine)}


def selftest(camera: Camera, layers: bool = False, max_latency_ms: float | None = None) -> dict[str, Any]:
    """Compare what the engine gives for the golden frames with what it should. Raises SelfTestError, DeviceError.

    layers: also say how far inner tensors are from those of the network in float, which takes two more builds;
    max_latency_ms: what the median of its runs may take, in place of what the bundle's frames per second leave.
    """
    from edgekd.agent.layer_divergence import departures
    from edgekd.agent.selftest import SelfTestError, keep_self_test

    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        engine = require_engine(slot, camera.wanted(slot))
        limit_ms = max_latency_ms or _limit_ms(camera, slot)
        figures = keep_self_test(slot, runtime, engine, limit_ms)
        inner = departures(slot, runtime) if layers else None
    report = {"slot": slot.name, "key": engine.folder.name, **figures, "layers": inner}
    if not figures["passed"] and figures["latency"]:
        raise SelfTestError(
            f"slot {slot.name}: the engine is too slow",
            report=report,
            expected="at most {limit_ms:.4g} ms as the median of its runs".format(**figures["latency"]),
            found="{p50_ms:.4g} ms".format(**figures["latency"]),
            fix="see whether the power mode is the one that the bundle was built for",
        )
    if not figures["passed"]:
        raise SelfTestError(
            f"slot {slot.name}: the engine drifted from the golden set",
            report=report,
            expected="boxes within {boxes} and scores within {scores}".format(**figures["tolerance"]),
            found="boxes {boxes} and scores {scores}".format(**figures["error"]),
            fix="keep the bundle that is in service, and report the engine's runtime and device",
        )
    return report


def _limit_ms(camera: Camera, slot: Slot) -> float | None:
    """What a run may take for the frames per second that the bundle was built for, where the device is its target."""
    fps, target = slot.manifest.limits.min_fps, slot.manifest.target
    return 1000 / fps if fps and read_device(camera.root).fits(target.compatible) else None


def bench(camera: Camera, iterations: int, seconds: float) -> dict[str, Any]:
    """Time the engine alone on this device. Raises DeviceError."""
    from edgekd.core.power.find import find_meter

    device = read_device(camera.root)
    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        engine = require_engine(slot, camera.wanted(slot))
        meter = find_meter(camera.root, gpu=bool(device.gpus) and runtime.name not in ON_CPU)
        timed = latencies(slot, runtime, engine, iterations, seconds, meter)
    mode = device.as_json()["power_mode"]
    return {
        "slot": slot.name,
        "key": engine.folder.name,
        "runtime": engine.record["runtime"],
        "model": device.model,
        "power_mode": mode,
        **timed,
    }


def activate(camera: Camera, trial: Trial | None = None) -> dict[str, Any]:
    """Put the slot that was built and tested into service: on trial where there is one, and something to go back to.

    Raises DeviceError where it was not, SignatureError or RollbackError where it may not be any more.
    """
    state = camera.state
    with state.locked():
        slot = camera.chosen_slot()
        engine = require_engine(slot, camera.wanted(slot))
        require_passed(slot, engine)
        active = state.active
        replaced = active if active and active.name != slot.name else None
        record = Activation(replaced.identity, trial=trial) if replaced else Activation()
        if active is None or replaced:
            require_admissible(state, slot, held_trust(state, camera.root), camera.clock())
            if record.trial is None:
                raise_counter(state, slot.manifest.counter)
        changed = state.put_into_service(slot, engine.folder, record)
        return {**in_service(state), "changed": changed}


def rollback(camera: Camera) -> dict[str, Any]:
    """Put the bundle that was in service before back into service, with its engine as it was.

    Raises RollbackError where there is none, DeviceError where its engine did not pass its self-test, HashError where
    that is damaged.
    """
    state = camera.state
    with state.locked():
        active, previous = state.active, state.previous
        if active is None or previous is None or previous.engine is None:
            raise RollbackError(
                f"{state.root}: nothing to roll back to",
                expected="a slot that was in service before",
                found=f"slot {state.active_name} in service" if state.active_name else "no slot in service",
                fix="unpack and activate a bundle",
            )
        require_not_revoked(state, previous, camera.root)
        engine = read_engine(previous.engine)
        require_passed(previous, engine)
        if engine and not engine.whole:
            raise HashError(f"{engine.file}: damaged", fix="install another bundle; what is in service stays")
        state.put_into_service(previous, previous.engine, Activation(rejected=active.identity))
        return {**in_service(state), "changed": True}


def status(camera: Camera) -> dict[str, Any]:
    """What is in service, what waits, and what the device is. Changes nothing, and waits for nobody."""
    state, device, runtime = camera.state, read_device(camera.root), camera.runtime
    existing = next(path for path in (state.root, *state.root.absolute().parents) if path.is_dir())
    disk, record = shutil.disk_usage(existing), state.activation
    return {
        "agent": __version__,
        "state": str(state.root),
        "model": state.model,
        "models": [name for name in model_names(state.base) if name],
        "active": _slot_json(camera, state.active),
        "candidate": _slot_json(camera, state.candidate),
        "previous": _slot_json(camera, state.previous),
        "rejected": record.rejected,
        "trial": record.trial and record.trial.as_json(read_uptime(camera.root)),
        "counter": counter(state),
        "trust": trust_json(state, camera.root, camera.clock()),
        "runtime": {"name": runtime.name, "version": runtime.version()} if runtime else None,
        "device": device.as_json(),
        "disk": {"total_bytes": disk.total, "free_bytes": disk.free},
    }


def runtime_in_service(state: State) -> str | None:
    """The name of the runtime that the engine in service was built by; None where nothing is."""
    engine = engine_of(state.active)
    return engine.record["runtime"].get("name") if engine else None


def require_no_trial(state: State, wanted: Slot | None = None) -> None:
    """Raise DeviceError where something would take the place of what the bundle on trial may have to give way to."""
    active = state.active
    if state.activation.trial and active and (wanted is None or wanted.name != active.name):
        raise DeviceError(
            f"slot {active.name}: on trial, and the other slot has what it may have to give way to",
            expected="a bundle that was committed",
            fix="commit, or rollback; where neither comes, `boot` ends the trial",
        )


def require_passed(slot: Slot, engine: Engine | None) -> None:
    """Raises DeviceError where an engine did not pass its self-test."""
    if engine is None or not engine.passed:
        raise DeviceError(
            f"slot {slot.name}: not ready for service",
            expected="an engine that passed its self-test",
            found="one that failed it" if engine and engine.failed else "one without a self-test",
            fix=f"selftest --slot {slot.name}",
        )


def in_service(state: State) -> dict[str, Any]:
    active, previous = state.active, state.previous
    return {
        "active": active.name if active else None,
        "identity": active.identity if active else None,
        "key": active.engine.name if active and active.engine else None,
        "previous": previous.name if previous else None,
    }


def bundle_json(manifest: Manifest, identity: str) -> dict[str, Any]:
    return {
        "identity": identity,
        "name": manifest.name,
        "counter": manifest.counter,
        "created_by": manifest.created_by,
        "target": manifest.target.name,
        "compatible": manifest.target.compatible,
    }


def engine_json(engine: Engine) -> dict[str, Any]:
    known = engine.record
    return {
        "key": engine.folder.name,
        "file": str(engine.file),
        "runtime": known["runtime"],
        "precision": known.get("precision", GRAPH),
        "seconds": known.get("seconds"),
        "bytes": known.get("bytes"),
    }


def built_json(engine: Engine) -> dict[str, Any]:
    """What was written down of how an engine was built, and of what came of it."""
    known = engine.record
    found = known.get("realized")
    return {
        "layers": found and found["layers"],
        "share": found and found["share"],
        "unread": known.get("unread"),
        "allowed": known.get("allowed", []),
        "fallbacks": known.get("fallbacks", []),
        "float_layers": known.get("float_layers", []),
        "attempts": known.get("attempts", []),
        "missing_scales": known.get("missing_scales"),
        "log": known.get("log", []),
        "command": known.get("command"),
    }


def _slot_json(camera: Camera, slot: Slot | None) -> dict[str, Any] | None:
    """A slot, with its engine: the one for the device as it is, else the one in service, which is then stale."""
    if slot is None:
        return None
    engine, stale = engine_of(slot), None
    if camera.runtime:
        wanted = camera.wanted(slot)
        engine = fitting_engine(slot, wanted) or engine
        stale = engine.stale(wanted) if engine else None
    told = engine and {**engine_json(engine), "self_test": engine.self_test, "stale": stale}
    return {**bundle_json(slot.manifest, slot.identity), "slot": slot.name, "engine": told}

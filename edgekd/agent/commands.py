"""What the agent can do, a function for each command: each returns the figures that it prints, as plain JSON types.

docs/agent.md and docs/schemas/agent.json say what is in them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd import __version__
from edgekd.agent.device import read_device
from edgekd.agent.engines import (
    Engine,
    build_engine,
    engine_folder,
    latencies,
    layer_counts,
    read_engine,
    require_engine,
    wanted_record,
)
from edgekd.agent.slots import SELF_TEST, Activation, Slot, State
from edgekd.agent.trusted import (
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
from edgekd.bundle.archive import read_head
from edgekd.bundle.archive import verify as verify_archive
from edgekd.bundle.manifest import Manifest
from edgekd.canonical import canonical_json
from edgekd.errors import BundleError, DeviceError, RollbackError
from edgekd.files import write_file

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


def verify(camera: Camera, bundle: Path, trust: Path | None = None) -> dict[str, Any]:
    """Check a bundle from its first byte to its last, and whether it is to be trusted.

    By the trust file given, else the one that the camera holds; where there is none, nothing is said of trust. Raises
    BundleError, HashError, SignatureError.
    """
    now, held = camera.clock(), read_trust(trust) if trust else held_trust(camera.state, camera.root)
    head = read_head(bundle)
    manifest = verify_archive(bundle, judge(held, now))
    return {
        **_bundle_json(manifest, head.identity),
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


def unpack(camera: Camera, bundle: Path) -> dict[str, Any]:
    """Verify a bundle and put it, with its graph expanded, into the slot that is not in service.

    Raises BundleError, HashError; SignatureError where the camera's trust file does not allow it, RollbackError where
    it is older than what was in service; DeviceError where it is for another device or there is no room.
    """
    state = camera.state
    allowed = judge(held_trust(state, camera.root), camera.clock())
    head, device = read_head(bundle, allowed), read_device(camera.root)
    fits = device.fits(head.manifest.target.compatible)
    if fits is False:
        raise BundleError(
            f"{bundle}: for another device",
            expected=f"compatible {device.firmware}",
            found=head.manifest.target.compatible,
            fix="build it for the target of this device",
        )
    with state.locked():
        require_not_older(state, head.manifest.counter, bundle)
        there = next((slot for slot in (state.active, state.other) if slot and slot.identity == head.identity), None)
        if there:
            state.seal(there, head)
            state.allow(there)
        slot = there or state.fill(bundle, allowed)
        graph = slot.graph.stat().st_size
    return {
        **_bundle_json(slot.manifest, slot.identity),
        "slot": slot.name,
        "changed": there is None,
        "fits": fits,
        "graph": str(slot.graph),
        "graph_bytes": graph,
    }


def build(camera: Camera) -> dict[str, Any]:
    """Build the engine for this device, unless a whole one is there. Raises DeviceError."""
    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        wanted = camera.wanted(slot)
        there = read_engine(engine_folder(slot, wanted))
        changed = there is None or not there.whole
        engine = build_engine(slot, runtime, wanted) if there is None or changed else there
        counts = layer_counts(runtime, engine)
    return {"slot": slot.name, "changed": changed, **_engine_json(engine), "layers": counts}


def selftest(camera: Camera) -> dict[str, Any]:
    """Compare what the engine gives for the golden frames with what it should. Raises SelfTestError, DeviceError."""
    from edgekd.agent.selftest import SelfTestError, run_self_test

    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        engine = require_engine(slot, camera.wanted(slot))
        figures = run_self_test(slot, runtime, engine.file)
        write_file(engine.folder / SELF_TEST, canonical_json(figures))
    report = {"slot": slot.name, "key": engine.folder.name, **figures}
    if not figures["passed"]:
        raise SelfTestError(
            f"slot {slot.name}: the engine drifted from the golden set",
            report=report,
            expected="boxes within {boxes} and scores within {scores}".format(**figures["tolerance"]),
            found="boxes {boxes} and scores {scores}".format(**figures["error"]),
            fix="keep the bundle that is in service, and report the engine's runtime and device",
        )
    return report


def bench(camera: Camera, iterations: int, seconds: float) -> dict[str, Any]:
    """Time the engine alone on this device. Raises DeviceError."""
    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        engine = require_engine(slot, camera.wanted(slot))
        timed = latencies(slot, runtime, engine, iterations, seconds)
    device = read_device(camera.root)
    mode = device.as_json()["power_mode"]
    return {
        "slot": slot.name,
        "key": engine.folder.name,
        "runtime": engine.record["runtime"],
        "model": device.model,
        "power_mode": mode,
        **timed,
    }


def activate(camera: Camera) -> dict[str, Any]:
    """Put the slot that was built and tested into service.

    Raises DeviceError where it was not, SignatureError or RollbackError where it may not be any more.
    """
    state = camera.state
    with state.locked():
        slot = camera.chosen_slot()
        engine = require_engine(slot, camera.wanted(slot))
        _require_passed(slot, engine)
        active = state.active
        if active is None or active.name != slot.name:
            require_admissible(state, slot, held_trust(state, camera.root), camera.clock())
            raise_counter(state, slot.manifest.counter)
        record = Activation(previous=active.identity if active and active.name != slot.name else None)
        changed = state.put_into_service(slot, engine.folder, record)
        return {**_in_service(state), "changed": changed}


def rollback(camera: Camera) -> dict[str, Any]:
    """Put the bundle that was in service before back into service, with its engine as it was.

    Raises RollbackError where there is none, DeviceError where its engine did not pass its self-test.
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
        require_not_revoked(previous, held_trust(state, camera.root))
        engine = read_engine(previous.engine)
        _require_passed(previous, engine)
        state.put_into_service(previous, previous.engine, Activation(rejected=active.identity))
        return {**_in_service(state), "changed": True}


def status(camera: Camera) -> dict[str, Any]:
    """What is in service, what waits, and what the device is. Changes nothing, and waits for nobody."""
    state, device, runtime = camera.state, read_device(camera.root), camera.runtime
    existing = next(path for path in (state.root, *state.root.absolute().parents) if path.is_dir())
    disk = shutil.disk_usage(existing)
    return {
        "agent": __version__,
        "state": str(state.root),
        "active": _slot_json(camera, state.active),
        "candidate": _slot_json(camera, state.candidate),
        "previous": _slot_json(camera, state.previous),
        "rejected": state.activation.rejected,
        "counter": counter(state),
        "trust": trust_json(state, camera.root, camera.clock()),
        "runtime": {"name": runtime.name, "version": runtime.version()} if runtime else None,
        "device": device.as_json(),
        "disk": {"total_bytes": disk.total, "free_bytes": disk.free},
    }


def _require_passed(slot: Slot, engine: Engine | None) -> None:
    """Raises DeviceError where an engine did not pass its self-test."""
    tested = engine.self_test if engine else None
    if not tested or not tested["passed"]:
        raise DeviceError(
            f"slot {slot.name}: not ready for service",
            expected="an engine that passed its self-test",
            found="one that failed it" if tested else "one without a self-test",
            fix=f"selftest --slot {slot.name}",
        )


def _in_service(state: State) -> dict[str, Any]:
    active, previous = state.active, state.previous
    return {
        "active": active.name if active else None,
        "identity": active.identity if active else None,
        "key": active.engine.name if active and active.engine else None,
        "previous": previous.name if previous else None,
    }


def _bundle_json(manifest: Manifest, identity: str) -> dict[str, Any]:
    return {
        "identity": identity,
        "name": manifest.name,
        "counter": manifest.counter,
        "created_by": manifest.created_by,
        "target": manifest.target.name,
        "compatible": manifest.target.compatible,
    }


def _engine_json(engine: Engine) -> dict[str, Any]:
    known = engine.record
    return {
        "key": engine.folder.name,
        "file": str(engine.file),
        "runtime": known["runtime"],
        "seconds": known.get("seconds"),
        "bytes": known.get("bytes"),
    }


def _slot_json(camera: Camera, slot: Slot | None) -> dict[str, Any] | None:
    """A slot, with its engine: the one for the device as it is, else the one in service, which is then stale."""
    if slot is None:
        return None
    engine, stale = read_engine(slot.engine) if slot.engine else None, None
    if camera.runtime:
        wanted = camera.wanted(slot)
        engine = read_engine(engine_folder(slot, wanted)) or engine
        stale = engine.stale(wanted) if engine else None
    told = engine and {**_engine_json(engine), "self_test": engine.self_test, "stale": stale}
    return {**_bundle_json(slot.manifest, slot.identity), "slot": slot.name, "engine": told}

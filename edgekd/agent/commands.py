"""Commands of the agent: a function for each, whose result is the JSON object that the agent prints.

docs/reference/agent.md and docs/schemas/agent.json describe the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.apply_delta import old_bundle, opened_update, whole_bundle
from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.choice import forms
from edgekd.agent.engines.engine import Engine, build_engine, built_engine, engine_of, read_engine, require_engine
from edgekd.agent.state.device import read_device
from edgekd.agent.state.slots import Activation, Slot, State
from edgekd.agent.state.trial import Trial
from edgekd.agent.status import (
    BundleStatus,
    EngineBuildStatus,
    ServiceStatus,
    built_engine_status,
    bundle_status,
    service_status,
)
from edgekd.agent.trust_state import (
    STRICT,
    TrustStatus,
    camera_judge,
    effective_trust,
    head_judge,
    held_trust,
    is_strict,
    raise_counter,
    read_trust,
    require_admissible,
    require_model,
    require_not_older,
    require_not_revoked,
    required_trust,
    take_trust,
    trust_status_of,
)
from edgekd.agent.trusted_clock import current_time
from edgekd.core.atomic_files import new_file
from edgekd.core.bundle.archive import BundleHead, BundleReader, opened_bundle
from edgekd.core.bundle.network import verify_bundle
from edgekd.core.documents import INLINE
from edgekd.core.errors import BundleError, DeviceError, HashError, RollbackError

if TYPE_CHECKING:
    from edgekd.agent.apply_delta import Update
    from edgekd.agent.engines.selftest import SelfTestResult
    from edgekd.core.bundle.archive import Judge
    from edgekd.core.bundle.manifest import Manifest


@dataclass(frozen=True)
class VerifyResult:
    """Result of `verify`.

    Args:
        bytes: Size of the bundle.
        files: Number of its files.
        signatures: Ids of the keys that have signed it; `trust` decides whether they are accepted.
        trust: Trust file by which it was judged; null without one, and then every bundle is accepted.
    """

    bundle: BundleStatus = field(metadata=INLINE)
    bytes: int
    files: int
    signatures: Sequence[str]
    trust: TrustStatus | None


def verify(camera: Camera, bundle: Path, trust: Path | None = None) -> VerifyResult:
    """Check a bundle from its first byte to its last, and its signatures by a trust file.

    trust: in place of the trust file that the camera holds; without either, signatures are not checked. Raises
    BundleError, HashError, SignatureError.
    """
    now = current_time(camera.state, camera.clock())
    held = read_trust(trust) if trust else held_trust(camera.state, camera.root)
    with opened_bundle(bundle, head_judge(held, now)) as reader:
        verify_bundle(reader)
        head, size = reader.head, reader.size
    return VerifyResult(
        bundle_status(head.manifest, head.identity),
        size,
        len(head.manifest.files),
        [signature.key for signature in head.envelope.signatures],
        trust_status_of(held, now) if held else None,
    )


@dataclass(frozen=True)
class TrustResult:
    """Result of `trust`: the trust file in effect now.

    Args:
        changed: False where it was in effect already.
    """

    trust: TrustStatus = field(metadata=INLINE)
    changed: bool


def trust(camera: Camera, paths: Sequence[Path]) -> TrustResult:
    """Replace the trust file that is held by a newer one. Raises SignatureError where it does not allow that."""
    clock = camera.clock()
    with camera.state.locked():
        held, changed = take_trust(camera.state, camera.root, paths, clock)
    return TrustResult(trust_status_of(held, current_time(camera.state, clock)), changed)


@dataclass(frozen=True)
class PatchResult:
    """Result of `patch`: the new bundle.

    Args:
        file: Path of the bundle.
        bytes: Its size.
        old: Identity of the bundle that it was rebuilt from.
    """

    bundle: BundleStatus = field(metadata=INLINE)
    file: Path
    bytes: int
    old: str


def patch(camera: Camera, delta: Path, out: Path) -> PatchResult:
    """Write the bundle that a delta leads to. Raises BundleError, HashError, SignatureError, DeviceError, SpecError."""
    judge = camera_judge(camera.state, camera.root, camera.clock())
    with opened_update(delta, judge) as update:
        if isinstance(update, BundleReader):
            raise BundleError(f"{delta}: not a delta", expected="what `edgekd delta` writes", fix="a bundle needs none")
        with old_bundle(camera.state, update) as old, new_file(out) as stream:
            update.rebuild(old, stream)
        head = update.head
        return PatchResult(bundle_status(head.manifest, head.identity), out, update.new_bytes, old.identity)


@dataclass(frozen=True)
class UnpackedSlot:
    """A bundle in a slot.

    Args:
        slot: Name of the slot, `a` or `b`.
        fits: Whether the device is the target of the bundle; null where that is unknown.
        file_error: Error of the given file, which is cut short or too long, where it was not needed, because the bundle
            was in the slot already; else null.
    """

    bundle: BundleStatus = field(metadata=INLINE)
    slot: str
    fits: bool | None
    file_error: str | None


@dataclass(frozen=True)
class UnpackResult:
    """Result of `unpack`.

    Args:
        changed: False where the bundle was in the slot already.
        graph: Path of the expanded network.
        graph_bytes: Its size.
    """

    slot: UnpackedSlot = field(metadata=INLINE)
    changed: bool
    graph: Path
    graph_bytes: int


def unpack(camera: Camera, bundle: Path) -> UnpackResult:
    """Verify a bundle, or rebuild it from a delta, and unpack it with its expanded graph into the free slot.

    Raises BundleError, HashError; SignatureError where the camera's trust file does not allow it, RollbackError where
    it is older than a bundle that was in service; DeviceError where it is for another device, or the bundle in service
    is on trial; DiskFullError.
    """
    judge = camera_judge(camera.state, camera.root, camera.clock())
    with opened_update(bundle, judge) as update, prepared(camera, update, judge) as new:
        return unpack_prepared(camera, new)


@dataclass(frozen=True)
class Prepared:
    """A bundle that was judged.

    whole: the complete bundle, None where its content is in a slot already; file_error: of its file, which is then not
    read to its end.
    """

    path: Path
    head: BundleHead
    fits: bool | None
    judged: bool
    whole: BundleReader | None
    file_error: str | None = None


@contextmanager
def prepared(camera: Camera, update: Update, judge: Judge | None) -> Iterator[Prepared]:
    """Check that an update is for this device, and rebuild a delta, which takes long and needs no lock.

    Raises BundleError, HashError, SignatureError, DeviceError, SpecError.
    """
    head, path = update.head, update.path
    fits = require_for_camera(camera, head.manifest, path)
    if camera.state.find(head.identity):
        yield Prepared(path, head, fits, judge is not None, None, _size_error(update))
        return
    with whole_bundle(camera.state, update, judge) as whole:
        yield Prepared(path, head, fits, judge is not None, whole)


def _size_error(update: Update) -> str | None:
    """Return the error of a bundle's file whose size is wrong; None for a delta, whose size is not known."""
    try:
        if isinstance(update, BundleReader):
            update.require_size()
    except BundleError as error:
        return str(error)
    return None


def require_for_camera(camera: Camera, manifest: Manifest, what: object) -> bool | None:
    """Return whether a bundle is for this device, None where that is unknown. Raises BundleError where it is not.

    A strict camera also refuses a bundle where that is unknown; `require_model` has the rules for the model.
    """
    device, compatible = read_device(camera.root), manifest.target.compatible
    fits, name_it = device.fits(compatible), "write the name of the device to /etc/edgekd/compatible"
    if fits is False:
        fix = f"build it for the target of this device, or {name_it}"
        raise BundleError(f"{what}: for another device", expected=device.expected_bundle, found=compatible, fix=fix)
    if fits is None and is_strict(camera.root):
        expected = f"a known device, as /{STRICT} requires"
        raise BundleError(f"{what}: not known to fit", expected=expected, found=compatible, fix=name_it)
    require_model(camera.state, camera.root, manifest, what)
    return fits


def unpack_prepared(camera: Camera, new: Prepared) -> UnpackResult:
    """Unpack an update, as `unpack` does."""
    state, head = camera.state, new.head
    with state.locked():
        require_not_older(state, effective_trust(state, camera.root), head.manifest.counter, new.path)
        existing = state.find(head.identity)
        require_no_trial(state, existing)
        state.allow(head.identity)
        if existing:
            if new.judged:
                state.update_signatures(existing, head)
            slot = existing
        elif new.whole:
            slot = state.fill(new.whole)
        else:
            raise DeviceError(f"{new.path}: its slot was replaced meanwhile", fix="try again")
        size = slot.graph.stat().st_size
    unpacked = UnpackedSlot(bundle_status(slot.manifest, slot.identity), slot.name, new.fits, new.file_error)
    return UnpackResult(unpacked, existing is None, slot.graph, size)


@dataclass(frozen=True)
class BuildReport:
    """Result of `build`.

    Args:
        slot: Name of the slot.
        changed: False where the engine was there already.
    """

    slot: str
    changed: bool
    engine: EngineBuildStatus = field(metadata=INLINE)


def build(camera: Camera, shares: Mapping[str, float] | None = None) -> BuildReport:
    """Build the engine for this device, unless there is an undamaged one.

    shares: minimum share of the engine by precision. Raises DeviceError, PrecisionError.
    """
    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        key = camera.engine_key(slot)
        form = forms(slot, key)[0]
        request, existing = camera.request(form, shares), built_engine(slot, key, form)
        engine = existing if existing and existing.whole else build_engine(slot, runtime, key, request)
        request.require(slot, engine.record.realized)
    return BuildReport(slot.name, engine is not existing, built_engine_status(engine))


def selftest(camera: Camera, *, layers: bool = False, max_latency_ms: float | None = None) -> SelfTestResult:
    """Compare the outputs of the engine with the golden set. Raises SelfTestError, DeviceError.

    layers: also measure the divergence of inner tensors, which takes two more builds; max_latency_ms: maximum of the
    median run time, in place of the limit by the bundle's frames per second.
    """
    from edgekd.agent.engines.layer_divergence import layer_divergence
    from edgekd.agent.engines.selftest import SelfTestError, SelfTestResult, keep_self_test

    with camera.state.locked():
        slot, runtime = camera.chosen_slot(), camera.required_runtime()
        engine = require_engine(slot, camera.engine_key(slot))
        limit_ms = max_latency_ms or _latency_limit_ms(camera, slot)
        report = keep_self_test(slot, runtime, engine, limit_ms)
        divergence = layer_divergence(slot, runtime) if layers else None
    result, test = SelfTestResult(slot.name, engine.name, report, divergence), report.test
    if not test.passed and test.latency:
        raise SelfTestError(
            f"slot {slot.name}: the engine is too slow",
            report=result,
            expected=f"at most {test.latency.limit_ms:.4g} ms as the median of its runs",
            found=f"{test.latency.p50_ms:.4g} ms",
            fix="see whether the power mode is the one that the bundle was built for",
        )
    if not test.passed:
        raise SelfTestError(
            f"slot {slot.name}: the engine drifted from the golden set",
            report=result,
            expected=f"boxes within {test.tolerance.boxes} and scores within {test.tolerance.scores}",
            found=f"boxes {test.error.boxes} and scores {test.error.scores}",
            fix="keep the bundle that is in service, and report the engine's runtime and device",
        )
    return result


def _latency_limit_ms(camera: Camera, slot: Slot) -> float | None:
    """Return the run time by the bundle's frames per second, where the device is its target."""
    fps, target = slot.manifest.limits.min_fps, slot.manifest.target
    return 1000 / fps if fps and read_device(camera.root).fits(target.compatible) else None


@dataclass(frozen=True)
class ServiceChange:
    """Result of `activate` and `rollback`.

    Args:
        changed: False where the bundle was in service already, with this engine.
    """

    service: ServiceStatus = field(metadata=INLINE)
    changed: bool


def activate(camera: Camera, trial: Trial | None = None) -> ServiceChange:
    """Put a slot with a tested engine into service: on trial where one is given, and a rollback is possible.

    Raises DeviceError where its engine did not pass, SignatureError, RollbackError or BundleError where it is not
    allowed any more.
    """
    state = camera.state
    with state.locked():
        slot = camera.chosen_slot()
        engine = require_engine(slot, camera.engine_key(slot))
        require_passed(slot, engine)
        active = state.active
        replaced = active if active and active.name != slot.name else None
        record = Activation(replaced.identity, trial=trial) if replaced else Activation()
        if active is None or replaced:
            held = required_trust(state, camera.root)
            require_for_camera(camera, slot.manifest, f"slot {slot.name}")
            require_admissible(state, slot, held, camera.clock())
            if record.trial is None:
                raise_counter(state, held, slot.manifest.counter)
        changed = state.put_into_service(slot, engine.folder, record)
        return ServiceChange(service_status(state), changed)


def rollback(camera: Camera) -> ServiceChange:
    """Put the bundle that was in service before back into service, with its engine unchanged.

    A damaged trust file revokes nothing, so that a rollback stays possible. Raises RollbackError where there is no such
    bundle, SignatureError where it was revoked, DeviceError where its engine did not pass its self-test, HashError
    where that is damaged; then what is in service stays, revoked or not.
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
        held = effective_trust(state, camera.root)
        require_not_revoked(previous, active, held)
        engine = read_engine(previous.engine)
        require_passed(previous, engine)
        if engine and not engine.whole:
            raise HashError(f"{engine.file}: damaged", fix="install another bundle; what is in service stays")
        with suppress(DeviceError):  # a damaged counter lets nothing in, and does not keep from going back
            raise_counter(state, held)
        state.put_into_service(previous, previous.engine, Activation(rejected=active.identity))
        return ServiceChange(service_status(state), changed=True)


def runtime_in_service(state: State) -> str | None:
    """Return the name of the runtime of the engine in service; None where there is none."""
    engine = engine_of(state.active)
    return engine.record.key.runtime.name if engine else None


def require_no_trial(state: State, wanted: Slot | None = None) -> None:
    """Raise DeviceError where a bundle would replace the rollback target of the bundle on trial."""
    active = state.active
    if state.activation.trial and active and (wanted is None or wanted.name != active.name):
        raise DeviceError(
            f"slot {active.name}: on trial, and the other slot has the target of its rollback",
            expected="a bundle that was committed",
            fix="commit, or rollback; else `boot` ends the trial",
        )


def require_passed(slot: Slot, engine: Engine | None) -> None:
    """Raise DeviceError where an engine did not pass its self-test."""
    if engine is None or not engine.passed:
        raise DeviceError(
            f"slot {slot.name}: not ready for service",
            expected="an engine that passed its self-test",
            found="one that failed it" if engine and engine.failed else "one without a self-test",
            fix=f"selftest --slot {slot.name}",
        )

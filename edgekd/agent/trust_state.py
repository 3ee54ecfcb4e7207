"""The trust file and the counter of a camera, which reject bundles without valid signatures, or of an older version.

The firmware may have a trust file, `etc/edgekd/trust.json` below the root; a newer one is kept with the slots. The one
with the higher version is in effect. Without one, every undamaged bundle is accepted, and no module for trust files is
imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.trusted_clock import current_time, judging_time
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import BundleError, DeviceError, RollbackError, SignatureError, naming

if TYPE_CHECKING:
    from edgekd.agent.state.slots import Slot, State
    from edgekd.core.bundle.archive import Judge
    from edgekd.core.bundle.manifest import Manifest
    from edgekd.core.bundle.signatures import SignatureEnvelope
    from edgekd.core.bundle.trust import Revocation, SignedTrust

FACTORY = Path("etc/edgekd/trust.json")
STRICT = Path("etc/edgekd/strict")
TRUST, COUNTER = "trust.json", "counter.json"


def is_strict(root: Path) -> bool:
    """Return whether the firmware refuses unsigned bundles, those for unknown devices, and other models' by name."""
    return os.path.lexists(root / STRICT)


def require_model(state: State, root: Path, manifest: Manifest, what: object) -> None:
    """Raise BundleError for a bundle of another model of the camera.

    A bundle with a role is for the model of that name alone, so its counter counts there alone. One without is for any,
    except on a strict camera, where its name must be that of the model.
    """
    model, role = state.model, manifest.role
    if role is not None and role != model:
        expected = f"role {model}, or none" if model else "a bundle without a role, as there is no --model"
        fix = f"install it with --model {role}"
        raise BundleError(f"{what}: for another model", expected=expected, found=f"role {role}", fix=fix)
    if role is None and model is not None and manifest.name != model and is_strict(root):
        fix = "install it as its own model, or make it for this one by `edgekd pack --role`"
        raise BundleError(f"{what}: of another model", expected=f"name {model}", found=manifest.name, fix=fix)


def required_trust(state: State, root: Path) -> SignedTrust | None:
    """Return the trust file in effect. Raises SignatureError where one is damaged, or missing on a strict camera."""
    held = held_trust(state, root)
    if held is None and is_strict(root):
        raise SignatureError("no trust file", expected=f"one, as /{STRICT} requires", fix=f"put one at /{FACTORY}")
    return held


def held_trust(state: State, root: Path) -> SignedTrust | None:
    """Return the trust file in effect. Raises SignatureError where one is damaged: then no bundle is accepted."""
    files = [read_trust(path) for path in (root / FACTORY, state.base / TRUST) if not _is_missing(path)]
    return max(files, key=lambda signed: signed.trust.version, default=None)


def _is_missing(path: Path) -> bool:
    """Return whether there is no such file: a broken link is a damaged one, and so is one in a closed folder."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def read_trust(path: Path) -> SignedTrust:
    """Read a trust file that its own keys have signed. Raises SignatureError with its path."""
    from edgekd.core.bundle.trust import MAX_BYTES, from_json, require_complete

    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        what = f"{path}: cannot read"
        raise SignatureError(what, found=error.strerror or str(error), fix="check the path") from error
    with naming(path):
        signed = from_json(content)
        require_complete(signed)
    return signed


def camera_judge(state: State, root: Path, clock: datetime) -> Judge | None:
    """Return the judge by the trust file in effect, at the time that is judged by, which is stored.

    Raises SignatureError where the trust file is damaged, or missing on a strict camera, DeviceError where the stored
    time is damaged.
    """
    held = required_trust(state, root)
    return head_judge(held, judging_time(state, held.trust, clock)) if held else None


def head_judge(held: SignedTrust | None, now: datetime) -> Judge | None:
    """Return a function that raises SignatureError where valid signatures are missing; None without a trust file."""
    if held is None:
        return None
    from edgekd.core.bundle.trust import require_signed

    trust = held.trust

    def require_trusted(envelope: SignatureEnvelope) -> None:
        require_signed(trust, envelope.sha256, envelope.signatures, now)

    return require_trusted


def take_trust(state: State, root: Path, paths: Iterable[Path], clock: datetime) -> tuple[SignedTrust, bool]:
    """Accept trust files, each as the successor of the one before; return the last, and whether it is a new one.

    A camera without one accepts the first as it is: it must come from the source of the firmware. A file in effect
    already is skipped. Raises SignatureError, and then changes nothing.
    """
    from edgekd.core.bundle.trust import require_next, to_json

    held = before = held_trust(state, root)
    now = judging_time(state, held.trust, clock) if held else clock
    for path in paths:
        new = read_trust(path)
        if held is None:
            held = new
        elif new.trust != held.trust:
            with naming(path):
                require_next(held, new, now)
            held = new
    if held is None:
        raise SignatureError("no trust file", fix="name one")
    if held != before:
        write_file(state.base / TRUST, to_json(held))
    return held, held != before


@dataclass(frozen=True)
class MinimumCounter:
    """Minimum counter of a bundle. reset: version of the last counter reset that was applied, 0 for none."""

    counter: int = 0
    reset: int = 0


def effective_trust(state: State, root: Path) -> SignedTrust | None:
    """Return the trust file in effect; None where there is none, or one is damaged."""
    try:
        return held_trust(state, root)
    except SignatureError:
        return None


def minimum_counter(state: State, held: SignedTrust | None) -> int:
    """Return the minimum counter of a bundle: the highest committed, unless a reset has lowered it.

    Raises DeviceError where the stored one is damaged.
    """
    return _minimum(state, _stored_minimum(state), held).counter


def raise_counter(state: State, held: SignedTrust | None, value: int = 0) -> None:
    """Store a minimum counter of at least `value`: on the disk before the bundle that has it is committed.

    Without a value it stores the minimum as it is. Raises DeviceError, SpecError.
    """
    stored = _stored_minimum(state)
    minimum = _minimum(state, stored, held)
    minimum = replace(minimum, counter=max(minimum.counter, value))
    if minimum != stored:
        reset = {"reset": minimum.reset} if minimum.reset else {}
        write_file(state.root / COUNTER, canonical_json({"counter": minimum.counter, **reset}))


def _minimum(state: State, stored: MinimumCounter, held: SignedTrust | None) -> MinimumCounter:
    """Return the stored minimum after a reset by the trust file that was not applied yet."""
    counter = stored.counter
    if not stored.reset and state.active and state.activation.trial is None:
        counter = max(counter, state.active.manifest.counter)  # earlier agents stored none at a commit
    reset = held.trust.counter_reset if held else None
    if reset is None or reset.version <= stored.reset:
        return replace(stored, counter=counter)
    return MinimumCounter(min(counter, reset.counter), reset.version)


def _stored_minimum(state: State) -> MinimumCounter:
    path = state.root / COUNTER
    try:
        document = json.loads(path.read_bytes())
        stored = MinimumCounter(document["counter"], document.get("reset", 0))
        if type(stored.counter) is not int or type(stored.reset) is not int:
            raise ValueError(f"{document} is no counter")
    except FileNotFoundError:
        return MinimumCounter()
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"{path}: damaged", found=str(error), fix="restore the state folder") from error
    return stored


def require_not_older(state: State, held: SignedTrust | None, value: int, what: object) -> None:
    """Raise RollbackError for a bundle whose counter is below the minimum."""
    minimum = minimum_counter(state, held)
    if value < minimum:
        raise RollbackError(
            f"{what}: older than a bundle that was in service here",
            expected=f"counter {minimum} or higher",
            found=f"counter {value}",
            fix="install a newer bundle; `rollback` returns to the previous one",
        )


def require_admissible(state: State, slot: Slot, held: SignedTrust | None, clock: datetime) -> None:
    """Raise SignatureError or RollbackError where the bundle in a slot must not be put into service."""
    require_not_older(state, held, slot.manifest.counter, f"slot {slot.name}")
    if held:
        from edgekd.core.bundle.trust import require_signed

        with naming(f"slot {slot.name}"):
            now = judging_time(state, held.trust, clock)
            require_signed(held.trust, slot.identity, slot.signatures, now)


def revocation_of(slot: Slot, held: SignedTrust | None) -> Revocation | None:
    """Return what the trust file revokes of the bundle in a slot; None where it may return to service.

    Signatures that cannot be read count as revoked where the trust file revokes keys.
    """
    if held is None:
        return None
    from edgekd.core.bundle.trust import Revocation, revocation

    try:
        return revocation(held.trust, slot.identity, slot.signatures if held.trust.revoked_keys else ())
    except (OSError, SignatureError):
        return Revocation("revoked-key", "its signatures, which are damaged")


def require_not_revoked(slot: Slot, active: Slot, held: SignedTrust | None) -> None:
    """Raise SignatureError where the trust file revokes the bundle in a slot that would replace the one in service."""
    revoked = revocation_of(slot, held)
    if revoked:
        also = ", revoked, too" if revocation_of(active, held) else ""
        fix = f"install a newer bundle; slot {active.name} stays in service{also}"
        raise SignatureError(f"slot {slot.name}: revoked", found=revoked.found, fix=fix, cause=revoked.cause)


@dataclass(frozen=True)
class KeyStatus:
    """A key that may sign bundles.

    Args:
        id: Id of the key, as in signatures.
        name: Its name in the trust file.
        expires: Time from which its signatures do not count, UTC; null for never.
        expired: True where that time is past.
    """

    id: str
    name: str
    expires: str | None
    expired: bool


@dataclass(frozen=True)
class TrustStatus:
    """A trust file, which decides whose bundles are accepted.

    Args:
        version: Version of the trust file.
        issued: Time of its issue, UTC.
        expires: Time from which nothing is installed by it, UTC; null for never.
        expired: True where that time is past.
        keys: Names of the keys that may sign bundles.
        threshold: Minimum number of their signatures.
        error: Error of a damaged file, all else being null; null where it is undamaged.
        bundle_keys: The same keys, with their expiry.
    """

    version: int | None = None
    issued: str | None = None
    expires: str | None = None
    expired: bool | None = None
    keys: tuple[str, ...] | None = None
    threshold: int | None = None
    error: str | None = None
    bundle_keys: tuple[KeyStatus, ...] | None = None


def trust_status(state: State, root: Path, clock: datetime) -> tuple[SignedTrust | None, TrustStatus | None]:
    """Return the trust file in effect, None where there is none or it is damaged, and its description."""
    held = None
    try:
        held = held_trust(state, root)
        return held, trust_status_of(held, current_time(state, clock)) if held else None
    except (BundleError, DeviceError) as error:
        return held, TrustStatus(error=str(error))


def trust_status_of(held: SignedTrust, now: datetime) -> TrustStatus:
    """Describe a trust file."""
    trust, time = held.trust, held.trust.now(now)
    return TrustStatus(
        trust.version,
        trust.issued,
        trust.expires,
        trust.has_expired(time),
        tuple(key.name for key in trust.bundle_keys),
        trust.bundle.threshold,
        bundle_keys=tuple(KeyStatus(key.id, key.name, key.expires, key.has_expired(time)) for key in trust.bundle_keys),
    )

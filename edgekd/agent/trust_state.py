"""Whom this camera trusts, and how far it has come: what keeps a bundle out that is not signed right, or too old.

The firmware may bring a trust file, `etc/edgekd/trust.json` below the root; a newer one is kept with the slots. Of the
two the one with the higher version counts. Where there is none, every whole bundle is taken, and what reads trust files
is not even imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import BundleError, DeviceError, RollbackError, SignatureError, naming

if TYPE_CHECKING:
    from edgekd.agent.slots import Slot, State
    from edgekd.core.bundle.archive import Head, Judge
    from edgekd.core.bundle.trust import SignedTrust

FACTORY = Path("etc/edgekd/trust.json")
TRUST, COUNTER = "trust.json", "counter.json"


def utc_now() -> datetime:
    """What the camera's clock says."""
    return datetime.now(timezone.utc)


def held_trust(state: State, root: Path) -> SignedTrust | None:
    """The trust file that this camera holds. Raises SignatureError where one is damaged: better no bundle than any."""
    # A link that leads nowhere is there, and cannot be read: it must not count as none.
    found = [read_trust(path) for path in (root / FACTORY, state.base / TRUST) if os.path.lexists(path)]
    return max(found, key=lambda signed: signed.trust.version, default=None)


def read_trust(path: Path) -> SignedTrust:
    """A trust file that its own keys have signed. Raises SignatureError that names it."""
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


def judge(held: SignedTrust | None, now: datetime) -> Judge | None:
    """What takes a bundle's head or raises SignatureError; None where everything is taken."""
    if held is None:
        return None
    from edgekd.core.bundle.trust import require_signed

    trust = held.trust

    def require_trusted(head: Head) -> None:
        require_signed(trust, head.identity, head.seal.signatures, now)

    return require_trusted


def take_trust(state: State, root: Path, paths: Iterable[Path], now: datetime) -> tuple[SignedTrust, bool]:
    """Take trust files, each as the one after the one before; what is held then, and whether that is another.

    A camera that holds none takes the first as it is: it must come from where the firmware comes from. One that is held
    already is passed over. Raises SignatureError, and then holds what it held.
    """
    from edgekd.core.bundle.trust import require_next, to_json

    held = before = held_trust(state, root)
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


def counter(state: State) -> int:
    """The lowest counter that a bundle may have here: the highest that was put into service. Raises DeviceError."""
    path = state.root / COUNTER
    try:
        stored = json.loads(path.read_bytes())["counter"]
        if type(stored) is not int:
            raise ValueError(f"{stored!r} is no number")
    except FileNotFoundError:
        stored = 0
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"{path}: damaged", found=str(error), fix="restore the state folder") from error
    active = state.active
    return max(stored, active.manifest.counter) if active else stored


def raise_counter(state: State, to: int) -> None:
    """Let no bundle be installed any more whose counter is lower. It is on the disk before the bundle is in service."""
    if to > counter(state):
        write_file(state.root / COUNTER, canonical_json({"counter": to}))


def require_not_older(state: State, found: int, what: object) -> None:
    """Raise RollbackError for a bundle that counts less than one that was in service here."""
    least = counter(state)
    if found < least:
        raise RollbackError(
            f"{what}: older than what was in service here",
            expected=f"counter {least} or higher",
            found=f"counter {found}",
            fix="install a newer bundle; `rollback` leads back to the one before",
        )


def require_admissible(state: State, slot: Slot, held: SignedTrust | None, now: datetime) -> None:
    """Raise SignatureError or RollbackError where the bundle in a slot may not, or no longer, be put into service."""
    require_not_older(state, slot.manifest.counter, f"slot {slot.name}")
    if held:
        from edgekd.core.bundle.trust import require_signed

        with naming(f"slot {slot.name}"):
            require_signed(held.trust, slot.identity, slot.signatures, now)


def require_not_revoked(state: State, slot: Slot, root: Path) -> None:
    """Raise SignatureError where the trust file names the bundle in a slot as one that must not run.

    A trust file that is damaged revokes nothing: going back is what helps when something is broken.
    """
    try:
        held = held_trust(state, root)
    except SignatureError:
        return
    if held and slot.identity in held.trust.revoked_bundles:
        raise SignatureError(f"slot {slot.name}: bundle {slot.identity}: revoked", fix="install a newer bundle")


def trust_json(state: State, root: Path, now: datetime) -> dict[str, Any] | None:
    """What is told of the trust file that is held; None where there is none. A damaged one has an `error`."""
    try:
        held = held_trust(state, root)
    except BundleError as error:
        return {**dict.fromkeys(_TOLD), "error": str(error)}
    return None if held is None else told_json(held, now)


_TOLD = ("version", "issued", "expires", "expired", "keys", "threshold")


def told_json(held: SignedTrust, now: datetime) -> dict[str, Any]:
    """A trust file as the agent tells of it; `keys` are the names of those that may sign bundles."""
    trust = held.trust
    return {
        "version": trust.version,
        "issued": trust.issued,
        "expires": trust.expires,
        "expired": trust.expires is not None and trust.now(now) >= trust.expires,
        "keys": [key.name for key in trust.keys if key.id in trust.bundle.keys],
        "threshold": trust.bundle.threshold,
        "error": None,
    }

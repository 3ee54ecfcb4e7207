"""The trust file: whose signatures a camera takes, how many of them, until when. The data and the rules, no I/O.

It is signed itself. A camera that holds one takes a newer only with enough signatures of the keys that the one it holds
names for that, and as many of those that the newer one names: so keys can be rotated, and nobody who lost a key can
rotate them. docs/formats/trust-file.md has the format, and what each rule is against.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from edgekd.core.bundle import ed25519
from edgekd.core.bundle.signatures import Signature, from_listed, holds, key_id, listed, merged, statement
from edgekd.core.canonical import canonical_json, is_sha256, json_sha256, short_int
from edgekd.core.errors import SignatureError

FORMAT = 1
MAX_BYTES = 256 << 10
MAX_KEYS = 64
MAX_REVOKED = 1024

TIME = "%Y-%m-%dT%H:%M:%SZ"
_TIME_TEXT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_RENEW = "get a newer trust file: docs/signing.md"


@dataclass(frozen=True)
class Key:
    """public: 32 bytes as 64 hexadecimal digits; name: for people; expires: when it stops counting, None for never."""

    public: str
    name: str
    expires: str | None = None

    @property
    def id(self) -> str:
        """What signatures call it."""
        return key_id(bytes.fromhex(self.public))


@dataclass(frozen=True)
class Role:
    """Whose signatures count for something, and how many of them it takes. keys: their ids."""

    keys: tuple[str, ...]
    threshold: int


@dataclass(frozen=True)
class Trust:
    """What a trust file says. Times are UTC as `2027-01-31T00:00:00Z`.

    version: counts up. issued, expires: from when to when it may be used; None for ever.
    bundle: who may sign bundles; trust: who may sign the next trust file.
    revoked_keys: ids that must never count again; revoked_bundles: identities of bundles that must not be installed.
    """

    version: int
    issued: str
    expires: str | None
    keys: tuple[Key, ...]
    bundle: Role
    trust: Role
    revoked_keys: tuple[str, ...] = ()
    revoked_bundles: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """What its signatures are of: SHA-256 of its canonical JSON."""
        return json_sha256(_document(self))

    def forgets(self, old: Trust) -> set[str]:
        """What an older one revoked, and this one does not."""
        return {*old.revoked_keys, *old.revoked_bundles} - {*self.revoked_keys, *self.revoked_bundles}

    def now(self, clock: datetime) -> str:
        """The time by a clock, or, where that is behind and so must be wrong, when this file was issued."""
        return max(clock.strftime(TIME), self.issued)


@dataclass(frozen=True)
class SignedTrust:
    """A trust file with the signatures on it."""

    trust: Trust
    signatures: tuple[Signature, ...] = ()

    def with_signatures(self, more: Iterable[Signature]) -> SignedTrust:
        """The same with more signatures, of each key the last."""
        return replace(self, signatures=merged(self.signatures, more))


def to_json(signed: SignedTrust) -> bytes:
    """The one byte form of a trust file. Raises SignatureError when it breaks a rule."""
    _check(signed.trust)
    return canonical_json({"signatures": listed(signed.signatures), "signed": _document(signed.trust)}) + b"\n"


def from_json(content: bytes) -> SignedTrust:
    """What `to_json` gave. Raises SignatureError for anything else; signatures are read, not checked."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes")
        document = json.loads(content.decode("utf-8"), parse_int=short_int)
        signed = SignedTrust(_trust(document["signed"]), from_listed(document["signatures"]))
        same = to_json(signed) == content
    except SignatureError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SignatureError("not a trust file", found=f"{type(error).__name__}: {error}", fix=_RENEW) from error
    if not same:
        raise SignatureError("not a trust file as edgekd writes it", fix=_RENEW)
    return signed


def require_complete(signed: SignedTrust) -> None:
    """Raise SignatureError unless as many of its own keys have signed a trust file as it asks for."""
    trust = signed.trust
    found = _signers(trust, trust.trust, statement("trust", trust.sha256), signed.signatures, None)
    _require(found, trust.trust, f"trust file {trust.version}", "its own keys")


def require_next(held: SignedTrust, new: SignedTrust, clock: datetime) -> None:
    """Raise SignatureError unless a camera that holds one trust file may take another in its place.

    Keys of the held one that have expired still count here: a camera may have been off for years. Those that were
    revoked never do.
    """
    old, trust = held.trust, new.trust
    what = f"trust file {trust.version}"
    if trust.version <= old.version:
        raise SignatureError(f"{what}: not newer", expected=f"a version above {old.version}", fix=_RENEW)
    message = statement("trust", trust.sha256)
    _require(_signers(old, old.trust, message, new.signatures, None), old.trust, what, f"keys of version {old.version}")
    require_complete(new)
    forgotten = trust.forgets(old)
    if forgotten:
        raise SignatureError(
            f"{what}: forgets what was revoked", expected="all that was revoked before", found=min(forgotten)
        )
    if trust.issued < old.issued:
        raise SignatureError(f"{what}: issued before version {old.version}", expected=old.issued, found=trust.issued)
    _require_current(trust, trust.now(clock))


def require_signed(trust: Trust, sha256: str, signatures: Sequence[Signature], clock: datetime) -> tuple[Key, ...]:
    """Whose signatures make a bundle one to be trusted; `sha256` is that of its manifest.

    Raises SignatureError where they are too few, where one of a known key is wrong, where the trust file has expired,
    or where the bundle was revoked.
    """
    now = trust.now(clock)
    _require_current(trust, now)
    if sha256 in trust.revoked_bundles:
        raise SignatureError(f"bundle {sha256}: revoked", fix="install a newer bundle")
    if not signatures:
        raise SignatureError(
            "not signed", expected=_asked(trust.bundle, f"keys of trust file {trust.version}"), fix="edgekd sign"
        )
    found = _signers(trust, trust.bundle, statement("bundle", sha256), signatures, now)
    _require(found, trust.bundle, "signatures", f"keys of trust file {trust.version}")
    return found


def _signers(
    trust: Trust, role: Role, message: bytes, signatures: Sequence[Signature], now: str | None
) -> tuple[Key, ...]:
    """The keys of a role that have signed a message, without those that are revoked, or expired `now`.

    Signatures of keys that the role does not name are not looked at: a newer trust file may know them.
    """
    named = {key.id: key for key in trust.keys if key.id in role.keys}
    found = []
    for signature in signatures:
        key = named.get(signature.key)
        if key is None:
            continue
        if not holds(signature, bytes.fromhex(key.public), message):
            raise SignatureError(f"signature of key {key.name}: wrong", found=signature.key, fix="get the file again")
        if now is None or key.expires is None or now < key.expires:
            found.append(key)
    return tuple(found)


def _require(found: Sequence[Key], role: Role, what: str, whose: str) -> None:
    if len(found) < role.threshold:
        names = ", ".join(key.name for key in found)
        raise SignatureError(
            f"{what}: not trusted", expected=_asked(role, whose), found=f"{len(found)}{f' ({names})' if names else ''}"
        )


def _asked(role: Role, whose: str) -> str:
    return f"valid signatures of {role.threshold} of the {len(role.keys)} {whose}"


def _require_current(trust: Trust, now: str) -> None:
    if trust.expires is not None and now >= trust.expires:
        raise SignatureError(
            f"trust file {trust.version}: expired", expected=f"a time before {trust.expires}", found=now, fix=_RENEW
        )


def _document(trust: Trust) -> dict[str, Any]:
    told = asdict(trust)
    revoked = {"keys": told.pop("revoked_keys"), "bundles": told.pop("revoked_bundles")}
    return {**told, "format": FORMAT, "revoked": revoked}


def _trust(told: Any) -> Trust:
    if not isinstance(told, dict) or type(told.get("format")) is not int or told["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}: update edgekd")
    bundle, trust = (Role(tuple(told[name]["keys"]), told[name]["threshold"]) for name in ("bundle", "trust"))
    keys = tuple(Key(row["public"], row["name"], row["expires"]) for row in told["keys"])
    revoked = told["revoked"]
    return Trust(
        version=told["version"],
        issued=told["issued"],
        expires=told["expires"],
        keys=keys,
        bundle=bundle,
        trust=trust,
        revoked_keys=tuple(revoked["keys"]),
        revoked_bundles=tuple(revoked["bundles"]),
    )


def _check(trust: Trust) -> None:
    """The rules of a trust file, for whoever writes one and whoever reads one. Raises SignatureError."""
    _expect(_is_count(trust.version, 2**53), "version", "an integer from 1", trust.version)
    _expect(_is_time(trust.issued), "issued", "a time such as 2027-01-31T00:00:00Z", trust.issued)
    if trust.expires is not None:
        _expect(_is_time(trust.expires) and trust.issued < trust.expires, "expires", "a later time", trust.expires)
    _expect(1 <= len(trust.keys) <= MAX_KEYS, "keys", f"1 to {MAX_KEYS} keys", len(trust.keys))
    for key in trust.keys:
        _expect(is_sha256(key.public), "keys", "64 hexadecimal digits in lower case", key.public)
        sound = ed25519.sound_key(bytes.fromhex(key.public))
        _expect(sound, "keys", "public keys of Ed25519, canonical, not of small order", key.public)
        printable = isinstance(key.name, str) and 0 < len(key.name) <= 100 and key.name.isprintable()
        _expect(printable, "keys", "names of 1 to 100 printable characters", key.name)
        _expect(key.expires is None or _is_time(key.expires), "keys", "times of expiry, or null", key.expires)
    ids = [key.id for key in trust.keys]
    _expect(ids == sorted(set(ids)), "keys", "keys in ascending order of their ids, none twice", ids)
    for name, role in (("bundle", trust.bundle), ("trust", trust.trust)):
        _expect(_is_list(role.keys, MAX_KEYS), name, "ids of keys in ascending order, none twice", role.keys)
        _expect(set(role.keys) <= set(ids), name, "ids of the keys listed", role.keys)
        threshold = f"a threshold from 1 to {len(role.keys)}"
        _expect(_is_count(role.threshold, len(role.keys)), name, threshold, role.threshold)
    for revoked in (trust.revoked_keys, trust.revoked_bundles):
        _expect(_is_list(revoked, MAX_REVOKED), "revoked", f"at most {MAX_REVOKED} hashes in ascending order", revoked)
    _expect(not {*trust.revoked_keys} & {*ids}, "revoked", "no key that is listed, too", trust.revoked_keys)


def _expect(holds: bool, where: str, expected: str, found: Any) -> None:
    if not holds:
        raise SignatureError(f"trust file: {where}: wrong", expected=expected, found=repr(found)[:80])


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_list(values: Sequence[Any], most: int) -> bool:
    return len(values) <= most and all(map(is_sha256, values)) and list(values) == sorted(set(values))


def _is_time(value: Any) -> bool:
    if not isinstance(value, str) or not _TIME_TEXT.fullmatch(value):
        return False
    try:
        datetime.strptime(value, TIME)
    except ValueError:
        return False
    return True

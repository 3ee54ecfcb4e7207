"""The trust file: the keys whose signatures a camera accepts, how many of them, until when. No I/O.

It is signed itself. A camera accepts a newer one only with enough signatures by the trust keys of its own, and by those
of the newer one: so keys can be rotated. docs/reference/formats/trust-file.md has the format, and the threat
behind each rule.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from edgekd.core.bundle import ed25519
from edgekd.core.bundle.signatures import Signature, from_listed, holds, key_id, listed, merged, statement
from edgekd.core.canonical import bounded_json, canonical_json, is_sha256, json_sha256
from edgekd.core.errors import Cause, SignatureError

FORMAT = 1
MAX_BYTES = 256 << 10
MAX_KEYS = 64
MAX_REVOKED = 1024
MAX_VALUES = 4096
"""Maximum values and names, as `bounded_json` counts; those of a file with all that it may have take 2,800."""

TIME = "%Y-%m-%dT%H:%M:%SZ"
_TIME_TEXT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_RENEW = "get a newer trust file: docs/guides/sign.md"
_REFUSALS: Mapping[Cause, tuple[str, str]] = {
    "revoked-key": ("signed by a revoked key", "edgekd sign, with a key that is not revoked"),
    "expired-key": ("signed by an expired key", "edgekd sign, with a key that has not expired, or " + _RENEW),
    "too-few": ("too few signatures", "edgekd sign, with more keys"),
    "unknown-key": ("signed by unknown keys alone", "edgekd sign, with a key of the trust file"),
    "unsigned": ("not signed", "edgekd sign"),
}
"""Text and fix where valid signatures are too few, by the cause; the first that is found counts."""


@dataclass(frozen=True)
class Key:
    """A key. public: 32 bytes as 64 hexadecimal digits; name: for people; expires: None for never."""

    public: str
    name: str
    expires: str | None = None

    @property
    def id(self) -> str:
        """Id of the key in signatures."""
        return key_id(bytes.fromhex(self.public))

    def has_expired(self, now: str) -> bool:
        """Return whether its signatures of bundles no longer count; now: as `Trust.now` returns."""
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True)
class Role:
    """Keys, by id, and the minimum number of their signatures."""

    keys: tuple[str, ...]
    threshold: int


@dataclass(frozen=True)
class CounterReset:
    """A reset of the cameras' minimum counters, which each camera applies once.

    counter: maximum of the minimum afterwards; version: of the trust file in which the reset came first.
    """

    counter: int
    version: int


@dataclass(frozen=True)
class Trust:
    """Content of a trust file. Times are UTC as `2027-01-31T00:00:00Z`.

    version: counts up. issued, expires: period of validity; None for ever.
    bundle: keys for bundles; trust: keys for the next trust file.
    revoked_keys: ids of keys; revoked_bundles: identities of bundles that must not be installed.
    counter_reset: the last one; it stays listed, for cameras that skip versions.
    """

    version: int
    issued: str
    expires: str | None
    keys: tuple[Key, ...]
    bundle: Role
    trust: Role
    revoked_keys: tuple[str, ...] = ()
    revoked_bundles: tuple[str, ...] = ()
    counter_reset: CounterReset | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of its canonical JSON, which is signed."""
        return json_sha256(_document(self))

    def forgets(self, old: Trust) -> set[str]:
        """Return the revocations of an older trust file that this one lacks."""
        return {*old.revoked_keys, *old.revoked_bundles} - {*self.revoked_keys, *self.revoked_bundles}

    def continues_reset(self, old: Trust) -> bool:
        """Return whether the counter reset is that of an older trust file, or a later one."""
        new = self.counter_reset
        return new == old.counter_reset or (new is not None and new.version > old.version)

    def now(self, clock: datetime) -> str:
        """Return the time of a clock, but not before this file was issued: then the clock is wrong."""
        return max(clock.strftime(TIME), self.issued)

    def has_expired(self, now: str) -> bool:
        """Return whether nothing is accepted by this file any more."""
        return self.expires is not None and now >= self.expires

    @property
    def bundle_keys(self) -> tuple[Key, ...]:
        """Keys that may sign bundles."""
        return tuple(key for key in self.keys if key.id in self.bundle.keys)


@dataclass(frozen=True)
class SignedTrust:
    """A trust file with the signatures on it."""

    trust: Trust
    signatures: tuple[Signature, ...] = ()

    def with_signatures(self, more: Iterable[Signature]) -> SignedTrust:
        """Return the file with more signatures, of each key the last."""
        return replace(self, signatures=merged(self.signatures, more))


def to_json(signed: SignedTrust) -> bytes:
    """Return the canonical JSON of a trust file. Raises SignatureError when it breaks a rule."""
    _check(signed.trust)
    return canonical_json({"signatures": listed(signed.signatures), "signed": _document(signed.trust)}) + b"\n"


def from_json(content: bytes) -> SignedTrust:
    """Parse the result of `to_json`; signatures are not verified. Raises SignatureError for any other byte form."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes")
        document = bounded_json(content, MAX_VALUES)
        signed = SignedTrust(_trust(document["signed"]), from_listed(document["signatures"]))
        same = to_json(signed) == content
    except SignatureError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SignatureError("not a trust file", found=f"{type(error).__name__}: {error}", fix=_RENEW) from error
    if not same:
        raise SignatureError("not a trust file as edgekd writes it", fix=_RENEW)
    return signed


def require_complete(signed: SignedTrust) -> None:
    """Raise SignatureError unless a trust file has enough signatures by its own keys."""
    trust = signed.trust
    message, what = statement("trust", trust.sha256), f"trust file {trust.version}: "
    _require(_signers(trust, trust.trust, message, signed.signatures, None), trust.trust, what, "its own keys")


def require_next(held: SignedTrust, new: SignedTrust, clock: datetime) -> None:
    """Raise SignatureError unless a trust file may replace the one in effect.

    Expired keys of the one in effect still count here: a camera may have been off for years. Revoked ones do not.
    """
    old, trust = held.trust, new.trust
    what = f"trust file {trust.version}"
    if trust.version <= old.version:
        raise SignatureError(f"{what}: not newer", expected=f"a version above {old.version}", fix=_RENEW)
    found = _signers(old, old.trust, statement("trust", trust.sha256), new.signatures, None)
    _require(found, old.trust, f"{what}: ", f"keys of version {old.version}")
    require_complete(new)
    forgotten = trust.forgets(old)
    if forgotten:
        raise SignatureError(
            f"{what}: lacks earlier revocations", expected="all earlier revocations", found=min(forgotten)
        )
    if not trust.continues_reset(old):
        raise SignatureError(
            f"{what}: changes an earlier counter reset",
            expected=f"that of version {old.version}, or one of a version above it",
            found=repr(trust.counter_reset),
        )
    if trust.issued < old.issued:
        raise SignatureError(f"{what}: issued before version {old.version}", expected=old.issued, found=trust.issued)
    _require_current(trust, trust.now(clock))


def require_signed(trust: Trust, sha256: str, signatures: Sequence[Signature], clock: datetime) -> tuple[Key, ...]:
    """Return the keys of the valid signatures of a bundle; sha256: of its manifest.

    Raises SignatureError where they are too few, one of a known key is wrong, the trust file has expired, or the bundle
    was revoked.
    """
    now = trust.now(clock)
    _require_current(trust, now)
    if sha256 in trust.revoked_bundles:
        raise SignatureError(f"bundle {sha256}: revoked", fix="install a newer bundle", cause="revoked-bundle")
    found = _signers(trust, trust.bundle, statement("bundle", sha256), signatures, now)
    return _require(found, trust.bundle, "", f"keys of trust file {trust.version}")


class Revocation(NamedTuple):
    """The part of a bundle that a trust file revokes: all of it, or a key of its signatures. found: it, as text."""

    cause: Cause
    found: str


def revocation(trust: Trust, sha256: str, signatures: Sequence[Signature]) -> Revocation | None:
    """Return what a trust file revokes of a bundle that was accepted before; None where it may return to service.

    That is the bundle itself, or a key without which its signatures are too few. Expiry does not matter here, nor do
    keys that were replaced without being revoked. Raises SignatureError where a signature of a known key is wrong.
    """
    if sha256 in trust.revoked_bundles:
        return Revocation("revoked-bundle", f"bundle {sha256}")
    revoked = {signature.key for signature in signatures} & {*trust.revoked_keys}
    if not revoked:
        return None
    valid = _signers(trust, trust.bundle, statement("bundle", sha256), signatures, None).valid
    if len(valid) >= trust.bundle.threshold:
        return None
    return Revocation("revoked-key", f"key {min(revoked)} of its signatures")


@dataclass(frozen=True)
class _Signers:
    """Keys of the signatures of a message. others: descriptions of the keys that do not count, and why."""

    valid: tuple[Key, ...]
    others: Mapping[str, Cause]


def _signers(trust: Trust, role: Role, message: bytes, signatures: Sequence[Signature], now: str | None) -> _Signers:
    """Return the keys that have signed a message: those of a role count, each once, until they have expired `now`.

    Signatures by other keys are not verified, and do no harm: a newer trust file may know them. Raises SignatureError
    for a wrong one of a key of the role.
    """
    known = {key.id: key for key in trust.keys}
    valid: dict[str, Key] = {}
    others: dict[str, Cause] = {}
    for signature in signatures:
        key = known.get(signature.key)
        if key is None:
            revoked = signature.key in trust.revoked_keys
            others[f"{signature.key} ({'revoked' if revoked else 'unknown'})"] = (
                "revoked-key" if revoked else "unknown-key"
            )
        elif key.id not in role.keys:
            others[f"{key.name} (not for such files)"] = "unknown-key"
        elif not holds(signature, bytes.fromhex(key.public), message):
            what, fix = f"signature of key {key.name}: wrong", "get the file again"
            raise SignatureError(what, found=signature.key, fix=fix, cause="wrong-signature")
        elif now is not None and key.has_expired(now):
            others[f"{key.name} (expired {key.expires})"] = "expired-key"
        else:
            valid[key.public] = key
    return _Signers(tuple(valid.values()), others)


def _require(signers: _Signers, role: Role, what: str, whose: str) -> tuple[Key, ...]:
    """Return the valid keys. Raises SignatureError, which tells the causes apart, where they are too few."""
    valid, others = signers.valid, signers.others
    if len(valid) >= role.threshold:
        return valid
    causes = {*others.values(), "too-few" if valid else "unsigned"}
    cause = next(cause for cause in _REFUSALS if cause in causes)
    text, fix = _REFUSALS[cause]
    names = "; ".join((*(key.name for key in valid), *others))
    raise SignatureError(
        what + text,
        expected=f"valid signatures of {role.threshold} of the {len(role.keys)} {whose}",
        found=f"{len(valid)} of {role.threshold} signatures{': ' if names else ''}{names}",
        fix=fix,
        cause=cause,
    )


def _require_current(trust: Trust, now: str) -> None:
    if trust.has_expired(now):
        raise SignatureError(
            f"trust file {trust.version}: expired",
            expected=f"a time before {trust.expires}",
            found=now,
            fix=_RENEW,
            cause="expired-trust-file",
        )


def _document(trust: Trust) -> dict[str, Any]:
    document = asdict(trust)
    revoked = {"keys": document.pop("revoked_keys"), "bundles": document.pop("revoked_bundles")}
    if trust.counter_reset is None:
        del document["counter_reset"]  # files without one stay as older agents read them
    return {**document, "format": FORMAT, "revoked": revoked}


def _trust(document: Any) -> Trust:
    if not isinstance(document, dict) or type(document.get("format")) is not int or document["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}: update edgekd")
    bundle, trust = (Role(tuple(document[name]["keys"]), document[name]["threshold"]) for name in ("bundle", "trust"))
    keys = tuple(Key(row["public"], row["name"], row["expires"]) for row in document["keys"])
    revoked, reset = document["revoked"], document.get("counter_reset")
    return Trust(
        version=document["version"],
        issued=document["issued"],
        expires=document["expires"],
        keys=keys,
        bundle=bundle,
        trust=trust,
        revoked_keys=tuple(revoked["keys"]),
        revoked_bundles=tuple(revoked["bundles"]),
        counter_reset=CounterReset(reset["counter"], reset["version"]) if reset is not None else None,
    )


def _check(trust: Trust) -> None:
    """Check the rules of a trust file. Raises SignatureError."""
    _expect(_is_count(trust.version, 2**53), "version", "an integer from 1", trust.version)
    _expect(_is_time(trust.issued), "issued", "a time such as 2027-01-31T00:00:00Z", trust.issued)
    if trust.expires is not None:
        _expect(_is_time(trust.expires) and trust.issued < trust.expires, "expires", "a later time", trust.expires)
    _expect(1 <= len(trust.keys) <= MAX_KEYS, "keys", f"1 to {MAX_KEYS} keys", len(trust.keys))
    for key in trust.keys:
        _expect(is_sha256(key.public), "keys", "64 hexadecimal digits in lower case", key.public)
        sound = ed25519.sound_key(bytes.fromhex(key.public))
        _expect(sound, "keys", "public keys of Ed25519, canonical, of the prime order", key.public)
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
    reset = trust.counter_reset
    if reset is not None:
        within = type(reset.counter) is int and 0 <= reset.counter <= 2**53
        _expect(within, "counter_reset", "a counter from 0 to 2^53", reset.counter)
        known = _is_count(reset.version, trust.version)
        _expect(known, "counter_reset", f"a version from 1 to {trust.version}", reset.version)


def _expect(holds: bool, where: str, expected: str, found: Any) -> None:
    if not holds:
        raise SignatureError(f"trust file: {where}: wrong", expected=expected, found=repr(found)[:80])


def _is_count(value: Any, maximum: int) -> bool:
    return type(value) is int and 1 <= value <= maximum


def _is_list(values: Sequence[Any], maximum: int) -> bool:
    return len(values) <= maximum and all(map(is_sha256, values)) and list(values) == sorted(set(values))


def _is_time(value: Any) -> bool:
    if not isinstance(value, str) or not _TIME_TEXT.fullmatch(value):
        return False
    try:
        datetime.strptime(value, TIME)
    except ValueError:
        return False
    return True

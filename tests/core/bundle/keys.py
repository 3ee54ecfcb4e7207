"""Keys and signatures for tests, derived from small numbers, so that they are the same in every run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekd.core.bundle.signatures import Signature, key_id, statement
from edgekd.core.bundle.trust import Key, Role, SignedTrust, Trust

ISSUED, EXPIRES = "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"


def private(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def public(number: int) -> bytes:
    return private(number).public_key().public_bytes_raw()


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(sorted(key_id(public(number)) for number in numbers))


def signed_by(kind: str, sha256: str, *numbers: int) -> tuple[Signature, ...]:
    message = statement(kind, sha256)
    found = [Signature(key_id(public(number)), private(number).sign(message).hex()) for number in numbers]
    return tuple(sorted(found, key=lambda signature: signature.key))


def trust_of(
    version: int = 1, bundle: Sequence[int] = (1,), trust: Sequence[int] = (8, 9), thresholds: tuple[int, int] = (1, 2)
) -> Trust:
    """Return a trust file. bundle, trust: key numbers for bundles and trust files; thresholds: in that order."""
    numbers = {*bundle, *trust}
    keys = sorted((Key(public(number).hex(), f"key {number}") for number in numbers), key=lambda key: key.id)
    roles = [Role(ids(*named), least) for named, least in zip((bundle, trust), thresholds, strict=True)]
    return Trust(version, ISSUED, EXPIRES, tuple(keys), *roles)


def sealed(trust: Trust, *numbers: int) -> SignedTrust:
    return SignedTrust(trust, signed_by("trust", trust.sha256, *numbers))


def with_expiry(trust: Trust, number: int, expires: str) -> Trust:
    (wanted,) = ids(number)
    return replace(trust, keys=tuple(replace(key, expires=expires) if key.id == wanted else key for key in trust.keys))


def without(signatures: Iterable[Signature], number: int) -> tuple[Signature, ...]:
    return tuple(signature for signature in signatures if signature.key not in ids(number))

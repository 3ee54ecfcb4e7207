"""Keys, signatures and trust files for the agent's tests in pure Python, as cameras have no crypto library.

For tests only: signing is not constant-time.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekd.core.bundle import ed25519
from edgekd.core.bundle.archive import read_head, replace_signatures
from edgekd.core.bundle.signatures import Signature, key_id, statement
from edgekd.core.bundle.trust import Key, Role, SignedTrust, Trust, to_json

ISSUED, EXPIRES = "2026-01-01T00:00:00Z", "2126-01-01T00:00:00Z"


def _secrets(number: int) -> tuple[int, bytes]:
    digest = hashlib.sha512(number.to_bytes(32, "big")).digest()
    return int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254, digest[32:]


def _point(scalar: int) -> bytes:
    return ed25519._encoded(ed25519._sum_of_products(scalar, ed25519._BASE, 0, ed25519._ZERO))


def public(number: int) -> bytes:
    """Return the public key of the private key with this number."""
    return _point(_secrets(number)[0] % ed25519._ORDER)


def sign(number: int, message: bytes) -> bytes:
    """Return an Ed25519 signature (RFC 8032, section 5.1.6)."""
    scalar, prefix = _secrets(number)
    nonce = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % ed25519._ORDER
    r = _point(nonce)
    k = int.from_bytes(hashlib.sha512(r + public(number) + message).digest(), "little")
    return r + ((nonce + k * scalar) % ed25519._ORDER).to_bytes(32, "little")


def signatures(kind: str, sha256: str, *numbers: int) -> tuple[Signature, ...]:
    """Return the signatures of a bundle or trust file by these keys."""
    message = statement(kind, sha256)
    found = [Signature(key_id(public(number)), sign(number, message).hex()) for number in numbers]
    return tuple(sorted(found, key=lambda signature: signature.key))


def signed(bundle: Path, out: Path, *numbers: int) -> Path:
    """Write a copy of a bundle, signed by these keys."""
    replace_signatures(bundle, signatures("bundle", read_head(bundle).identity, *numbers), out)
    return out


def trust_file(path: Path, version: int = 1, *, by: tuple[int, ...] = (9,), **changed: Any) -> Path:
    """Write a trust file signed by `by`. By default key 1 signs bundles, and key 9 trust files."""
    bundle, trust = changed.pop("bundle", (1,)), changed.pop("trust", (9,))
    numbers = sorted({*bundle, *trust})
    keys = sorted((Key(public(number).hex(), f"key {number}") for number in numbers), key=lambda key: key.id)
    roles = [Role(tuple(sorted(key_id(public(number)) for number in named)), len(named)) for named in (bundle, trust)]
    told = replace(Trust(version, ISSUED, EXPIRES, tuple(keys), *roles), **changed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_json(SignedTrust(told, signatures("trust", told.sha256, *by))))
    return path

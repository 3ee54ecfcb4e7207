"""Signatures of bundles and trust files: their canonical form, and the signed statement. No I/O, no keys.

The signed message is not the file itself but a short statement with the kind of the file and its SHA-256. So a
signature of one kind of file is not valid for another, and a hardware token need not read megabytes.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgekd.core.canonical import bounded_json, canonical_json, is_sha256
from edgekd.core.errors import SignatureError

FORMAT = 1
MAX_SIGNATURES = 16
MAX_BYTES = 8192
"""Maximum size of the file with the signatures; MAX_SIGNATURES take less."""
MAX_VALUES = 256
"""Maximum values and names in it, as `bounded_json` counts; MAX_SIGNATURES take 90."""

_VALUE = re.compile(r"[0-9a-f]{128}")
_FIX = "get the file again"


@dataclass(frozen=True)
class Signature:
    """A signature. key: id of the key, by `key_id`; value: 64 bytes, as 128 hexadecimal digits."""

    key: str
    value: str


@dataclass(frozen=True)
class SignatureEnvelope:
    """The SHA-256 of a manifest, and its signatures: in ascending order of key, no key twice."""

    sha256: str
    signatures: tuple[Signature, ...] = ()


def key_id(public: bytes) -> str:
    """Return the id of a public key: SHA-256 of its 32 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(public).hexdigest()


def statement(kind: str, sha256: str) -> bytes:
    """Return the signed message. kind: `bundle` or `trust`; sha256: of the manifest, or of the trust file's content."""
    return f"edgekd {kind} {FORMAT}\n{sha256}\n".encode("ascii")


def holds(signature: Signature, public: bytes, message: bytes) -> bool:
    """Return whether a signature of `message` is valid for a public key."""
    from edgekd.core.bundle import ed25519  # not needed to read signatures

    return ed25519.verify(public, message, bytes.fromhex(signature.value))


def merged(*groups: Iterable[Signature]) -> tuple[Signature, ...]:
    """Return all signatures in canonical order, of each key the last. Raises SignatureError for too many."""
    by_key = {signature.key: signature for group in groups for signature in group}
    if len(by_key) > MAX_SIGNATURES:
        raise SignatureError("too many signatures", expected=f"at most {MAX_SIGNATURES}", found=str(len(by_key)))
    return tuple(by_key[key] for key in sorted(by_key))


def listed(signatures: Iterable[Signature]) -> list[dict[str, str]]:
    """Return signatures as plain JSON types."""
    return [{"key": signature.key, "signature": signature.value} for signature in signatures]


def from_listed(value: Any) -> tuple[Signature, ...]:
    """Parse the result of `listed`, in any order. Raises ValueError."""
    if not isinstance(value, list) or len(value) > MAX_SIGNATURES:
        raise ValueError(f"expected a list of at most {MAX_SIGNATURES} signatures")
    signatures = []
    for row in value:
        if not isinstance(row, dict) or set(row) != {"key", "signature"}:
            raise ValueError("expected a key and a signature")
        key, text = row["key"], row["signature"]
        if not is_sha256(key):
            raise ValueError("expected 64 hexadecimal digits in lower case for a key")
        if not (isinstance(text, str) and _VALUE.fullmatch(text)):
            raise ValueError("expected 128 hexadecimal digits in lower case for a signature")
        signatures.append(Signature(key, text))
    return merged(signatures)


def to_json(envelope: SignatureEnvelope) -> bytes:
    """Return the canonical `signatures.json`. Raises SignatureError for too many signatures."""
    rows = listed(merged(envelope.signatures))
    return canonical_json({"format": FORMAT, "manifest_sha256": envelope.sha256, "signatures": rows}) + b"\n"


def from_json(content: bytes) -> SignatureEnvelope:
    """Parse the result of `to_json`. Raises SignatureError for every other byte form, even of the same content."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes")
        document = bounded_json(content, MAX_VALUES)
        if not isinstance(document, dict) or type(document.get("format")) is not int or document["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}: update edgekd")
        sha256: Any = document.get("manifest_sha256")
        if not is_sha256(sha256):
            raise ValueError("expected the SHA-256 of a manifest")
        envelope = SignatureEnvelope(sha256, from_listed(document.get("signatures")))
    except ValueError as error:
        raise SignatureError("signatures: cannot be read", found=str(error), fix=_FIX) from error
    if to_json(envelope) != content:
        raise SignatureError("signatures: not as edgekd writes them", fix=_FIX)
    return envelope

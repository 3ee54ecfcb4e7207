"""Signatures as bundles and trust files carry them: their one byte form, and what is signed. No I/O, no keys.

What is signed is never the file itself but a short statement: what kind of file it is, and its SHA-256. So a signature
of one kind of file is none of another, and a token in a drawer need not read megabytes.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgekd.core.canonical import canonical_json, is_sha256, short_int
from edgekd.core.errors import SignatureError

FORMAT = 1
MAX_SIGNATURES = 16
MAX_BYTES = 8192
"""How long the file with the signatures may be: as many as there may be take less."""

_VALUE = re.compile(r"[0-9a-f]{128}")
_AGAIN = "get the file again"


@dataclass(frozen=True)
class Signature:
    """key: what names the key that made it, as `key_id` gives; value: 64 bytes, as 128 hexadecimal digits."""

    key: str
    value: str


@dataclass(frozen=True)
class Seal:
    """The SHA-256 of a manifest, and who signed it: in ascending order of key, no key twice."""

    sha256: str
    signatures: tuple[Signature, ...] = ()


def key_id(public: bytes) -> str:
    """What names a public key: SHA-256 of its 32 bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(public).hexdigest()


def statement(kind: str, sha256: str) -> bytes:
    """What is signed of a file: `kind` is `bundle` or `trust`, `sha256` that of its manifest or of its content."""
    return f"edgekd {kind} {FORMAT}\n{sha256}\n".encode("ascii")


def holds(signature: Signature, public: bytes, message: bytes) -> bool:
    """Whether a signature is one of `message` by the holder of a public key."""
    from edgekd.core.bundle import ed25519  # what only reads signatures starts without it

    return ed25519.verify(public, message, bytes.fromhex(signature.value))


def merged(*groups: Iterable[Signature]) -> tuple[Signature, ...]:
    """All these signatures in their order, of each key the last. Raises SignatureError when they are too many."""
    found = {signature.key: signature for group in groups for signature in group}
    if len(found) > MAX_SIGNATURES:
        raise SignatureError("too many signatures", expected=f"at most {MAX_SIGNATURES}", found=str(len(found)))
    return tuple(found[key] for key in sorted(found))


def listed(signatures: Iterable[Signature]) -> list[dict[str, str]]:
    """Signatures as plain JSON types."""
    return [{"key": signature.key, "signature": signature.value} for signature in signatures]


def from_listed(value: Any) -> tuple[Signature, ...]:
    """What `listed` gave. Raises ValueError for anything else; the order is not looked at."""
    if not isinstance(value, list) or len(value) > MAX_SIGNATURES:
        raise ValueError(f"expected a list of at most {MAX_SIGNATURES} signatures")
    found = []
    for row in value:
        if not isinstance(row, dict) or set(row) != {"key", "signature"}:
            raise ValueError("expected a key and a signature")
        key, text = row["key"], row["signature"]
        if not is_sha256(key):
            raise ValueError("expected 64 hexadecimal digits in lower case for a key")
        if not (isinstance(text, str) and _VALUE.fullmatch(text)):
            raise ValueError("expected 128 hexadecimal digits in lower case for a signature")
        found.append(Signature(key, text))
    return merged(found)


def to_json(seal: Seal) -> bytes:
    """The one byte form of `signatures.json`. Raises SignatureError when there are too many signatures."""
    rows = listed(merged(seal.signatures))
    return canonical_json({"format": FORMAT, "manifest_sha256": seal.sha256, "signatures": rows}) + b"\n"


def from_json(content: bytes) -> Seal:
    """What `to_json` gave. Raises SignatureError for every other byte form, even of the same content."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes")
        document = json.loads(content.decode("ascii"), parse_int=short_int)
        if not isinstance(document, dict) or type(document.get("format")) is not int or document["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}: update edgekd")
        sha256: Any = document.get("manifest_sha256")
        if not is_sha256(sha256):
            raise ValueError("expected the SHA-256 of a manifest")
        seal = Seal(sha256, from_listed(document.get("signatures")))
    except (ValueError, RecursionError) as error:
        raise SignatureError("signatures: cannot be read", found=str(error), fix=_AGAIN) from error
    if to_json(seal) != content:
        raise SignatureError("signatures: not as edgekd writes them", fix=_AGAIN)
    return seal

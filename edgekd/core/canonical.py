"""Canonical JSON and SHA-256, for addresses by content.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
SHA256_TEXT = re.compile(r"[0-9a-f]{64}")


def canonical_json(value: Any) -> bytes:
    """Return a value as UTF-8 JSON with sorted keys and without spaces.

    Raises TypeError for a type that JSON does not have, ValueError for NaN, infinity and lone surrogates.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def short_int(digits: str) -> int:
    """Parse an integer of JSON, for `parse_int`. Raises ValueError for a long one, which is slow to parse."""
    if len(digits) > 20:
        raise ValueError("an integer of more than 20 digits")
    return int(digits)


def is_sha256(value: Any) -> bool:
    """Return whether a value is a SHA-256 of 64 hexadecimal digits in lower case."""
    return isinstance(value, str) and SHA256_TEXT.fullmatch(value) is not None


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits, in bounded memory. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()

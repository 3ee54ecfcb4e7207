"""Canonical JSON and SHA-256, for addresses by content.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1 << 20
MAX_DEPTH = 32
"""Maximum nesting of untrusted JSON: no format here has more than 6, and each level takes some of the stack."""
_STRUCTURE = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)
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


def bounded_json(
    content: bytes, max_values: int, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Parse UTF-8 JSON from an untrusted source; its size is bounded before anything is parsed.

    max_values: maximum number of values and names, for which commas, colons and opening brackets are counted, those in
    text included; pairs_hook: as json.loads's object_pairs_hook. Raises ValueError for what is no JSON, has too many
    values or is nested deeper than MAX_DEPTH.
    """
    if sum(map(content.count, (b",", b":", b"[", b"{"))) > max_values:
        raise ValueError(f"more than {max_values} values")
    _require_shallow(content)
    return json.loads(content.decode("utf-8"), parse_int=short_int, object_pairs_hook=pairs_hook)


def _require_shallow(content: bytes) -> None:
    depth, quoted = 0, False
    for token in _STRUCTURE.finditer(content):
        sign = token[0]
        if sign == b'"':
            quoted = not quoted
        elif not quoted and len(sign) == 1:
            depth += 1 if sign in b"[{" else -1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")


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

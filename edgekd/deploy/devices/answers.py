"""Answers of a device, which is not trusted: limited JSON, typed, with no control characters in its text."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from edgekd.core.canonical import bounded_json
from edgekd.core.errors import SpecError, printable
from edgekd.core.typed_values import from_plain

T = TypeVar("T")
MAX_ANSWER_BYTES = 1 << 21
"""Maximum size of an answer: a program's output at its limit, 256 and 64 KiB, takes up to six times as much as JSON."""
MAX_ANSWER_VALUES = 1 << 16
"""Values and names in one answer, as `bounded_json` counts: a status of all slots has some hundred."""
MAX_STDERR_BYTES = 1 << 16
"""End of a program's stderr that is kept: its last line is shown."""
MAX_ERROR_CHARS = 1000
"""Maximum length of each part of an error that a device reports: the agent's own have at most a few hundred."""


def parsed(kind: type[T], content: bytes, where: str, *, extra: bool = False) -> T:
    """Return the dataclass `kind` from the JSON text of a device. Raises SpecError.

    extra: Let unknown keys pass, for answers of an agent that may be newer.
    """
    if len(content) > MAX_ANSWER_BYTES:
        raise SpecError(where, expected=f"at most {MAX_ANSWER_BYTES} bytes", found=f"{len(content)} bytes")
    try:
        value = bounded_json(content, MAX_ANSWER_VALUES)
    except ValueError as error:
        raise SpecError(where, expected="JSON", found=str(error)[:MAX_ERROR_CHARS]) from error
    return from_plain(kind, value, where, extra=extra)


def harmless(value: Any, where: str) -> Any:
    """Return a plain value with control characters of its text escaped. Raises SpecError for NaN and infinity."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): harmless(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [harmless(item, where) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(where, expected="finite numbers", found=str(value))
    return value


def error_text(text: str | None) -> str | None:
    """Return a part of an error that a device reports, shortened and escaped."""
    if text is None or len(text) <= MAX_ERROR_CHARS:
        return None if text is None else printable(text)
    return f"{printable(text[:MAX_ERROR_CHARS])}..."

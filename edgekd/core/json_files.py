"""JSON files that other runs or other people wrote, read into dataclasses with limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from edgekd.core.errors import SpecError
from edgekd.core.input_files import read_input
from edgekd.core.typed_values import from_plain

T = TypeVar("T")
MAX_BYTES = 1 << 26
"""Bytes of a file; the ledger of the demo has 9 kB, a search with thousands of trials a few MB."""


def read_document(kind: type[T], path: Path) -> T:
    """Read a JSON file as the dataclass `kind`; keys that it does not know pass, as those of a newer version.

    Raises SpecError where there is no regular file, and where it is too long, no JSON, or lacks a key.
    """
    content = read_input(path, MAX_BYTES, SpecError)
    try:
        return from_plain(kind, json.loads(content), str(path), extra=True)
    except (ValueError, RecursionError, SpecError) as error:
        raise SpecError(f"{path}: cannot be read", found=str(error) or type(error).__name__) from error

"""JSON documents of the agent: one writer for its dataclasses, one reader for its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

INLINE = MappingProxyType({"inline": True})
"""Metadata of a field whose entries are written into the object of its dataclass."""


def to_plain(value: Any) -> Any:
    """Return a value as plain JSON types: dataclasses and mappings as objects, paths as text."""
    if dataclasses.is_dataclass(value):
        document: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            plain = to_plain(getattr(value, field.name))
            document.update(plain if field.metadata.get("inline") else {field.name: plain})
        return document
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is none."""
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None

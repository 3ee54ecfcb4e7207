"""JSON documents of dataclasses: a field is a key, in the order of declaration.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

INLINE = MappingProxyType({"inline": True})
"""Metadata of a field whose entries are written into the object of its dataclass."""
INTERNAL = MappingProxyType({"internal": True})
"""Metadata of a field that the document does not have."""

OPTIONAL = MappingProxyType({"optional": True})
"""Metadata of a field that a document lacks where it has its default, as documents of older versions do."""


def to_plain(value: Any) -> Any:
    """Return a value as plain JSON types: dataclasses and mappings as objects, paths as text."""
    if dataclasses.is_dataclass(value):
        document: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            if field.metadata.get("internal"):
                continue
            if field.metadata.get("optional") and getattr(value, field.name) == field.default:
                continue
            plain = to_plain(getattr(value, field.name))
            document.update(plain if field.metadata.get("inline") else {field.name: plain})
        return document
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


class Result:
    """Base of frozen dataclasses whose fields are the keys of a documented JSON object."""

    @property
    def document(self) -> Any:
        """The object, as plain JSON types."""
        return to_plain(self)

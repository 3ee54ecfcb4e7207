"""JSON documents of the agent: the writer that it shares with the host, and the reader of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekd.core.documents import INLINE, to_plain

__all__ = ["INLINE", "read_object", "to_plain"]


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is none."""
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None

"""Readers of small files below /proc, /sys and /etc.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str | None:
    """Return the text of a file; None where it is missing, not readable, or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def number_in(path: Path) -> float | None:
    """Return the number in a file; None where there is none."""
    try:
        return float(text_of(path) or "")
    except ValueError:
        return None


def value_of(path: Path, key: str, separator: str) -> str | None:
    """Return the value of the first `key<separator>value` line, without quotes; None where there is none."""
    for line in (text_of(path) or "").splitlines():
        name, found, value = line.partition(separator)
        if found and name.strip() == key:
            return value.strip().strip('"') or None
    return None

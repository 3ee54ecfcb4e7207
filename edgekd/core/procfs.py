"""Small files in which a system tells of itself, below /proc, /sys and /etc.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str | None:
    """The text of a small system file; None where it is not there, not for us, or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def number_in(path: Path) -> float | None:
    """The number in a small system file; None where there is none."""
    try:
        return float(text_of(path) or "")
    except ValueError:
        return None


def value_of(path: Path, key: str, separator: str) -> str | None:
    """The value of the first `key<separator>value` line of a file, without quotes; None where there is none."""
    for line in (text_of(path) or "").splitlines():
        name, found, value = line.partition(separator)
        if found and name.strip() == key:
            return value.strip().strip('"') or None
    return None

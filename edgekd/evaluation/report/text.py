"""Numbers as people read them. A missing or non-finite number is "–"; sizes are decimal (1 MB = 1,000,000 bytes)."""

from __future__ import annotations

import math
from typing import TypeGuard

MISSING = "–"
NBSP = "\u00a0"
UNITS = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9))


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)


def count(value: int | None) -> str:
    """12345 -> 12,345."""
    return MISSING if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """2914000 -> 2.91 MB."""
    if not known(value):
        return MISSING
    if abs(value) < 999.5:
        return f"{value:.0f}{NBSP}B"
    unit, factor = next(step for step in UNITS if abs(value) < 999.5 * step[1] or step == UNITS[-1])
    return f"{three_digits(value / factor)}{NBSP}{unit}"


def milliseconds(value: float | None) -> str:
    """8.4217 -> 8.42 ms."""
    return f"{three_digits(value)}{NBSP}ms" if known(value) else MISSING


def rate(value: float | None) -> str:
    """118.74 -> 119 FPS."""
    return f"{three_digits(value)}{NBSP}FPS" if known(value) else MISSING


def duration(seconds: float | None) -> str:
    """0.0421 -> 0.04 s; 18.13 -> 18.1 s; 125 -> 2 min 5 s."""
    if not known(seconds):
        return MISSING
    if seconds >= 99.95:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}{NBSP}min{NBSP}{rest}{NBSP}s"
    return f"{seconds:.{1 if seconds >= 9.995 else 2}f}{NBSP}s"


def accuracy(value: float | None) -> str:
    """0.45123 -> 0.451."""
    return f"{value:.3f}" if known(value) else MISSING


def difference(value: float | None) -> str:
    """-0.0123 -> ▼ −0.012: a sign and an arrow, so that colour is not needed to read it."""
    if not known(value):
        return MISSING
    if round(value, 3) == 0:
        return "0.000"
    return f"{'▲' if value > 0 else '▼'}{NBSP}{'+' if value > 0 else '−'}{abs(value):.3f}"


def percent(share: float | None) -> str:
    """0.9891 -> 98.9 %."""
    return f"{100 * share:.1f}{NBSP}%" if known(share) else MISSING


def times(ratio: float | None, less: str, more: str) -> str:
    """after/before in words: 0.4 -> 2.5× `less`; 1.2 -> 1.2× `more`."""
    if not known(ratio) or ratio <= 0:
        return MISSING
    factor = max(ratio, 1 / ratio)
    if factor < 1.005:
        return "unchanged"
    return f"{factor:.{2 if factor < 1.1 else 1}f}× {less if ratio < 1 else more}"


def three_digits(value: float) -> str:
    """The number to three significant digits, never in exponent form."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    rounded = round(value, 2 - magnitude)
    decimals = 2 - (math.floor(math.log10(abs(rounded))) if rounded else 0)
    return f"{rounded:,.{min(max(decimals, 0), 4)}f}"

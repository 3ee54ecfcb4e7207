"""Format numbers for pages. A missing or non-finite number is "–"; sizes are decimal (1 MB = 1,000,000 bytes)."""

from __future__ import annotations

import math
from typing import TypeGuard

MISSING = "–"
NBSP = "\u00a0"
UNITS = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9))


def known(value: float | None) -> TypeGuard[float]:
    """Return whether there is a number to show."""
    return value is not None and math.isfinite(value)


def integer(value: int | None) -> str:
    """12345 -> 12,345."""
    return MISSING if value is None else f"{value:,}"


def size(value: float | None) -> str:
    """2914000 -> 2.91 MB."""
    if not known(value):
        return MISSING
    if abs(value) < 999.5:
        return f"{value:.0f}{NBSP}B"
    unit, factor = next(step for step in UNITS if abs(value) < 999.5 * step[1] or step == UNITS[-1])
    return digits(value / factor, unit)


def milliseconds(value: float | None) -> str:
    """8.4217 -> 8.42 ms."""
    return digits(value, "ms")


def microseconds(value: float | None) -> str:
    """41.52 -> 41.5 µs."""
    return digits(value, "µs")


def rate(value: float | None) -> str:
    """118.74 -> 119 FPS."""
    return digits(value, "FPS")


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
    return fixed(value, 3)


def difference(value: float | None) -> str:
    """-0.0123 -> ▼ −0.012: a sign and an arrow, so that colour is not needed to read it."""
    if not known(value):
        return MISSING
    if round(value, 3) == 0:
        return "0.000"
    return f"{'▲' if value > 0 else '▼'}{NBSP}{'+' if value > 0 else '−'}{abs(value):.3f}"


def change(value: int) -> str:
    """-1234 -> ▼ −1234: of a count."""
    return f"{'▲' if value > 0 else '▼'}{NBSP}{'+' if value > 0 else '−'}{abs(value)}" if value else "0"


def signed(value: float) -> str:
    """-0.0123 -> −0.012."""
    return f"{value:+.3f}".replace("-", "−")


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


def fixed(value: float | None, decimals: int, unit: str = "") -> str:
    """Return a number with `decimals` decimals and its unit."""
    return f"{value:.{decimals}f}{unit and NBSP}{unit}" if known(value) else MISSING


def general(value: float | None, digits: int = 6) -> str:
    """Return a number to `digits` significant digits, without trailing zeros."""
    return f"{value:.{digits}g}" if known(value) else MISSING


def scientific(value: float | None) -> str:
    """0.00123 -> 1.23e-03."""
    return f"{value:.2e}" if known(value) else MISSING


def digits(value: float | None, unit: str = "") -> str:
    """Return a number to three significant digits, never in exponent form."""
    if not known(value):
        return MISSING
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    rounded = round(value, 2 - magnitude)
    decimals = 2 - (math.floor(math.log10(abs(rounded))) if rounded else 0)
    return f"{rounded:,.{min(max(decimals, 0), 4)}f}{unit and NBSP}{unit}"

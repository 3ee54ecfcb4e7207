"""Quantities as people write them on a command line or in a recipe: sizes, shares, energies, durations. Pure."""

from __future__ import annotations

import re

from edgekd.core.errors import SpecError

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MILLIJOULES = {"uj": 1e-3, "mj": 1.0, "j": 1e3}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str | int, name: str) -> int:
    """Return bytes of a number, or of a size such as `12MB` (10^6) or `12MiB` (2^20). Raises SpecError with `name`."""
    number, unit = _parts(text)
    if number is None or unit not in _BYTES:
        raise SpecError(f"{name} {text}: no size", expected="a number and kB, MB, GB, KiB, MiB or GiB, such as 12MB")
    return round(number * _BYTES[unit])


def parse_share(text: str | float, name: str) -> float:
    """Return a share from 0 to 1 of a number, `98%` or `0.98`. Raises SpecError with `name`."""
    number, unit = _parts(text)
    share = number / (100 if unit == "%" else 1) if number is not None and unit in ("", "%") else -1.0
    if not 0 <= share <= 1:
        raise SpecError(f"{name} {text}: no share", expected="a percentage such as 98%, or a number from 0 to 1")
    return share


def parse_energy(text: str, name: str) -> float:
    """Return millijoules of an energy such as `150mJ` or `0.15J`. Raises SpecError with `name`."""
    number, unit = _parts(text)
    if not number or unit not in _MILLIJOULES:
        raise SpecError(f"{name} {text}: no energy", expected="a number above 0 and mJ or J, such as 150mJ")
    return number * _MILLIJOULES[unit]


def parse_duration(text: str, name: str) -> float:
    """Return seconds of a duration such as `8h`, `90min` or `45s`. Raises SpecError with `name`."""
    number, unit = _parts(text)
    if not number or unit not in _SECONDS:
        raise SpecError(f"{name} {text}: no duration", expected="a number above 0 and s, min, h or d, such as 8h")
    return number * _SECONDS[unit]


def _parts(text: str | float) -> tuple[float | None, str]:
    """Return the number, None where there is none, and the unit in lower case."""
    if not isinstance(text, str):
        return (float(text) if 0 <= text < float("inf") else None), ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*|%)\s*", text.lower())
    return (float(match[1]), match[2]) if match else (None, "")

"""Sizes, shares, energies and durations as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgekd.core.errors import SpecError
from edgekd.core.units import parse_duration, parse_energy, parse_share, parse_size


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_size, "12MB", 12_000_000),
        (parse_size, " 1.5 MiB ", 1_572_864),
        (parse_size, "7", 7),
        (parse_share, "98%", 0.98),
        (parse_share, "0.98", 0.98),
        (parse_energy, "150mJ", 150.0),
        (parse_energy, "0.15 J", 150.0),
        (parse_duration, "8h", 28_800.0),
        (parse_duration, "90min", 5400.0),
        (parse_duration, "45s", 45.0),
    ],
)
def test_what_people_write_is_read(parse: Callable[[str, str], Any], text: str, value: float) -> None:
    assert parse(text, "--flag") == pytest.approx(value)


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_size, "12XB", "such as 12MB"),
        (parse_size, "-1MB", "such as 12MB"),
        (parse_share, "120%", "0 to 1"),
        (parse_share, "0.5 MB", "0 to 1"),
        (parse_energy, "150", "such as 150mJ"),
        (parse_energy, "0mJ", "above 0"),
        (parse_energy, "150 W", "such as 150mJ"),
        (parse_duration, "8", "such as 8h"),
        (parse_duration, "0h", "above 0"),
        (parse_duration, "soon", "such as 8h"),
    ],
)
def test_what_is_none_is_refused_with_an_example(parse: Callable[[str, str], Any], text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, "--flag")
    assert f"--flag {text}" in str(caught.value)
    assert words in str(caught.value)

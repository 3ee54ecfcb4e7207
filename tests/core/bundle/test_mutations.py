"""Mutated input, some for each parser that reads what others wrote; `bench/mutations.py` tries a million."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.bundle import ed25519

BENCH = Path(__file__).resolve().parents[3] / "bench"
PARSERS = 22


@pytest.fixture(scope="module")
def mutations() -> Iterator[Any]:
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("mutations")
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]


@pytest.mark.parametrize("each", [30, pytest.param(900, marks=pytest.mark.release)])
@pytest.mark.parametrize("number", range(PARSERS))
def test_nothing_mutated_is_taken(
    mutations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, each: int
) -> None:
    monkeypatch.setattr(ed25519, "verify", ed25519.verify)  # `tried` remembers what it verified
    parser = mutations.PARSERS[number]
    found = mutations.tried(parser.__name__, each, str(tmp_path))
    assert (found["accepted"], found["crashes"]) == (0, 0), found["found"]
    assert found["refused"]
    assert found["growth_bytes"] <= mutations.GROWTH


def test_every_parser_is_tried(mutations: Any) -> None:
    assert len(mutations.PARSERS) == PARSERS
    assert {*mutations.SLOW, *mutations.QUICK} < {parser.__name__ for parser in mutations.PARSERS}

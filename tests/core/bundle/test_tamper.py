"""What somebody might make of a signed bundle, some thousand times; `bench/tamper.py` does it a hundred thousand."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture(scope="module")
def mutations() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("mutations")
        for name in ("mutations", "bundles"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def victim(mutations: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mutations.make_victim(tmp_path_factory.mktemp("victim"))


def test_the_bundle_itself_is_taken_and_so_is_the_newer_one(mutations: Any, victim: Any, tmp_path: Path) -> None:
    """Else nothing that follows would say anything."""
    for content in (victim.content, victim.other):
        assert mutations.taken(mutations.Attempt(content), victim, tmp_path / "met.edgekd")


@pytest.mark.parametrize("attempts", [30, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", range(19))
def test_nothing_that_is_made_of_it_is_taken(
    mutations: Any, victim: Any, tmp_path: Path, number: int, attempts: int
) -> None:
    assert len(mutations.WAYS) == 19
    way, chance = mutations.WAYS[number], random.Random(number)
    for _ in range(attempts):
        attempt = mutations.attempt(way, chance, victim)
        assert not mutations.taken(attempt, victim, tmp_path / "met.edgekd"), way.__name__

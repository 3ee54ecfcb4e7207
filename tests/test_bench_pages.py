"""Every page in `bench/results` is what its script makes of the JSON beside it; nothing is typed in by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
PAGES = sorted((BENCH / "results").glob("*.md"))


@pytest.fixture(scope="module", autouse=True)
def bench_modules() -> object:
    """Import from `bench/`, and forget what was imported."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield
    own = {file.stem for file in BENCH.glob("*.py")}
    for name in (set(sys.modules) - before) & own:
        del sys.modules[name]


def script_of(command: str, page: Path) -> ModuleType:
    """Return the script that a result's command names; without one its page has the script's name."""
    return importlib.import_module(Path(command.split()[1]).stem if command else page.stem)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_made_of_its_result(page: Path) -> None:
    frame = importlib.import_module("frame")
    found = frame.read(page.with_suffix(".json").read_text("utf-8"))
    script = script_of(found.get("command", ""), page)
    assert frame.render(script.page, found) == page.read_text("utf-8")


def test_there_are_pages() -> None:
    assert PAGES

"""Registries: edgekd's own objects, then those of other packages, and a package that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from extending_page import install

from edgekd.core.entry_points import registered
from edgekd.core.errors import SpecError


def test_own_objects_come_first_then_those_of_packages_once_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("math:pi", "math:tau")
    assert [round(each, 2) for each in registered("toys", own)] == [3.14, 6.28]
    install(tmp_path, monkeypatch, "toys", {"toy_numbers.py": "ONE = 1"}, {"toys": "toy_numbers:ONE"})
    assert [round(each, 2) for each in registered("toys", own)] == [3.14, 6.28, 1]
    assert registered("others", ()) == ()


@pytest.mark.parametrize("reference", ["toy_numbers:TWO", "toy_nowhere:ONE"])
def test_a_package_that_lacks_what_it_names_is_refused_by_that(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "toys", {"toy_numbers.py": "ONE = 1"}, {"toys": reference})
    with pytest.raises(SpecError, match=f"entry point {reference} of toys"):
        registered("toys", ())

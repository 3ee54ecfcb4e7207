"""Registries that other packages extend by entry points."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgekd.core.errors import SpecError


def registered(group: str, built_in: Sequence[str]) -> tuple[Any, ...]:
    """Return the objects of a registry: edgekd's own, as `module:name`, then those of other packages.

    Raises SpecError for one that cannot be imported.
    """
    own = (EntryPoint(reference, reference, group) for reference in built_in)
    return tuple(map(_loaded, (*own, *_of_other_packages(group, tuple(sys.path)))))


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        what, fix = f"entry point {point.value} of {point.group}", "install its package again, or remove it"
        raise SpecError(what, expected="an object that can be imported", found=str(error), fix=fix) from error


@cache
def _of_other_packages(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of the packages on this search path; reading the metadata of all takes 20 ms."""
    return tuple(entry_points(group=group))

"""Test marks for capabilities of edgekd by family of detectors, from which docs/families.py makes a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest

BUILT = ("eval", "INT8", "bundle", "agent")
"""Capabilities that `bundle_runs.require_bundle_runs` shows."""


def of_families(
    package: str,
    names: Mapping[Any, str],
    *capabilities: str,
    fast: Collection[Any] = (),
    release: Collection[Any] = (),
) -> list[Any]:
    """Return the parameters of a test that shows these capabilities of detectors by a package.

    Args:
        names: The family of each value of the parameter.
        fast: Values for which the test is not slow.
        release: Further values that are tested only for a release.
    """
    return [
        pytest.param(
            value,
            marks=[
                pytest.mark.family(name, *capabilities, package=package),
                *([] if value in fast else [pytest.mark.release] if value in release else [pytest.mark.slow]),
            ],
            id=str(getattr(value, "__name__", value)),
        )
        for value, name in names.items()
    ]

"""Fixtures that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data beside the checkout. Their absence skips visibly, and fails where CI is set."""
    if not SHARED.is_dir():
        message = f"no real models and data: {SHARED} is missing"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED

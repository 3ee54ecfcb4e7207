"""docs/reference/families.md and the counts in README.md are what the marks of tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_tick_is_a_test() -> None:
    for package in ("torch_pruning", "transformers", "ultralytics"):
        pytest.importorskip(package)
    command = [sys.executable, ROOT / "docs" / "families.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr

"""What `make` does for those who contribute, beyond what CI itself runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import Built

ROOT = Path(__file__).resolve().parents[1]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    whole = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=120)


def test_everything_that_make_offers_is_explained() -> None:
    offered = re.findall(r"^## .+\n([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    explained = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert {"check", "test", "test-gpu", "test-jetson", "docs"} <= set(offered)
    assert not [name for name in offered if f"`make {name}" not in explained]


def test_a_bundle_is_validated_by_one_command(tiny_build: Built, tmp_path: Path) -> None:
    quick = "ARGS=--iterations 5 --seconds 0"
    done = make("test-jetson", f"BUNDLE={tiny_build.bundle}", f"OUT={tmp_path}", f"PYTHON={sys.executable}", quick)
    found = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert found["complete"]
    assert "onnxruntime" in found["tested"], done.stderr


def test_validating_nothing_is_told_how_to_do_it_right() -> None:
    done = make("test-jetson")
    assert done.returncode == 2
    assert "make test-jetson BUNDLE=" in done.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_its_tests_say_so_and_install_nothing() -> None:
    done = make("test-gpu")
    assert done.returncode == 2
    assert "no NVIDIA GPU here" in done.stderr
    assert not (ROOT / ".venv-gpu").exists()

"""What `make` does for those who contribute, beyond what CI itself runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    whole = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=300)


def test_everything_that_make_offers_is_explained() -> None:
    offered = re.findall(r"^## .+\n([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    explained = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert {"check", "test", "test-slow", "test-gpu", "kit", "docs"} <= set(offered)
    assert not [name for name in offered if f"`make {name}" not in explained]


def test_the_targets_leave_out_no_test_and_ci_runs_all_but_those_of_a_release() -> None:
    targets = ("test", "test-slow", "test-all", "test-release")
    commands = [make("--dry-run", target).stdout.splitlines()[-1].split(" -m ")[1:] for target in targets]
    options, selections = zip(*commands, strict=True)
    assert len(set(options)) == 1, "the same options"
    chosen = '"not slow and not release and not camera"', "slow", '"not release and not camera"', "release"
    assert selections == chosen
    assert make("--dry-run", "test-camera").stdout.splitlines()[-1].endswith("-m camera")
    assert "make test-all" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_its_tests_say_so_and_install_nothing() -> None:
    done = make("test-gpu")
    assert done.returncode == 2
    assert "no NVIDIA GPU here" in done.stderr
    assert not (ROOT / ".venv-gpu").exists()

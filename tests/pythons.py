"""Other Pythons, as cameras have them, with packages for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def interpreter(version: str) -> str:
    """A real Python of that version, from pyenv or the system."""
    installed = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python{version}"))
    for candidate in (*map(str, installed), f"python{version}"):
        try:
            subprocess.run([candidate, "-c", "pass"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip(f"no Python {version} on this host")


def wheels(version: str, folder: Path, package: str, *more: str) -> None:
    """Install a package, and more, for a Python into a folder of their own."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    choice = ["--python-version", version, "--only-binary", ":all:"]
    done = subprocess.run([*pip, *choice, package, *more], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no {package} for Python {version}: {done.stderr.strip().splitlines()[-1]}")

"""Other Pythons, as cameras have them, with packages for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def interpreter(version: str) -> str:
    """A real Python of that version, from pyenv or the system. Skips where there is none, and says so."""
    return find(version) or pytest.skip(f"no Python {version} on this host")


def find(version: str) -> str | None:
    """A real Python of that version, from pyenv or the system."""
    installed = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python{version}"))
    for candidate in (*map(str, installed), f"python{version}"):
        try:
            subprocess.run([candidate, "-c", "pass"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None


def wheels(version: str, folder: Path, package: str, *more: str) -> None:
    """Install a package, and more, for a Python into a folder of their own. Skips where they cannot be had."""
    problem = install(version, folder, package, *more)
    if problem:
        pytest.skip(f"no {package} for Python {version}: {problem}")


def install(version: str, folder: Path, package: str, *more: str) -> str | None:
    """The same; why they cannot be had."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    choice = ["--python-version", version, "--only-binary", ":all:"]
    done = subprocess.run([*pip, *choice, package, *more], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def here() -> tuple[str, list[Path]]:
    """The Python that runs the tests, and where it finds its packages."""
    return str(Path(sys.executable).resolve()), [Path(path) for path in sys.path if path.endswith("site-packages")]

"""Python versions of cameras, and packages for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from once import once


def interpreter(version: str) -> str:
    """Return the path of a Python of that version, from pyenv or the system. Skips the test if there is none."""
    return find(version) or pytest.skip(f"no Python {version} on this host")


def find(version: str) -> str | None:
    """Return the path of a Python of that version, from pyenv or the system; None if there is none."""
    installed = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python{version}"))
    for candidate in (*map(str, installed), f"python{version}"):
        try:
            subprocess.run([candidate, "-c", "pass"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None


class UnavailableError(Exception):
    """Packages cannot be installed. The message is the last line of pip's output."""


def wheels(factory: pytest.TempPathFactory, version: str, *arguments: str) -> Path:
    """Return a folder with packages for a Python, like `installed`. Skips the test if they cannot be installed."""
    try:
        return installed(factory, version, *arguments)
    except UnavailableError as error:
        pytest.skip(str(error))


def installed(factory: pytest.TempPathFactory, version: str, *arguments: str) -> Path:
    """Return a folder with packages for a Python. Do not change it. arguments: packages and options for pip."""

    return once(factory, f"python{version}-{'-'.join(arguments)}", lambda folder: install(version, folder, *arguments))


def install(version: str, folder: Path, *arguments: str) -> None:
    """Install packages for a Python into a folder. Raises UnavailableError."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    choice = ["--target", str(folder), "--python-version", version, "--only-binary", ":all:"]
    done = subprocess.run([*pip, *choice, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UnavailableError(f"no {' '.join(arguments)} for Python {version}: {done.stderr.splitlines()[-1]}")


def here() -> tuple[str, list[Path]]:
    """Return the Python that runs the tests, and the folders of its packages."""
    return str(Path(sys.executable).resolve()), [Path(path) for path in sys.path if path.endswith("site-packages")]

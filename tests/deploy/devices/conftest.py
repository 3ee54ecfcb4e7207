"""A camera for the tests of devices: a real SSH server, and Python 3.8 with NumPy, as JetPack 5 has them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import SSHD, Loopback, loopback
from over_ssh import Camera
from pythons import UnavailableError, find, here, installed, interpreter
from running import Built

# A library whose engine build never ends, in a separate program like TensorRT's.
SLOW = """
import subprocess, time
__version__ = "0"
class SessionOptions: pass
class GraphOptimizationLevel: ORT_DISABLE_ALL = 0
class InferenceSession:
    def __init__(self, *arguments, **named):
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)
"""


@pytest.fixture(scope="session")
def camera_python(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """Python 3.8 and a folder with NumPy for it; if they are not available, the Python that runs the tests."""
    python = find("3.8")
    if python is None:
        return here()
    try:
        return python, [installed(tmp_path_factory, "3.8", "numpy==1.17.4", "--ignore-requires-python")]
    except UnavailableError:
        return here()


@pytest.fixture(scope="session")
def python36() -> str:
    """Python 3.6, which is python3 on Ubuntu 18.04."""
    return interpreter("3.6")


@pytest.fixture(scope="session")
def python39() -> str:
    """Python 3.9, without NumPy."""
    return interpreter("3.9")


@pytest.fixture(scope="session")
def turned_on(camera_python: tuple[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A camera for all tests. Without sshd they skip, or fail if CI is set."""
    if not Path(SSHD).is_file():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no sshd here: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("camera")
    (folder / "slow").mkdir()
    (folder / "slow" / "onnxruntime.py").write_text(SLOW)
    python, packages = camera_python
    with loopback(folder / "camera", python, [folder / "slow", *packages]) as camera:
        yield camera


@pytest.fixture
def camera(turned_on: Loopback, tiny_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    """That camera, with the user's keys and known hosts set up."""
    monkeypatch.setenv("HOME", str(turned_on.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (turned_on.home / ".ssh" / "known_hosts").write_text("")
    (turned_on.home / ".ssh" / "config").unlink(missing_ok=True)
    yield Camera(turned_on, tiny_build.bundle, tmp_path / "state")
    assert turned_on.quiet() == []


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """A function that waits until a condition returns a true value, and returns it."""

    def wait(what: Callable[[], Any]) -> Any:
        for _ in range(2400):
            if found := what():
                return found
            time.sleep(0.05)
        raise AssertionError("it did not happen within two minutes")

    return wait

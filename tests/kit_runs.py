"""Runs of the validation kit as on a user's system: unpacked, with one Python and few other programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("cat", "dirname", "grep", "mv", "sed", "sha256sum", "tr", "uname")
"""Programs that run.sh needs besides a shell and Python, from coreutils, grep and sed, or from BusyBox."""
SHELLS = ("dash", "bash", "busybox")
"""POSIX shells that may be installed."""


def unpacked_kit(bundle: Path, folder: Path) -> Path:
    """Pack the kit of a bundle, and unpack it in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        str(ROOT / "kit" / "pack.py"),
        "--bundle",
        str(bundle),
        "--out",
        str(folder / "kit.tar.gz"),
    ]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    with tarfile.open(folder / "kit.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "edgekd-validation-kit"


def bare_path(folder: Path, pythons: dict[str, str | Path], shell: str = "") -> Path:
    """Return a folder for PATH with these Pythons by name, and PROGRAMS, which are BusyBox's if that is the shell."""
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        found = shutil.which("busybox" if shell == "busybox" else name)
        assert found, name
        (folder / name).symlink_to(found)
    for name, goal in pythons.items():
        # Not a link: the interpreter finds its virtual environment by the path of its call.
        (folder / name).write_text(f'#!/bin/sh\nexec "{goal}" "$@"\n', "utf-8")
        (folder / name).chmod(0o755)
    return folder


def run_kit(
    kit: Path, path: Path, *arguments: str, shell: str = "dash", cwd: Path | None = None, packages: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `sh run.sh` with only `path` as PATH. packages: a folder for PYTHONPATH."""
    program = shutil.which(shell)
    assert program
    command = [program, *(["sh"] if shell == "busybox" else []), str(kit / "run.sh"), *arguments]
    environment = {"PATH": str(path), "HOME": str(kit / "home"), "OMP_NUM_THREADS": "2"}
    if packages:
        environment["PYTHONPATH"] = str(packages)
    return subprocess.run(command, cwd=cwd or kit, env=environment, capture_output=True, text=True, timeout=900)

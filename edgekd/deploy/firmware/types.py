"""Types of packagers for firmware systems: protocol, input, and how they call programs."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from edgekd.core.bundle.manifest import Manifest
from edgekd.core.errors import SpecError

STATE = "/var/lib/edgekd"
"""Where the slots are on a camera unless it is said otherwise: the agent's own default."""
BUNDLE = "bundle.edgekd"
"""What the bundle is called in every system's file."""
SCRIPT = "install.sh"
"""What the script that hands the bundle to the agent is called, where it travels with it."""


@dataclass(frozen=True)
class FirmwareFile:
    """A firmware system's file around a bundle.

    Args:
        system: Name of the firmware system: `mender`, `oci`, `rauc` or `swupdate`.
        version: Version in that system: the bundle's counter.
        compatible: Names of the devices that it fits, in that system.
        signed: True where it has a signature of that system's own, around those of the bundle.
    """

    system: str
    version: str
    compatible: tuple[str, ...]
    signed: bool


@dataclass(frozen=True)
class Packaging:
    """For which firmware system a bundle is packed, and what that system is told.

    key, certificate: by which the system knows the file to be trusted, as its own tools take them: a file, or a
    pkcs11: address; intermediates: certificates between that one and the one that cameras hold; compatible: what the
    system on the camera calls the device, where that is not what the bundle says; state: folder of the slots there;
    plain: RAUC's older format; module: where Mender's update module is to be written, too.
    """

    system: str
    key: str | None = None
    certificate: str | None = None
    intermediates: tuple[Path, ...] = ()
    compatible: tuple[str, ...] = ()
    state: str = STATE
    plain: bool = False
    module: Path | None = None


@dataclass(frozen=True)
class Cargo:
    """Input of a packager: the bundle, its manifest, its name and the options."""

    bundle: Path
    manifest: Manifest
    identity: str
    packaging: Packaging

    @property
    def key(self) -> str:
        """Path or address of the signing key; empty where nothing is signed."""
        return place(self.packaging.key or "")

    @property
    def certificate(self) -> str:
        """Path of the key's certificate; empty if there is none."""
        return place(self.packaging.certificate or "")

    @property
    def version(self) -> str:
        """The bundle's counter, which is what the systems call a version."""
        return str(self.manifest.counter)

    @property
    def compatible(self) -> tuple[str, ...]:
        """Names that the system gives to the devices that the bundle fits."""
        return self.packaging.compatible or (self.manifest.target.compatible,)


class Packager(Protocol):
    """A firmware system. suffix: how its files' names end; programs: what is run, and the Debian package of each."""

    suffix: str
    programs: Mapping[str, str]

    def check(self, packaging: Packaging) -> None:
        """Raises SpecError for what the system cannot be told."""

    def make(self, cargo: Cargo, folder: Path) -> Path:
        """Make the system's file in an empty folder. Raises SpecError where a program fails."""


def place(given: str) -> str:
    """A key's address as it is, or the path of its file from whatever folder a program runs in."""
    return given if not given or given.startswith("pkcs11:") else str(Path(given).absolute())


def camera_script(name: str, **settings: str) -> bytes:
    """The POSIX shell script by which a system hands a bundle to the agent, with the settings of this one file."""
    folder = resources.files("edgekd.deploy.firmware") / "camera"
    parts = [(folder / f"{part}.sh").read_text("utf-8") for part in ("common", name)]
    told = "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items())
    return "\n".join(["#!/bin/sh\n" + told, *parts]).encode()


def run_program(program: str, *arguments: object, folder: Path) -> None:
    """Run a firmware system's own program. Raises SpecError with its last words where it fails.

    It may ask for a passphrase on the terminal. What it writes has no time in it where it lets itself be told so.
    """
    environment = {"SOURCE_DATE_EPOCH": "0", **os.environ, "LC_ALL": "C.UTF-8"}
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        found = "; ".join(words[-3:]) or f"exit code {done.returncode}"
        raise SpecError(f"{program} {arguments[0]}: failed", found=found.replace(f"{folder}/", "")[:500])

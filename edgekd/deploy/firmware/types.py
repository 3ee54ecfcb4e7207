"""Types of packagers for firmware systems, and their scripts and programs."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from edgekd.core.errors import SpecError

STATE = "/var/lib/edgekd"
"""Default folder of the slots on a camera, as in the agent."""
Kind = Literal["bundle", "delta", "trust"]
NAMES: Mapping[Kind, str] = {"bundle": "bundle.edgekd", "delta": "bundle.edgekd-delta", "trust": "trust.json"}
"""Name of the payload in the file of every system."""
SCRIPT = "install.sh"
"""Name of the script that passes the bundle to the agent, in files that contain it."""


@dataclass(frozen=True)
class Packaging:
    """Options for the file of a firmware system.

    key, certificate: sign the file with the system's tools: a file, or a pkcs11: address; intermediates: certificates
    between that one and the root that cameras hold; unsigned: leave the file unsigned; compatible: names of the device
    in the system, if other than that of the bundle; state: folder of the slots on the camera; model: name of one of
    several models of the camera, if other than the bundle's role; plain: RAUC's older format; module: path for Mender's
    update module, which is then written, too.
    """

    system: str
    key: str | None = None
    certificate: str | None = None
    intermediates: tuple[Path, ...] = ()
    unsigned: bool = False
    compatible: tuple[str, ...] = ()
    state: str = STATE
    model: str | None = None
    plain: bool = False
    module: Path | None = None


@dataclass(frozen=True)
class FirmwareFile:
    """File of a firmware system.

    Args:
        system: `mender`, `oci`, `rauc` or `swupdate`.
        version: Version in that system: the bundle's counter, or the version of the trust file.
        compatible: Names in that system of the devices that it fits.
        signed: True if it has a signature of that system, besides the signatures of its content.
    """

    system: str
    version: str
    compatible: tuple[str, ...]
    signed: bool


@dataclass(frozen=True)
class Payload:
    """Input of a packager: a bundle, a delta or a trust file, and the options.

    name: for users; version: counter of the (resulting) bundle, or version of the trust file; identity: SHA-256 of the
    bundle's manifest or of the trust file's content; compatible: names of the supported devices in the firmware system;
    model: name of the camera's model that it is for, None for the one without a name.
    """

    file: Path
    kind: Kind
    name: str
    version: str
    identity: str
    compatible: tuple[str, ...]
    model: str | None
    packaging: Packaging

    @property
    def file_name(self) -> str:
        """Name of the payload in the firmware system's file."""
        return NAMES[self.kind]

    @property
    def settings(self) -> dict[str, str]:
        """Settings of the camera's script for this file."""
        return {"state": self.packaging.state, "file": self.file_name, "model": self.model or ""}

    @property
    def key(self) -> str:
        """Absolute path or address of the signing key; empty without signature."""
        return _absolute(self.packaging.key or "")

    @property
    def certificate(self) -> str:
        """Absolute path or address of the key's certificate; empty if there is none."""
        return _absolute(self.packaging.certificate or "")


@dataclass(frozen=True)
class Packager:
    """A firmware system.

    suffix: end of its files' names; programs: the programs that it needs, and the Debian package of each; check: raises
    SpecError for options that the system does not support; make: writes the file `out`, using an empty folder. Raises
    SpecError if a program fails.
    """

    suffix: str
    programs: Mapping[str, str]
    check: Callable[[Packaging], None]
    make: Callable[[Payload, Path, Path], None]


def require_signature(packaging: Packaging) -> None:
    """Raise SpecError if the file would be unsigned and the options do not allow that."""
    if packaging.key is None and not packaging.unsigned:
        what, fix = f"{packaging.system}: no signature", "--firmware-unsigned, where cameras shall take unsigned files"
        raise SpecError(what, expected="--firmware-key FILE", found="no key", fix=fix)


def _absolute(key: str) -> str:
    """Return the absolute path of a file, as programs run in other folders; an address is not changed."""
    return key if not key or key.startswith("pkcs11:") else str(Path(key).absolute())


def camera_script(name: str, **settings: str) -> bytes:
    """Return the POSIX shell script that passes a bundle to the agent, with settings of this one file."""
    folder = resources.files("edgekd.deploy.firmware") / "camera"
    parts = [(folder / f"{part}.sh").read_text("utf-8") for part in ("common", name)]
    assignments = "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items())
    return "\n".join(["#!/bin/sh\n" + assignments, *parts]).encode()


def run_program(program: str, *arguments: object, folder: Path) -> None:
    """Run a program of a firmware system. Raises SpecError with its last lines of output if it fails.

    It may prompt for a passphrase on the terminal. Programs that support SOURCE_DATE_EPOCH write no times.
    """
    environment = {"SOURCE_DATE_EPOCH": "0", **os.environ, "LC_ALL": "C.UTF-8"}
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        found = "; ".join(lines[-3:]) or f"exit code {done.returncode}"
        raise SpecError(f"{program} {arguments[0]}: failed", found=found.replace(f"{folder}/", "")[:500])

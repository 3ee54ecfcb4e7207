"""Files for firmware systems, each with a bundle and what hands it to the agent on the camera: docs/firmware.md.

A system is one module with one class: what its file is called, which programs make it, what it refuses, how it is made.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgekd.core.atomic_files import copy_file, write_file, writing
from edgekd.core.bundle.archive import read_head
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.deploy.firmware.mender import Mender, update_module
from edgekd.deploy.firmware.oci import Oci
from edgekd.deploy.firmware.rauc import Rauc
from edgekd.deploy.firmware.swupdate import SWUpdate
from edgekd.deploy.firmware.types import STATE, Cargo, FirmwareFile, Packager, Packaging

PACKAGERS: Mapping[str, Packager] = {"mender": Mender(), "oci": Oci(), "rauc": Rauc(), "swupdate": SWUpdate()}


def system_of(out: Path) -> str | None:
    """The system whose files' names end like this one's; None for a bundle, and what is no system's."""
    return next((name for name, packager in PACKAGERS.items() if out.name.endswith(packager.suffix)), None)


def packaging_for(told: Packaging, out: Path) -> Packaging | None:
    """Return the options with the system that the name of `out` implies; None for a plain bundle.

    Raises SpecError where a plain bundle is told what only a firmware system can use.
    """
    system = told.system or system_of(out) or "edgekd"
    if system != "edgekd":
        return replace(told, system=system)
    if told != Packaging(told.system):
        fix = "--format " + ", ".join(PACKAGERS)
        raise SpecError("an edgekd bundle: has no use for options of firmware systems", fix=fix)
    return None


def require_packager(packaging: Packaging) -> Packager:
    """The system's packager. Raises SpecError where there is none, what it needs is missing, or it is told nonsense."""
    packager = PACKAGERS.get(packaging.system)
    if packager is None:
        expected, fix = "one of " + ", ".join(PACKAGERS), did_you_mean(packaging.system, PACKAGERS)
        raise SpecError(f"unknown format {packaging.system!r}", expected=expected, fix=fix)
    for program, package in packager.programs.items():
        if shutil.which(program) is None:
            raise SpecError(f"{program}: not installed", fix=f"apt-get install {package}")
    if not packaging.state.startswith("/") or not packaging.state.isprintable():
        raise SpecError(
            f"--state {packaging.state!r}", expected="an absolute path on the camera", fix=f"--state {STATE}"
        )
    for text in packaging.compatible:
        if not text or not text.isprintable():
            raise SpecError(f"--compatible {text!r}", expected="one or more printable characters")
    if packaging.plain and packaging.system != "rauc":
        raise SpecError("--rauc-plain: for RAUC only", found=f"--format {packaging.system}", fix="leave it away")
    if packaging.module and packaging.system != "mender":
        raise SpecError("--mender-module: for Mender only", found=f"--format {packaging.system}", fix="leave it away")
    _require_keys(packaging)
    packager.check(packaging)
    return packager


def wrap(packaging: Packaging, bundle: Path, out: Path) -> FirmwareFile:
    """Make a firmware system's file of a bundle, whole or not at all.

    Raises SpecError for what cannot be done or a program that fails, BundleError for a bad bundle.
    """
    packager, head = require_packager(packaging), read_head(bundle)
    cargo = Cargo(bundle, head.manifest, head.identity, packaging)
    with writing(out), tempfile.TemporaryDirectory(prefix="edgekd-", dir=out.absolute().parent) as scratch:
        made = packager.make(cargo, Path(scratch))
        copy_file(made, out)
    if packaging.module:
        write_file(packaging.module, update_module())
        with writing(packaging.module):
            packaging.module.chmod(0o755)
    return FirmwareFile(packaging.system, cargo.version, cargo.compatible, packaging.key is not None)


def _require_keys(packaging: Packaging) -> None:
    """Raises SpecError where a key or a certificate is no file, or its address has a secret in it."""
    named = [("--firmware-key", packaging.key), ("--firmware-cert", packaging.certificate)]
    named += [("--firmware-intermediate", str(path)) for path in packaging.intermediates]
    for option, given in named:
        if given is None:
            continue
        if given.startswith("pkcs11:"):
            if "pin-value=" in given:
                fix = "docs/firmware.md says how each program is given the PIN"
                raise SpecError(f"{option}: a PIN in an address, which others can read", fix=fix)
        elif not Path(given).is_file():
            raise SpecError(f"{option} {given}: no such file", fix="check the path")


__all__ = ["PACKAGERS", "STATE", "Packager", "Packaging", "packaging_for", "require_packager", "wrap"]

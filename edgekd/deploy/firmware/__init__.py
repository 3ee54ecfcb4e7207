"""Files for firmware systems, which contain a bundle and pass it to the agent on the camera: docs/firmware.md.

Each system is one module with a `Packager`.
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
from edgekd.core.input_files import shown_path
from edgekd.deploy.firmware.mender import MENDER, update_module
from edgekd.deploy.firmware.oci import OCI
from edgekd.deploy.firmware.rauc import RAUC
from edgekd.deploy.firmware.swupdate import SWUPDATE
from edgekd.deploy.firmware.types import STATE, FirmwareFile, Packager, Packaging, Payload

PACKAGERS: Mapping[str, Packager] = {"mender": MENDER, "oci": OCI, "rauc": RAUC, "swupdate": SWUPDATE}


def packaging_for(options: Packaging, out: Path) -> Packaging | None:
    """Return the options with the system that the name of `out` implies; None for a plain bundle.

    Raises SpecError for a name that implies none, and for a plain bundle with options of firmware systems.
    """
    suffixes = {".edgekd": "edgekd", **{packager.suffix: name for name, packager in PACKAGERS.items()}}
    system = options.system or next((suffixes[end] for end in suffixes if out.name.endswith(end)), None)
    if system is None:
        expected = "a name that ends in " + ", ".join(suffixes)
        fix = "--format edgekd, if this shall be the name of a bundle"
        raise SpecError(f"--out {shown_path(out)}", expected=expected, found=out.suffix or "no suffix", fix=fix)
    if system != "edgekd":
        return replace(options, system=system)
    if options != Packaging(options.system):
        fix = "--format " + ", ".join(PACKAGERS)
        raise SpecError("an edgekd bundle: has no options of firmware systems", fix=fix)
    return None


def require_packager(packaging: Packaging) -> Packager:
    """Return the system's packager. Raises SpecError for an unknown system, missing programs, or invalid options."""
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
        raise SpecError("--rauc-plain: for RAUC only", found=f"--format {packaging.system}", fix="leave it out")
    if packaging.module and packaging.system != "mender":
        raise SpecError("--mender-module: for Mender only", found=f"--format {packaging.system}", fix="leave it out")
    _require_keys(packaging)
    packager.check(packaging)
    return packager


def wrap(packaging: Packaging, bundle: Path, out: Path) -> FirmwareFile:
    """Write the firmware system's file of a bundle atomically.

    Raises SpecError for invalid options or a program that fails, BundleError for an invalid bundle.
    """
    packager, head = require_packager(packaging), read_head(bundle)
    if head.manifest.role is not None and packaging.system != "oci":
        fix = f"agent.pyz install --model {head.manifest.role}"
        raise SpecError(f"{packaging.system}: installs the model without a name only", found="a role", fix=fix)
    payload = Payload(bundle, head.manifest, head.identity, packaging)
    with writing(out), tempfile.TemporaryDirectory(prefix="edgekd-", dir=out.absolute().parent) as scratch:
        packed = Path(scratch, f"packed{packager.suffix}")
        packager.make(payload, Path(scratch), packed)
        copy_file(packed, out)
    if packaging.module:
        write_file(packaging.module, update_module())
        with writing(packaging.module):
            packaging.module.chmod(0o755)
    return FirmwareFile(packaging.system, payload.version, payload.compatible, signed=packaging.key is not None)


def _require_keys(packaging: Packaging) -> None:
    """Raise SpecError for a missing key or certificate file, an address with a PIN, or a key of an unsigned file."""
    if packaging.key and packaging.unsigned:
        raise SpecError("--firmware-key and --firmware-unsigned", expected="one of them", fix="leave one out")
    keys = [("--firmware-key", packaging.key), ("--firmware-cert", packaging.certificate)]
    keys += [("--firmware-intermediate", str(path)) for path in packaging.intermediates]
    for option, key in keys:
        if key is None:
            continue
        if key.startswith("pkcs11:"):
            if "pin-value=" in key:
                fix = "see docs/firmware.md on passing the PIN to each program"
                raise SpecError(f"{option}: a PIN in an address, which others can read", fix=fix)
        elif not Path(key).is_file():
            raise SpecError(f"{option} {key}: no such file", fix="check the path")


__all__ = ["PACKAGERS", "STATE", "Packager", "Packaging", "packaging_for", "require_packager", "wrap"]

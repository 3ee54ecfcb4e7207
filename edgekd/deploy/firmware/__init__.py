"""Files for firmware systems, which pass a bundle, a delta or a trust file to the agent on a camera.

docs/guides/firmware-systems.md describes them. Each system is one module with a `Packager`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgekd.core.atomic_files import copy_file, write_file, writing
from edgekd.core.bundle import trust
from edgekd.core.bundle.archive import BundleReader, opened
from edgekd.core.bundle.delta import DeltaReader, begins_delta
from edgekd.core.bundle.manifest import MODEL_NAME, MODEL_NAME_TEXT
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.input_files import read_input, shown_path
from edgekd.deploy.firmware.mender import MENDER, update_module
from edgekd.deploy.firmware.oci import OCI
from edgekd.deploy.firmware.rauc import RAUC
from edgekd.deploy.firmware.swupdate import SWUPDATE
from edgekd.deploy.firmware.types import STATE, FirmwareFile, Kind, Packager, Packaging, Payload

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
    if packaging.model is not None and not MODEL_NAME.fullmatch(packaging.model):
        raise SpecError(f"--model {packaging.model!r}", expected=MODEL_NAME_TEXT)
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


def kind_of(file: Path) -> Kind:
    """Return whether a file is a bundle, a delta, or a trust file, by how it begins. Raises BundleError."""
    with opened(file) as stream:
        if begins_delta(stream):
            return "delta"
        return "trust" if stream.read(1) == b"{" else "bundle"


def wrap(packaging: Packaging, file: Path, out: Path) -> FirmwareFile:
    """Write the firmware system's file of a bundle, a delta or a trust file atomically.

    Raises SpecError for invalid options or a program that fails; BundleError, SignatureError for an invalid file.
    """
    packager, payload = require_packager(packaging), payload_of(packaging, file)
    with writing(out), tempfile.TemporaryDirectory(prefix="edgekd-", dir=out.absolute().parent) as scratch:
        packed = Path(scratch, f"packed{packager.suffix}")
        packager.make(payload, Path(scratch), packed)
        copy_file(packed, out)
    if packaging.module:
        write_file(packaging.module, update_module())
        with writing(packaging.module):
            packaging.module.chmod(0o755)
    return FirmwareFile(packaging.system, payload.version, payload.compatible, signed=packaging.key is not None)


def payload_of(packaging: Packaging, file: Path) -> Payload:
    """Return the input of a packager for a file. Raises SpecError, BundleError, SignatureError."""
    kind = kind_of(file)
    if packaging.system == "oci" and kind != "bundle":
        raise SpecError("oci: for bundles only", found=f"a {kind} file", fix="distribute it as it is")
    if kind == "trust":
        return _trust_payload(packaging, file)
    with opened(file) as stream:
        head = (DeltaReader if kind == "delta" else BundleReader)(stream, file, None).head
    manifest = head.manifest
    if packaging.model not in (None, manifest.role) and manifest.role is not None:
        fix = "leave --model out"
        raise SpecError(f"--model {packaging.model}", expected=f"the bundle's role, {manifest.role}", fix=fix)
    return Payload(
        file=file,
        kind=kind,
        name=manifest.name,
        version=str(manifest.counter),
        identity=head.identity,
        compatible=packaging.compatible or (manifest.target.compatible,),
        model=packaging.model or (manifest.role if packaging.system != "oci" else None),
        packaging=packaging,
    )


def _trust_payload(packaging: Packaging, file: Path) -> Payload:
    signed = trust.from_json(read_input(file, trust.MAX_BYTES, SpecError))
    if not packaging.compatible:
        raise SpecError(
            f"{file}: a trust file, which is for no device", fix="--compatible NAME, as the system calls it"
        )
    if packaging.model is not None:
        raise SpecError(f"{file}: a trust file, which is for all models", fix="leave --model out")
    return Payload(
        file=file,
        kind="trust",
        name="trust",
        version=str(signed.trust.version),
        identity=signed.trust.sha256,
        compatible=packaging.compatible,
        model=None,
        packaging=packaging,
    )


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
                fix = "see docs/guides/firmware-systems.md on passing the PIN to each program"
                raise SpecError(f"{option}: a PIN in an address, which others can read", fix=fix)
        elif not Path(key).is_file():
            raise SpecError(f"{option} {key}: no such file", fix="check the path")


__all__ = ["PACKAGERS", "STATE", "Packager", "Packaging", "kind_of", "packaging_for", "require_packager", "wrap"]

"""Mender: an artifact for the update module `edgekd`, a file on the camera that calls the agent there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import (
    Packager,
    Packaging,
    Payload,
    camera_script,
    require_signature,
    run_program,
)

MODULE = "edgekd"
"""Name of the update module: its file on the camera, and the type of the artifact."""


def check(packaging: Packaging) -> None:
    """Raise SpecError for a certificate, as Mender signs with keys only, or no signature."""
    if packaging.certificate:
        raise SpecError("mender: takes no certificate", expected="--firmware-key FILE alone")
    require_signature(packaging)


def make(payload: Payload, folder: Path, out: Path) -> None:
    """Write the artifact with `mender-artifact write module-image`."""
    content, settings = folder / payload.file_name, folder / "meta-data"
    shutil.copyfile(payload.file, content)
    settings.write_text(json.dumps(payload.settings) + "\n", "utf-8")
    arguments = ["--type", MODULE, "--artifact-name", artifact_name(payload), "--output-path", out]
    arguments += [word for device in payload.compatible for word in ("--device-type", device)]
    # One software name per model, so that Mender tracks each of several models separately.
    arguments += ["--software-filesystem", MODULE, "--software-name", slug(payload.name)]
    arguments += ["--software-version", payload.version, "--file", content, "--meta-data", settings]
    if payload.key:
        arguments += ["--key-pkcs11" if payload.key.startswith("pkcs11:") else "--key", payload.key]
    # A bundle is compressed already.
    run_program("mender-artifact", "write", "module-image", *arguments, "--compression", "none", folder=folder)


MENDER = Packager(".mender", {"mender-artifact": "mender-artifact"}, check, make)


def artifact_name(payload: Payload) -> str:
    """Return a unique name per bundle, as Mender installs each name once."""
    return f"{slug(payload.name)}-{payload.version}-{payload.identity[:12]}"


def slug(name: str) -> str:
    """Replace blanks and other characters that Mender does not accept."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)


def update_module() -> bytes:
    """Return the executable that a camera needs as /usr/share/mender/modules/v3/edgekd."""
    return camera_script("mender")

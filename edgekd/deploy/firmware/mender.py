"""Mender: an artifact for the update module `edgekd`, which is a file of the camera's and calls the agent there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import BUNDLE, Cargo, Packaging, camera_script, run_program

MODULE = "edgekd"
"""What the update module is called: its file's name on the camera, and the artifact's type."""


class Mender:
    """Makes `*.mender` with `mender-artifact write module-image`."""

    suffix = ".mender"
    programs: Mapping[str, str] = {"mender-artifact": "mender-artifact"}

    def check(self, packaging: Packaging) -> None:
        """Raises SpecError for a certificate: Mender knows keys alone."""
        if packaging.certificate:
            raise SpecError("mender: takes no certificate", expected="--firmware-key FILE alone")

    def make(self, cargo: Cargo, folder: Path) -> Path:
        """Make the artifact in an empty folder. Raises SpecError where `mender-artifact` fails."""
        bundle, settings, out = folder / BUNDLE, folder / "meta-data", folder / f"made{self.suffix}"
        shutil.copyfile(cargo.bundle, bundle)
        settings.write_text(json.dumps({"state": cargo.packaging.state}) + "\n", "utf-8")
        name = slug(cargo.manifest.name)
        told = ["--type", MODULE, "--artifact-name", artifact_name(cargo), "--output-path", out]
        told += [word for device in cargo.compatible for word in ("--device-type", device)]
        # So that a camera with several models is told of each by itself.
        told += ["--software-filesystem", MODULE, "--software-name", name, "--software-version", cargo.version]
        told += ["--file", bundle, "--meta-data", settings]
        if cargo.key:
            told += ["--key-pkcs11" if cargo.key.startswith("pkcs11:") else "--key", cargo.key]
        # A bundle is packed already.
        flags = ("--compression", "none")
        run_program("mender-artifact", "write", "module-image", *told, *flags, folder=folder)
        return out


def artifact_name(cargo: Cargo) -> str:
    """Return the artifact's name. Mender installs a name once, so each bundle has its own."""
    return f"{slug(cargo.manifest.name)}-{cargo.version}-{cargo.identity[:12]}"


def slug(name: str) -> str:
    """A name without blanks and what else Mender does not take."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)


def update_module() -> bytes:
    """The file that a camera needs as /usr/share/mender/modules/v3/edgekd, executable."""
    return camera_script("mender")

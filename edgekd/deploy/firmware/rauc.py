"""RAUC: a bundle of its own kind, a signed squashfs with a manifest, whose custom handler calls the agent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import BUNDLE, SCRIPT, Cargo, Packaging, camera_script, run_program


class Rauc:
    """Makes `*.raucb` with `rauc bundle`. RAUC has no bundles without a signature."""

    suffix = ".raucb"
    programs: Mapping[str, str] = {"rauc": "rauc", "mksquashfs": "squashfs-tools"}

    def check(self, packaging: Packaging) -> None:
        """Raises SpecError without key and certificate, or with more than one kind of device."""
        if packaging.key is None or packaging.certificate is None:
            raise SpecError("rauc: cannot be left unsigned", fix="--firmware-key FILE --firmware-cert FILE")
        if len(packaging.compatible) > 1:
            found = ", ".join(packaging.compatible)
            raise SpecError("rauc: --compatible more than once", expected="one kind of device", found=found)

    def make(self, cargo: Cargo, folder: Path) -> Path:
        """Make the bundle in an empty folder. Raises SpecError where `rauc` fails."""
        content, out = folder / "content", folder / f"made{self.suffix}"
        content.mkdir()
        shutil.copyfile(cargo.bundle, content / BUNDLE)
        (content / SCRIPT).write_bytes(camera_script("rauc", state=cargo.packaging.state))
        (content / SCRIPT).chmod(0o755)
        (content / "manifest.raucm").write_text(manifest(cargo), "utf-8")
        keys = [f"--cert={cargo.certificate}", f"--key={cargo.key}"]
        keys += [f"--intermediate={path.absolute()}" for path in cargo.packaging.intermediates]
        run_program("rauc", "bundle", *keys, content, out, folder=folder)
        return out


def manifest(cargo: Cargo) -> str:
    """RAUC's own manifest of the bundle."""
    return "\n".join(
        (
            "[update]",
            f"compatible={_text(cargo.compatible[0])}",
            f"version={cargo.version}",
            f"description={_text(cargo.manifest.name)}",
            f"build={cargo.identity}",
            "",
            "[bundle]",
            f"format={'plain' if cargo.packaging.plain else 'verity'}",
            "",
            "[handler]",
            f"filename={SCRIPT}",
            "",
        )
    )


def _text(value: str) -> str:
    """A value of a GLib key file: what begins with a space keeps it, a backslash is one."""
    escaped = value.replace("\\", "\\\\")
    return "\\s" + escaped[1:] if escaped.startswith(" ") else escaped

"""RAUC: a RAUC bundle, which is a signed squashfs with a manifest, whose custom handler calls the agent."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import SCRIPT, Packager, Packaging, Payload, camera_script, run_program


def check(packaging: Packaging) -> None:
    """Raise SpecError without key and certificate, or with several kinds of devices."""
    if packaging.key is None or packaging.certificate is None:
        raise SpecError("rauc: cannot be left unsigned", fix="--firmware-key FILE --firmware-cert FILE")
    if len(packaging.compatible) > 1:
        found = ", ".join(packaging.compatible)
        raise SpecError("rauc: --compatible more than once", expected="one kind of device", found=found)


def make(payload: Payload, folder: Path, out: Path) -> None:
    """Write the RAUC bundle with `rauc bundle`."""
    content = folder / "content"
    content.mkdir()
    shutil.copyfile(payload.file, content / payload.file_name)
    (content / payload.file_name).chmod(0o644)  # the original may be private, and the agent does not run as root
    (content / SCRIPT).write_bytes(camera_script("rauc", **payload.settings))
    (content / SCRIPT).chmod(0o755)
    (content / "manifest.raucm").write_text(manifest(payload), "utf-8")
    keys = [f"--cert={payload.certificate}", f"--key={payload.key}"]
    keys += [f"--intermediate={path.absolute()}" for path in payload.packaging.intermediates]
    run_program("rauc", "bundle", *keys, content, out, folder=folder)


RAUC = Packager(".raucb", {"rauc": "rauc", "mksquashfs": "squashfs-tools"}, check, make)


def manifest(payload: Payload) -> str:
    """Return RAUC's manifest of the bundle."""
    return "\n".join(
        (
            "[update]",
            f"compatible={_text(payload.compatible[0])}",
            f"version={payload.version}",
            f"description={_text(payload.name)}",
            f"build={payload.identity}",
            "",
            "[bundle]",
            f"format={'plain' if payload.packaging.plain else 'verity'}",
            "",
            "[handler]",
            f"filename={SCRIPT}",
            "",
        )
    )


def _text(value: str) -> str:
    """Escape a value of a GLib key file: backslashes, and a leading space."""
    escaped = value.replace("\\", "\\\\")
    return "\\s" + escaped[1:] if escaped.startswith(" ") else escaped

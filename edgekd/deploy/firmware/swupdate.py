"""SWUpdate: a cpio archive that begins with a signed description, which has the hashes of all other members.

SWUpdate has no tool for it: the archive is written here and signed with OpenSSL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd.core.canonical import CHUNK, file_sha256
from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import (
    NAMES,
    SCRIPT,
    Packager,
    Packaging,
    Payload,
    camera_script,
    require_signature,
    run_program,
)

DESCRIPTION, SIGNATURE = "sw-description", "sw-description.sig"
_MAX_PATH_BYTES = 250  # SWUpdate's limit is 255, and it appends a suffix while writing


def check(packaging: Packaging) -> None:
    """Raise SpecError for a certificate without its key, a path that is too long for SWUpdate, or no signature."""
    if packaging.certificate and not packaging.key:
        raise SpecError("swupdate: a certificate without its key", fix="--firmware-key FILE")
    count = max(len(_incoming(packaging.state, name).encode()) for name in NAMES.values())
    if count > _MAX_PATH_BYTES:
        found = f"one of {count}"
        raise SpecError("swupdate: --state too long", expected=f"a path of {_MAX_PATH_BYTES} bytes", found=found)
    require_signature(packaging)


def make(payload: Payload, folder: Path, out: Path) -> None:
    """Write the update. With key and certificate it is signed by CMS, with a key alone by RSA, PKCS #1 1.5."""
    script = folder / SCRIPT
    script.write_bytes(camera_script("swupdate", **payload.settings))
    text = description(payload, file_sha256(payload.file), file_sha256(script))
    (folder / DESCRIPTION).write_text(text, "utf-8")
    members = [(DESCRIPTION, folder / DESCRIPTION)]
    if payload.key:
        _sign(payload, folder)
        members.append((SIGNATURE, folder / SIGNATURE))
    with out.open("wb") as stream:
        for chunk in cpio([*members, (payload.file_name, payload.file), (SCRIPT, script)]):
            stream.write(chunk)


SWUPDATE = Packager(".swu", {"openssl": "openssl"}, check, make)


def description(payload: Payload, content_sha256: str, script_sha256: str) -> str:
    """Return the sw-description, in libconfig's syntax: write the file to the state folder, then run the script."""
    devices = ", ".join(map(_text, payload.compatible))
    return f"""software =
{{
    version = "{payload.version}";
    description = {_text(payload.name)};
    hardware-compatibility: [ {devices} ];
    files: (
        {{
            filename = "{payload.file_name}";
            path = {_text(_incoming(payload.packaging.state, payload.file_name))};
            sha256 = "{content_sha256}";
            version = "{payload.version}";
            name = {_text(payload.name)};
            installed-directly = true;
            properties: {{ create-destination = "true"; atomic-install = "true"; }};
        }}
    );
    scripts: (
        {{
            filename = "{SCRIPT}";
            type = "shellscript";
            sha256 = "{script_sha256}";
        }}
    );
}}
"""


def _incoming(state: str, name: str) -> str:
    """Return the path of a file on the camera when the script runs."""
    return f"{state}/incoming/{name}"


def cpio(members: Sequence[tuple[str, Path]]) -> Iterator[bytes]:
    """Yield an archive in cpio's format "new ASCII with CRC", without times and owners."""
    size = 0
    for number, (name, path) in enumerate(members, 1):
        head = _header(name, number, path.stat().st_size, _sum_of_bytes(path))
        yield head
        size += len(head)
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                size += len(chunk)
        padding = bytes(-size % 4)
        yield padding
        size += len(padding)
    end = _header("TRAILER!!!", 0, 0, 0)
    yield end
    yield bytes(-(size + len(end)) % 512)


def _header(name: str, number: int, length: int, checksum: int) -> bytes:
    """Return a header: inode, mode, owner, group, links, time, length, device numbers, name length, checksum, name."""
    encoded = name.encode() + b"\0"
    mode, links = (0o100644, 1) if number else (0, 1)
    fields = (number, mode, 0, 0, links, 0, length, 0, 0, 0, 0, len(encoded), checksum)
    head = b"070702" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4)


def _sum_of_bytes(path: Path) -> int:
    """Return the checksum that this format calls a CRC."""
    total = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            total += sum(chunk)
    return total % 2**32


def _sign(payload: Payload, folder: Path) -> None:
    if not payload.certificate:
        run_program("openssl", "dgst", "-sha256", "-sign", payload.key, "-out", SIGNATURE, DESCRIPTION, folder=folder)
        return
    more = [word for path in payload.packaging.intermediates for word in ("-certfile", path.absolute())]
    # Without -noattr the signature would contain the time.
    flags = ("-outform", "DER", "-binary", "-nosmimecap", "-noattr", "-md", "sha256")
    keys = ("-signer", payload.certificate, "-inkey", payload.key, *more)
    run_program("openssl", "cms", "-sign", "-in", DESCRIPTION, "-out", SIGNATURE, *keys, *flags, folder=folder)


def _text(value: str) -> str:
    """Return a string in libconfig's syntax."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

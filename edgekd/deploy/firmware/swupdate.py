"""SWUpdate: a cpio archive that begins with a signed description, which has the hash of everything that follows.

SWUpdate has no program of its own that makes one: the archive is written here, the signature is OpenSSL's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgekd.core.canonical import CHUNK, file_sha256
from edgekd.core.errors import SpecError
from edgekd.deploy.firmware.types import BUNDLE, SCRIPT, Cargo, Packaging, camera_script, run_program

DESCRIPTION, SIGNATURE = "sw-description", "sw-description.sig"
_LONGEST_PATH = 250  # SWUpdate's handler of files has 255 bytes for one, and the name that it writes to first is longer


class SWUpdate:
    """Makes `*.swu`. With key and certificate it is signed by CMS, with a key alone by RSA, PKCS #1 1.5."""

    suffix = ".swu"
    programs: Mapping[str, str] = {"openssl": "openssl"}

    def check(self, packaging: Packaging) -> None:
        """Raises SpecError for a certificate without its key, or a path that SWUpdate has no room for."""
        if packaging.certificate and not packaging.key:
            raise SpecError("swupdate: a certificate without its key", fix="--firmware-key FILE")
        count = len(_incoming(packaging.state).encode())
        if count > _LONGEST_PATH:
            found = f"one of {count}"
            raise SpecError("swupdate: --state too long", expected=f"a path of {_LONGEST_PATH} bytes", found=found)

    def make(self, cargo: Cargo, folder: Path) -> Path:
        """Make the update in an empty folder. Raises SpecError where `openssl` fails."""
        script, out = folder / SCRIPT, folder / f"made{self.suffix}"
        script.write_bytes(camera_script("swupdate", state=cargo.packaging.state))
        told = description(cargo, file_sha256(cargo.bundle), file_sha256(script))
        (folder / DESCRIPTION).write_text(told, "utf-8")
        members = [(DESCRIPTION, folder / DESCRIPTION)]
        if cargo.key:
            _sign(cargo, folder)
            members.append((SIGNATURE, folder / SIGNATURE))
        with out.open("wb") as stream:
            for chunk in cpio([*members, (BUNDLE, cargo.bundle), (SCRIPT, script)]):
                stream.write(chunk)
        return out


def description(cargo: Cargo, bundle_sha256: str, script_sha256: str) -> str:
    """The sw-description, in libconfig's syntax: the bundle goes into the state folder, then the script is called."""
    fits = ", ".join(map(_text, cargo.compatible))
    return f"""software =
{{
    version = "{cargo.version}";
    description = {_text(cargo.manifest.name)};
    hardware-compatibility: [ {fits} ];
    files: (
        {{
            filename = "{BUNDLE}";
            path = {_text(_incoming(cargo.packaging.state))};
            sha256 = "{bundle_sha256}";
            version = "{cargo.version}";
            name = {_text(cargo.manifest.name)};
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


def _incoming(state: str) -> str:
    """Return the path of the bundle on the camera when the script runs."""
    return f"{state}/incoming/{BUNDLE}"


def cpio(members: Sequence[tuple[str, Path]]) -> Iterator[bytes]:
    """An archive in cpio's format "new ASCII with CRC", which has no times, owners or numbers that differ."""
    size = 0
    for number, (name, path) in enumerate(members, 1):
        head = _header(name, number, path.stat().st_size, _sum_of_bytes(path))
        yield head
        size += len(head)
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                size += len(chunk)
        filling = bytes(-size % 4)
        yield filling
        size += len(filling)
    end = _header("TRAILER!!!", 0, 0, 0)
    yield end
    yield bytes(-(size + len(end)) % 512)


def _header(name: str, number: int, length: int, checksum: int) -> bytes:
    """Number, mode, owner, group, links, time, length, four device numbers, length of the name, sum of the bytes."""
    told = name.encode() + b"\0"
    mode, links = (0o100644, 1) if number else (0, 1)
    fields = (number, mode, 0, 0, links, 0, length, 0, 0, 0, 0, len(told), checksum)
    head = b"070702" + b"".join(b"%08X" % field for field in fields) + told
    return head + bytes(-len(head) % 4)


def _sum_of_bytes(path: Path) -> int:
    """Return the checksum that this format calls a CRC."""
    total = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            total += sum(chunk)
    return total % 2**32


def _sign(cargo: Cargo, folder: Path) -> None:
    if not cargo.certificate:
        run_program("openssl", "dgst", "-sha256", "-sign", cargo.key, "-out", SIGNATURE, DESCRIPTION, folder=folder)
        return
    more = [word for path in cargo.packaging.intermediates for word in ("-certfile", path.absolute())]
    # Without -noattr the time would be in the signature.
    flags = ("-outform", "DER", "-binary", "-nosmimecap", "-noattr", "-md", "sha256")
    keys = ("-signer", cargo.certificate, "-inkey", cargo.key, *more)
    run_program("openssl", "cms", "-sign", "-in", DESCRIPTION, "-out", SIGNATURE, *keys, *flags, folder=folder)


def _text(value: str) -> str:
    """A string of libconfig."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

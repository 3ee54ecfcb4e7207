"""The archive that a bundle is: written the same way each time, and read only if it could have been written so.

A `*.edgekd` file is an uncompressed ustar archive, which any tar can list and unpack. Reading it here needs no tar
parser: every header is computed from the manifest and compared byte for byte, so a manifest has one valid archive and
nothing is left to misread. docs/formats/bundle.md has the layout.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgekd.bundle.manifest import MAX_BYTES, FileEntry, Manifest, from_json, to_json
from edgekd.canonical import CHUNK, file_sha256
from edgekd.errors import BundleError, HashError, SpecError
from edgekd.files import new_file, new_folder, writing

MANIFEST = "manifest.json"
DIGEST = "manifest.sha256"

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_DAMAGED = "get the bundle again"


def file_entry(path: str, source: Path, role: str) -> FileEntry:
    """How the manifest lists the file `source`, stored as `path`. Raises BundleError when it cannot be read."""
    with _reading(source):
        return FileEntry(path, source.stat().st_size, file_sha256(source), role)


def stored_bytes(entry: FileEntry) -> int:
    """How many bytes of an archive a file takes."""
    return _BLOCK + entry.length + -entry.length % _BLOCK


def pack(manifest: Manifest, files: Mapping[str, Path], out: Path) -> None:
    """Write a bundle; the same manifest and files give the same bytes. `files`: where each path's content is.

    Raises BundleError when the manifest breaks a rule or does not list these files, HashError when a file is not
    as the manifest says, SpecError when `out` cannot be written. `out` is then as it was.
    """
    listed = [entry.path for entry in manifest.files]
    if set(listed) != set(files):
        raise BundleError(f"{out}: the manifest lists other files", expected=str(listed), found=str(sorted(files)))
    head = to_json(manifest)
    with new_file(out) as stream:
        for name, content in ((MANIFEST, head), (DIGEST, _digest(head))):
            stream.write(_header(name, len(content)) + content + _padding(len(content)))
        for entry in manifest.files:
            stream.write(_header(entry.path, entry.length))
            for chunk in _source(entry, files[entry.path]):
                stream.write(chunk)
            stream.write(_padding(entry.length))
        stream.write(_END)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle, whose files are not looked at. Raises BundleError or HashError."""
    with _opened(path) as stream:
        return _manifest(_read_head(stream, path), path)


def verify(path: Path) -> Manifest:
    """Check a bundle from its first byte to its last, in bounded memory. Raises BundleError or HashError."""
    with _opened(path) as stream:
        manifest = _manifest(_read_head(stream, path), path)
        _check_size(stream, manifest, path)
        for entry in manifest.files:
            for _ in _member(stream, entry, path):
                pass
        _read_end(stream, path)
    return manifest


def extract(path: Path, folder: Path) -> Manifest:
    """Unpack a bundle into `folder`, which appears only when everything in it has been verified.

    Raises BundleError or HashError for a bad bundle, SpecError when `folder` is in use or cannot be written.
    """
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SpecError(f"{folder}: in use", expected="a new or empty folder", fix="choose another")
    with _opened(path) as stream, new_folder(folder) as temporary, writing(folder):
        head = _read_head(stream, path)
        manifest = _manifest(head, path)
        _check_size(stream, manifest, path)
        (temporary / MANIFEST).write_bytes(head)
        (temporary / DIGEST).write_bytes(_digest(head))
        for entry in manifest.files:
            target = temporary / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                for chunk in _member(stream, entry, path):
                    out.write(chunk)
        _read_end(stream, path)
    return manifest


def _header(name: str, length: int) -> bytes:
    """The 512 bytes before a regular file: POSIX.1-2017, pax, "ustar Interchange Format"."""
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0" * 2,  # owner, group
        b"%011o\0" % length,
        b"%011o\0" % 0,  # time of modification
        b" " * 8,  # checksum, counted as spaces
        b"0",  # a regular file
        bytes(100),  # link name
        b"ustar\x0000",
        bytes(247),  # names of owner and group, device numbers, prefix of the name, filling
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _padding(length: int) -> bytes:
    return bytes(-length % _BLOCK)


def _digest(head: bytes) -> bytes:
    """The content of manifest.sha256, as `sha256sum --check` reads it."""
    return f"{hashlib.sha256(head).hexdigest()}  {MANIFEST}\n".encode("ascii")


def _source(entry: FileEntry, source: Path) -> Iterator[bytes]:
    """The content of a file to be packed. Raises HashError at its end when it is not what the manifest says."""
    digest, length = hashlib.sha256(), 0
    with _opened(source) as stream:
        while True:
            with _reading(source):
                chunk = stream.read(CHUNK)
            if not chunk:
                break
            digest.update(chunk)
            length += len(chunk)
            yield chunk
    _compare(f"{source}: changed", entry, length, digest.hexdigest())


def _member(stream: BinaryIO, entry: FileEntry, path: Path) -> Iterator[bytes]:
    """The content of the next file of a bundle. Raises HashError at its end when it is not what the manifest says."""
    _expect(stream, _header(entry.path, entry.length), path, f"header of {entry.path}")
    digest, left = hashlib.sha256(), entry.length
    while left:
        chunk = _read(stream, min(left, CHUNK), path)
        digest.update(chunk)
        left -= len(chunk)
        yield chunk
    _compare(f"{path}: {entry.path} is damaged", entry, entry.length, digest.hexdigest())
    _expect(stream, _padding(entry.length), path, f"filling after {entry.path}")


def _compare(what: str, entry: FileEntry, length: int, sha256: str) -> None:
    if (length, sha256) != (entry.length, entry.sha256):
        raise HashError(
            what,
            expected=f"{entry.length} bytes with SHA-256 {entry.sha256}",
            found=f"{length} bytes with SHA-256 {sha256}",
        )


def _read_head(stream: BinaryIO, path: Path) -> bytes:
    """The bytes of the manifest, checked against the digest that follows them."""
    header = _read(stream, _BLOCK, path)
    size = header[124:135]
    length = int(size, 8) if size.isdigit() and not set(size) & set(b"89") else -1
    if not 0 <= length <= MAX_BYTES or header != _header(MANIFEST, length):
        raise BundleError(f"{path}: not an edgekd bundle", expected=f"an archive that begins with {MANIFEST}")
    head = _read(stream, length, path)
    _expect(stream, _padding(length), path, f"filling after {MANIFEST}")
    digest = _digest(head)
    _expect(stream, _header(DIGEST, len(digest)), path, f"header of {DIGEST}")
    found = _read(stream, len(digest), path)
    if found != digest:
        raise HashError(f"{path}: {MANIFEST} or {DIGEST} is damaged", fix=_DAMAGED)
    _expect(stream, _padding(len(digest)), path, f"filling after {DIGEST}")
    return head


def _manifest(head: bytes, path: Path) -> Manifest:
    """The manifest in its bytes; an error also names the bundle."""
    try:
        return from_json(head)
    except BundleError as error:
        what = f"{path}: {error.what}"
        raise BundleError(what, expected=error.expected, found=error.found, fix=error.fix) from error


def _check_size(stream: BinaryIO, manifest: Manifest, path: Path) -> None:
    """Whether what follows the manifest is as long as it says: the likeliest damage, found before any hashing."""
    expected = stream.tell() + sum(map(stored_bytes, manifest.files)) + len(_END)
    found = os.fstat(stream.fileno()).st_size
    if found != expected:
        what = "cut short" if found < expected else "something after its end"
        raise BundleError(f"{path}: {what}", expected=f"{expected} bytes", found=f"{found} bytes", fix=_DAMAGED)


def _read_end(stream: BinaryIO, path: Path) -> None:
    _expect(stream, _END, path, "end")


def _expect(stream: BinaryIO, expected: bytes, path: Path, what: str) -> None:
    if _read(stream, len(expected), path) != expected:
        raise BundleError(f"{path}: the {what} is not as edgekd writes it", fix=_DAMAGED)


def _read(stream: BinaryIO, count: int, path: Path) -> bytes:
    with _reading(path):
        content = stream.read(count)
    if len(content) != count:
        raise BundleError(f"{path}: cut short", fix=_DAMAGED)
    return content


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with _reading(path):
        if not path.is_file():  # opening a pipe would wait for ever
            found = "something else" if path.exists() else "nothing"
            raise BundleError(f"{path}: cannot read", expected="a file", found=found, fix="check the path")
        stream = path.open("rb")
    with stream:
        yield stream


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path}: cannot read", found=error.strerror or str(error), fix="check the path") from error

"""The archive of a bundle, in a canonical form: every other form is rejected.

A `*.edgekd` file is an uncompressed ustar archive, which any tar can list and unpack. Reading it needs no tar parser:
every header is computed from the manifest and compared byte for byte, so that a manifest has one valid archive.
docs/formats/bundle.md has the layout.

The trust file is not known here: the caller passes a `Judge` of the head, which is called before any file is read.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgekd.core.atomic_files import new_file, new_folder, writing
from edgekd.core.bundle import signatures as signature_file
from edgekd.core.bundle.manifest import MAX_BYTES, FileEntry, Manifest, Role, from_json, to_json
from edgekd.core.bundle.signatures import Signature, SignatureEnvelope
from edgekd.core.canonical import CHUNK, file_sha256
from edgekd.core.errors import BundleError, HashError, SpecError, naming

if TYPE_CHECKING:
    from collections.abc import Callable

    Judge = Callable[["Head"], Any]

MANIFEST = "manifest.json"
SIGNATURES = "signatures.json"

BLOCK = 512
END = bytes(2 * BLOCK)
_FIX = "get the bundle again"


@dataclass(frozen=True)
class Head:
    """The head of a bundle, in front of its files: the manifest, its bytes, and its signatures."""

    manifest: Manifest
    content: bytes
    envelope: SignatureEnvelope

    @property
    def identity(self) -> str:
        """Identity of the bundle: SHA-256 of its manifest, 64 hexadecimal digits."""
        return self.envelope.sha256


def head_of(manifest: Manifest, signatures: Iterable[Signature] = ()) -> Head:
    """Return the head of a new bundle. Raises BundleError when the manifest breaks a rule."""
    content = to_json(manifest)
    digest = hashlib.sha256(content).hexdigest()
    return Head(manifest, content, SignatureEnvelope(digest, signature_file.merged(signatures)))


def file_entry(path: str, source: Path, role: Role) -> FileEntry:
    """Return the entry of a file in the manifest, stored as `path`. Raises BundleError when it cannot be read."""
    with _reading(source):
        return FileEntry(path, source.stat().st_size, file_sha256(source), role)


def stored_bytes(entry: FileEntry) -> int:
    """Return the bytes of a file in the archive, with its header and padding."""
    return BLOCK + entry.length + -entry.length % BLOCK


def pack(manifest: Manifest, files: Mapping[str, Path], out: Path) -> None:
    """Write a bundle without signatures; the same manifest and files give the same bytes.

    files: source of each path. Raises BundleError when the manifest breaks a rule or lists other files, HashError when
    a file differs from its entry, SpecError when `out` cannot be written. `out` is then unchanged.
    """
    listed = [entry.path for entry in manifest.files]
    if set(listed) != set(files):
        raise BundleError(f"{out}: the manifest lists other files", expected=str(listed), found=str(sorted(files)))
    write(out, head_of(manifest), ((entry, _source(entry, files[entry.path])) for entry in manifest.files))


def replace_signatures(path: Path, signatures: Iterable[Signature], out: Path) -> None:
    """Verify a bundle, and write it with other signatures.

    `out` may be `path`. Raises BundleError or HashError for a bad bundle, SpecError when `out` cannot be written.
    """
    with opened(path) as stream:
        head = _read_head(stream, path)
        _check_size(stream, head.manifest, path)
        envelope = SignatureEnvelope(head.identity, signature_file.merged(signatures))
        members = ((entry, _member(stream, entry, path)) for entry in head.manifest.files)
        write(out, replace(head, envelope=envelope), members)


def write(out: Path, head: Head, members: Iterable[tuple[FileEntry, Iterator[bytes]]]) -> None:
    """Write a bundle of a head and the content of its files, which the caller checks. Raises SpecError."""
    with new_file(out) as stream:
        stream.write(head_members(head))
        for entry, chunks in members:
            stream.write(_header(entry.path, entry.length))
            for chunk in chunks:
                stream.write(chunk)
            stream.write(_padding(entry.length))
        stream.write(END)


def head_members(head: Head) -> bytes:
    """Return the first two files of a bundle, as in the archive."""
    return member(MANIFEST, head.content) + member(SIGNATURES, signature_file.to_json(head.envelope))


def member(name: str, content: bytes) -> bytes:
    """Return a file as in an archive."""
    return _header(name, len(content)) + content + _padding(len(content))


def read_head(path: Path, judge: Judge | None = None) -> Head:
    """Read the head of a bundle, but not its files. Raises BundleError, HashError, and what `judge` raises."""
    with opened(path) as stream:
        return head_in(stream, path, judge)


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle, but not its files. Raises BundleError or HashError."""
    return read_head(path).manifest


def read_file(path: Path, entry: FileEntry) -> bytes:
    """Read one file of a bundle into memory. Raises BundleError or HashError."""
    with opened(path) as stream:
        head = _read_head(stream, path)
        _check_size(stream, head.manifest, path)
        before = head.manifest.files[: head.manifest.files.index(entry)]
        stream.seek(sum(map(stored_bytes, before)), os.SEEK_CUR)
        return b"".join(_member(stream, entry, path))


def verify(path: Path, judge: Judge | None = None) -> Manifest:
    """Check a bundle from its first byte to its last, in bounded memory.

    Raises BundleError or HashError, and what `judge` raises.
    """
    with opened(path) as stream:
        return _verified(stream, path, judge).manifest


def extract(path: Path, folder: Path, judge: Judge | None = None) -> Manifest:
    """Unpack a bundle into `folder`, after all of it has been verified.

    Files are verified again while they are written, and `folder` appears complete: a bundle that changes in between
    does no harm. Raises BundleError or HashError for a bad bundle, what `judge` raises, and SpecError when `folder` is
    in use or cannot be written.
    """
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SpecError(f"{folder}: in use", expected="a new or empty folder", fix="choose another")
    with opened(path) as stream:
        head = _verified(stream, path, judge)
        stream.seek(0)
        with new_folder(folder) as temporary, writing(folder):
            if _read_head(stream, path) != head:
                raise BundleError(f"{path}: changed while it was read", fix=_FIX)
            (temporary / MANIFEST).write_bytes(head.content)
            (temporary / SIGNATURES).write_bytes(signature_file.to_json(head.envelope))
            for entry in head.manifest.files:
                target = temporary / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    for chunk in _member(stream, entry, path):
                        out.write(chunk)
            read_end(stream, path)
    return head.manifest


def _verified(stream: BinaryIO, path: Path, judge: Judge | None) -> Head:
    head = head_in(stream, path, judge)
    _check_size(stream, head.manifest, path)
    for entry in head.manifest.files:
        for _ in _member(stream, entry, path):
            pass
    read_end(stream, path)
    return head


def head_in(stream: BinaryIO, path: Path, judge: Judge | None) -> Head:
    """Read a head at the position of a stream. Raises BundleError, HashError, and what `judge` raises."""
    head = _read_head(stream, path)
    if judge:
        with naming(path):
            judge(head)
    return head


def _header(name: str, length: int) -> bytes:
    """Return the 512-byte header of a regular file: POSIX.1-2017, pax, "ustar Interchange Format"."""
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
    return bytes(-length % BLOCK)


def _source(entry: FileEntry, source: Path) -> Iterator[bytes]:
    """Yield the content of a file to be packed. Raises HashError at its end when it differs from its entry."""
    with opened(source) as stream:
        yield from compared(f"{source}: changed", entry, _chunks(stream, source))


def _chunks(stream: BinaryIO, source: Path) -> Iterator[bytes]:
    while True:
        with _reading(source):
            chunk = stream.read(CHUNK)
        if not chunk:
            return
        yield chunk


def _member(stream: BinaryIO, entry: FileEntry, path: Path) -> Iterator[bytes]:
    """Yield the content of the next file of a bundle. Raises HashError at its end when it differs from its entry."""
    _expect(stream, _header(entry.path, entry.length), path, f"header of {entry.path}")
    counts = (min(CHUNK, entry.length - offset) for offset in range(0, entry.length, CHUNK))
    yield from compared(f"{path}: {entry.path} is damaged", entry, (_read(stream, count, path) for count in counts))
    _expect(stream, _padding(entry.length), path, f"filling after {entry.path}")


def compared(what: str, entry: FileEntry, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks. Raises HashError at their end where they differ from the entry of the manifest."""
    digest, length = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        length += len(chunk)
        yield chunk
    if (length, digest.hexdigest()) != (entry.length, entry.sha256):
        raise HashError(
            what,
            expected=f"{entry.length} bytes with SHA-256 {entry.sha256}",
            found=f"{length} bytes with SHA-256 {digest.hexdigest()}",
        )


def _read_head(stream: BinaryIO, path: Path) -> Head:
    """Read the manifest and the signatures, whose digest of the manifest is checked."""
    content = read_member(stream, path, MANIFEST, MAX_BYTES)
    signatures = read_member(stream, path, SIGNATURES, signature_file.MAX_BYTES)
    with naming(path):
        envelope = signature_file.from_json(signatures)
        if hashlib.sha256(content).hexdigest() != envelope.sha256:
            raise HashError(f"{MANIFEST} or {SIGNATURES} is damaged", fix=_FIX)
        return Head(from_json(content), content, envelope)


def read_member(stream: BinaryIO, path: Path, name: str, max_bytes: int) -> bytes:
    """Read the next file, whose length is in its own header. Raises BundleError."""
    length = read_length(stream, path, name, max_bytes)
    content = _read(stream, length, path)
    _expect(stream, _padding(length), path, f"filling after {name}")
    return content


def read_length(stream: BinaryIO, path: Path, name: str, max_bytes: int) -> int:
    """Read the header of the next file; return its length. Raises BundleError."""
    header = _read(stream, BLOCK, path)
    size = header[124:135]
    length = int(size, 8) if size.isdigit() and not set(size) & set(b"89") else -1
    if not 0 <= length <= max_bytes or header != _header(name, length):
        raise BundleError(
            f"{path}: not an edgekd bundle", expected=f"an archive that begins with {MANIFEST} and {SIGNATURES}"
        )
    return length


def _check_size(stream: BinaryIO, manifest: Manifest, path: Path) -> None:
    """Check the size by the manifest: the likeliest damage, found before any hashing. Raises BundleError."""
    expected = stream.tell() + sum(map(stored_bytes, manifest.files)) + len(END)
    found = os.fstat(stream.fileno()).st_size
    if found != expected:
        what = "cut short" if found < expected else "something after its end"
        raise BundleError(f"{path}: {what}", expected=f"{expected} bytes", found=f"{found} bytes", fix=_FIX)


def read_end(stream: BinaryIO, path: Path) -> None:
    """Read the end of an archive. Raises BundleError."""
    _expect(stream, END, path, "end")


def _expect(stream: BinaryIO, expected: bytes, path: Path, what: str) -> None:
    if _read(stream, len(expected), path) != expected:
        raise BundleError(f"{path}: the {what} is not as edgekd writes it", fix=_FIX)


def _read(stream: BinaryIO, count: int, path: Path) -> bytes:
    with _reading(path):
        content = stream.read(count)
    if len(content) != count:
        raise BundleError(f"{path}: cut short", fix=_FIX)
    return content


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Raises BundleError."""
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

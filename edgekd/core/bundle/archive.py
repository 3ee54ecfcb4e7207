"""The archive of a bundle, in a canonical form: every other form is rejected.

A `*.edgekd` file is an uncompressed ustar archive, which any tar can list and unpack. Reading it needs no tar parser:
every header is computed from the manifest and compared byte for byte, so that a manifest has one valid archive.
docs/reference/formats/bundle.md has the layout.

The trust file is not known here: the caller passes a `Judge` of the signatures, which is called after the hash of the
manifest is checked, and before the manifest is parsed or any file is read.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import os
import stat
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
from edgekd.core.file_view import FileView

if TYPE_CHECKING:
    from collections.abc import Callable

    Judge = Callable[[SignatureEnvelope], Any]

MANIFEST = "manifest.json"
SIGNATURES = "signatures.json"

BLOCK = 512
END = bytes(2 * BLOCK)
_FIX = "get the bundle again"


@dataclass(frozen=True)
class BundleHead:
    """The head of a bundle, in front of its files: the manifest, its bytes, and its signatures."""

    manifest: Manifest
    content: bytes
    envelope: SignatureEnvelope

    @property
    def identity(self) -> str:
        """Identity of the bundle: SHA-256 of its manifest, 64 hexadecimal digits."""
        return self.envelope.sha256


def head_of(manifest: Manifest, signatures: Iterable[Signature] = ()) -> BundleHead:
    """Return the head of a new bundle. Raises BundleError when the manifest breaks a rule."""
    content = to_json(manifest)
    digest = hashlib.sha256(content).hexdigest()
    return BundleHead(manifest, content, SignatureEnvelope(digest, signature_file.merged(signatures)))


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
    with opened_bundle(path) as bundle:
        bundle.write_signed(signatures, out)


def write(out: Path, head: BundleHead, members: Iterable[tuple[FileEntry, Iterator[bytes]]]) -> None:
    """Write a bundle of a head and the content of its files, which the caller checks. Raises SpecError."""
    with new_file(out) as stream:
        write_to(stream, head, members)


def write_to(stream: BinaryIO, head: BundleHead, members: Iterable[tuple[FileEntry, Iterator[bytes]]]) -> None:
    """Write a bundle, as `write` does, to a stream. Raises OSError."""
    stream.write(head_members(head))
    for entry, chunks in members:
        stream.write(_header(entry.path, entry.length))
        for chunk in chunks:
            stream.write(chunk)
        stream.write(_padding(entry.length))
    stream.write(END)


def head_members(head: BundleHead) -> bytes:
    """Return the first two files of a bundle, as in the archive."""
    return member(MANIFEST, head.content) + member(SIGNATURES, signature_file.to_json(head.envelope))


def member(name: str, content: bytes) -> bytes:
    """Return a file as in an archive."""
    return _header(name, len(content)) + content + _padding(len(content))


class BundleReader:
    """A bundle through one file descriptor: what was judged is what is verified and unpacked.

    The head is judged once, and kept. Files are compared with it whenever they are read, so that neither another file
    under the same path nor other bytes in the same file can take the place of what was judged.
    """

    def __init__(self, stream: BinaryIO, path: Path, judge: Judge | None = None) -> None:
        """Read the head. path: for messages. Raises BundleError, HashError, and what `judge` raises."""
        self.path = path
        self._stream = stream
        self.head = read_head_at(stream, path, judge)
        self._files_at = stream.tell()

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        return self.head.manifest

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._stream.fileno()).st_size

    def require_size(self) -> None:
        """Raise BundleError unless the file has the size that its manifest gives."""
        expected = self._files_at + sum(map(stored_bytes, self.manifest.files)) + len(END)
        if self.size != expected:
            what = "cut short" if self.size < expected else "something after its end"
            raise BundleError(
                f"{self.path}: {what}", expected=f"{expected} bytes", found=f"{self.size} bytes", fix=_FIX
            )

    def verify(self) -> None:
        """Check all files and the end, in bounded memory. Raises BundleError or HashError."""
        self._seek_files()
        for entry in self.manifest.files:
            for _ in _member(self._stream, entry, self.path):
                pass
        read_end(self._stream, self.path)

    def read(self, entry: FileEntry) -> bytes:
        """Read one file into memory. Raises BundleError or HashError."""
        self._seek_files()
        before = self.manifest.files[: self.manifest.files.index(entry)]
        self._stream.seek(sum(map(stored_bytes, before)), os.SEEK_CUR)
        return b"".join(_member(self._stream, entry, self.path))

    def view(self, entry: FileEntry) -> FileView:
        """Return the content of a file, which is not compared with its entry: `verify` does that."""
        before = self.manifest.files[: self.manifest.files.index(entry)]
        return FileView(self._stream, self._files_at + sum(map(stored_bytes, before)) + BLOCK, entry.length)

    def extract(self, folder: Path) -> None:
        """Unpack the bundle into `folder`, after all of it has been verified.

        Files are verified again while they are written, and `folder` appears complete. Raises BundleError or HashError
        for a bad bundle, and SpecError when `folder` is in use or cannot be written.
        """
        with writing(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise SpecError(f"{folder}: in use", expected="a new or empty folder", fix="choose another")
        self.verify()
        self._seek_files()
        with new_folder(folder) as temporary, writing(folder):
            (temporary / MANIFEST).write_bytes(self.head.content)
            (temporary / SIGNATURES).write_bytes(signature_file.to_json(self.head.envelope))
            for entry in self.manifest.files:
                target = temporary / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    for chunk in _member(self._stream, entry, self.path):
                        out.write(chunk)
            read_end(self._stream, self.path)

    def write_signed(self, signatures: Iterable[Signature], out: Path) -> None:
        """Verify the bundle, and write it with other signatures. Raises BundleError, HashError, SpecError."""
        self._seek_files()
        envelope = SignatureEnvelope(self.head.identity, signature_file.merged(signatures))
        members = ((entry, _member(self._stream, entry, self.path)) for entry in self.manifest.files)
        write(out, replace(self.head, envelope=envelope), members)

    def _seek_files(self) -> None:
        """Go to the first file; the size, the likeliest damage, is checked before any hashing. Raises BundleError."""
        self._stream.seek(self._files_at)
        self.require_size()


@contextmanager
def opened_bundle(path: Path, judge: Judge | None = None) -> Iterator[BundleReader]:
    """Open a bundle, and judge its head. Raises BundleError, HashError, and what `judge` raises."""
    with opened(path) as stream:
        yield BundleReader(stream, path, judge)


def read_head(path: Path, judge: Judge | None = None) -> BundleHead:
    """Read the head of a bundle, but not its files. Raises BundleError, HashError, and what `judge` raises."""
    with opened_bundle(path, judge) as bundle:
        return bundle.head


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle, but not its files. Raises BundleError or HashError."""
    return read_head(path).manifest


def read_file(path: Path, entry: FileEntry) -> bytes:
    """Read one file of a bundle into memory. Raises BundleError or HashError."""
    with opened_bundle(path) as bundle:
        return bundle.read(entry)


def verify(path: Path, judge: Judge | None = None) -> Manifest:
    """Check a bundle from its first byte to its last, in bounded memory.

    Raises BundleError or HashError, and what `judge` raises.
    """
    with opened_bundle(path, judge) as bundle:
        bundle.verify()
        return bundle.manifest


def extract(path: Path, folder: Path, judge: Judge | None = None) -> Manifest:
    """Unpack a bundle, as BundleReader.extract does. Raises what that and `judge` raise."""
    with opened_bundle(path, judge) as bundle:
        bundle.extract(folder)
        return bundle.manifest


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


def read_head_at(stream: BinaryIO, path: Path, judge: Judge | None = None) -> BundleHead:
    """Read a head at the position of a stream. The manifest is parsed last, when it is known whose it is.

    Raises BundleError, HashError, and what `judge` raises.
    """
    content = read_member(stream, path, MANIFEST, MAX_BYTES)
    signatures = read_member(stream, path, SIGNATURES, signature_file.MAX_BYTES)
    with naming(path):
        envelope = signature_file.from_json(signatures)
        if hashlib.sha256(content).hexdigest() != envelope.sha256:
            raise HashError(f"{MANIFEST} or {SIGNATURES} is damaged", fix=_FIX)
        if judge:
            judge(envelope)
        return BundleHead(from_json(content), content, envelope)


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
        stream = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 closed below
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise BundleError(f"{path}: cannot read", expected="a file", found="something else", fix="check the path")
        yield stream


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe, which may take its place after any look at the path, would wait for ever otherwise."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"{path}: cannot read", found=error.strerror or str(error), fix="check the path") from error

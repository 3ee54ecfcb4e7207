"""The archive that a bundle is: written the same way each time, and read only if it could have been written so.

A `*.edgekd` file is an uncompressed ustar archive, which any tar can list and unpack. Reading it here needs no tar
parser: every header is computed from the manifest and compared byte for byte, so a manifest has one valid archive and
nothing is left to misread. docs/formats/bundle.md has the layout.

Whose signatures are to be trusted is not known here: whoever reads a bundle hands in what judges its head, which is
asked before a byte of any file is looked at.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgekd.core.atomic_files import new_file, new_folder, writing
from edgekd.core.bundle import signatures as sealing
from edgekd.core.bundle.manifest import MAX_BYTES, FileEntry, Manifest, from_json, to_json
from edgekd.core.bundle.signatures import Seal, Signature
from edgekd.core.canonical import CHUNK, file_sha256
from edgekd.core.errors import BundleError, HashError, SpecError, naming

if TYPE_CHECKING:
    from collections.abc import Callable

    Judge = Callable[["Head"], Any]

MANIFEST = "manifest.json"
SIGNATURES = "signatures.json"

BLOCK = 512
END = bytes(2 * BLOCK)
_DAMAGED = "get the bundle again"


@dataclass(frozen=True)
class Head:
    """What comes before a bundle's files: the manifest, its bytes, and who signed it."""

    manifest: Manifest
    content: bytes
    seal: Seal

    @property
    def identity(self) -> str:
        """What names the bundle: SHA-256 of its manifest, 64 hexadecimal digits."""
        return self.seal.sha256


def head_of(manifest: Manifest, signatures: Iterable[Signature] = ()) -> Head:
    """The head of a bundle that is to be written. Raises BundleError when the manifest breaks a rule."""
    content = to_json(manifest)
    return Head(manifest, content, Seal(hashlib.sha256(content).hexdigest(), sealing.merged(signatures)))


def file_entry(path: str, source: Path, role: str) -> FileEntry:
    """How the manifest lists the file `source`, stored as `path`. Raises BundleError when it cannot be read."""
    with _reading(source):
        return FileEntry(path, source.stat().st_size, file_sha256(source), role)


def stored_bytes(entry: FileEntry) -> int:
    """How many bytes of an archive a file takes."""
    return BLOCK + entry.length + -entry.length % BLOCK


def pack(manifest: Manifest, files: Mapping[str, Path], out: Path) -> None:
    """Write a bundle without signatures; the same manifest and files give the same bytes.

    `files`: where each path's content is. Raises BundleError when the manifest breaks a rule or does not list these
    files, HashError when a file is not as the manifest says, SpecError when `out` cannot be written. `out` is then as
    it was.
    """
    listed = [entry.path for entry in manifest.files]
    if set(listed) != set(files):
        raise BundleError(f"{out}: the manifest lists other files", expected=str(listed), found=str(sorted(files)))
    write(out, head_of(manifest), ((entry, _source(entry, files[entry.path])) for entry in manifest.files))


def seal(path: Path, signatures: Iterable[Signature], out: Path) -> None:
    """Write a bundle again, verified on the way, with these signatures in place of those it has.

    `out` may be `path`. Raises BundleError or HashError for a bad bundle, SpecError when `out` cannot be written.
    """
    with opened(path) as stream:
        head = _read_head(stream, path)
        _check_size(stream, head.manifest, path)
        sealed = Head(head.manifest, head.content, Seal(head.identity, sealing.merged(signatures)))
        write(out, sealed, ((entry, _member(stream, entry, path)) for entry in head.manifest.files))


def write(out: Path, head: Head, members: Iterable[tuple[FileEntry, Iterator[bytes]]]) -> None:
    """Write a bundle of a head and the content of its files, which whoever makes it has to check. Raises SpecError."""
    with new_file(out) as stream:
        stream.write(head_members(head))
        for entry, chunks in members:
            stream.write(_header(entry.path, entry.length))
            for chunk in chunks:
                stream.write(chunk)
            stream.write(_padding(entry.length))
        stream.write(END)


def head_members(head: Head) -> bytes:
    """The first two files of a bundle, as they stand in the archive."""
    return member(MANIFEST, head.content) + member(SIGNATURES, sealing.to_json(head.seal))


def member(name: str, content: bytes) -> bytes:
    """One file as it stands in an archive."""
    return _header(name, len(content)) + content + _padding(len(content))


def read_head(path: Path, judge: Judge | None = None) -> Head:
    """The head of a bundle, whose files are not looked at. Raises BundleError, HashError, and what `judge` raises."""
    with opened(path) as stream:
        return head_in(stream, path, judge)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle, whose files are not looked at. Raises BundleError or HashError."""
    return read_head(path).manifest


def read_file(path: Path, entry: FileEntry) -> bytes:
    """The content of one file of a bundle, held in memory as a whole. Raises BundleError or HashError."""
    with opened(path) as stream:
        head = _read_head(stream, path)
        _check_size(stream, head.manifest, path)
        before = head.manifest.files[: head.manifest.files.index(entry)]
        stream.seek(sum(map(stored_bytes, before)), os.SEEK_CUR)
        return b"".join(_member(stream, entry, path))


def verify(path: Path, judge: Judge | None = None) -> Manifest:
    """Check a bundle from its first byte to its last, in bounded memory.

    Raises BundleError or HashError, and what `judge` raises where it does not take the head.
    """
    with opened(path) as stream:
        return _verified(stream, path, judge).manifest


def extract(path: Path, folder: Path, judge: Judge | None = None) -> Manifest:
    """Unpack a bundle into `folder`. Nothing is written before all of it has been verified.

    What is written is compared again, and `folder` appears only when all is there: a file that changes in between does
    no harm. Raises BundleError or HashError for a bad bundle, what `judge` raises, and SpecError when `folder` is in
    use or cannot be written.
    """
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SpecError(f"{folder}: in use", expected="a new or empty folder", fix="choose another")
    with opened(path) as stream:
        head = _verified(stream, path, judge)
        stream.seek(0)
        with new_folder(folder) as temporary, writing(folder):
            if _read_head(stream, path) != head:
                raise BundleError(f"{path}: changed while it was read", fix=_DAMAGED)
            (temporary / MANIFEST).write_bytes(head.content)
            (temporary / SIGNATURES).write_bytes(sealing.to_json(head.seal))
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
    """The head that an open file goes on with. Raises BundleError, HashError, and what `judge` raises."""
    head = _read_head(stream, path)
    if judge:
        with naming(path):
            judge(head)
    return head


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
    return bytes(-length % BLOCK)


def _source(entry: FileEntry, source: Path) -> Iterator[bytes]:
    """The content of a file to be packed. Raises HashError at its end when it is not what the manifest says."""
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
    """The content of the next file of a bundle. Raises HashError at its end when it is not what the manifest says."""
    _expect(stream, _header(entry.path, entry.length), path, f"header of {entry.path}")
    counts = (min(CHUNK, entry.length - at) for at in range(0, entry.length, CHUNK))
    yield from compared(f"{path}: {entry.path} is damaged", entry, (_read(stream, count, path) for count in counts))
    _expect(stream, _padding(entry.length), path, f"filling after {entry.path}")


def compared(what: str, entry: FileEntry, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks. Raises HashError at their end where they were not the file that the manifest tells of."""
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
    """The manifest, checked against the digest that follows it, and the signatures."""
    content = read_member(stream, path, MANIFEST, MAX_BYTES)
    told = read_member(stream, path, SIGNATURES, sealing.MAX_BYTES)
    with naming(path):
        seal = sealing.from_json(told)
        if hashlib.sha256(content).hexdigest() != seal.sha256:
            raise HashError(f"{MANIFEST} or {SIGNATURES} is damaged", fix=_DAMAGED)
        return Head(from_json(content), content, seal)


def read_member(stream: BinaryIO, path: Path, name: str, most: int) -> bytes:
    """The content of the next file, whose length only its own header says. Raises BundleError."""
    length = read_length(stream, path, name, most)
    content = _read(stream, length, path)
    _expect(stream, _padding(length), path, f"filling after {name}")
    return content


def read_length(stream: BinaryIO, path: Path, name: str, most: int) -> int:
    """How long the next file is, of which only its header is read. Raises BundleError."""
    header = _read(stream, BLOCK, path)
    size = header[124:135]
    length = int(size, 8) if size.isdigit() and not set(size) & set(b"89") else -1
    if not 0 <= length <= most or header != _header(name, length):
        raise BundleError(
            f"{path}: not an edgekd bundle", expected=f"an archive that begins with {MANIFEST} and {SIGNATURES}"
        )
    return length


def _check_size(stream: BinaryIO, manifest: Manifest, path: Path) -> None:
    """Whether what follows the manifest is as long as it says: the likeliest damage, found before any hashing."""
    expected = stream.tell() + sum(map(stored_bytes, manifest.files)) + len(END)
    found = os.fstat(stream.fileno()).st_size
    if found != expected:
        what = "cut short" if found < expected else "something after its end"
        raise BundleError(f"{path}: {what}", expected=f"{expected} bytes", found=f"{found} bytes", fix=_DAMAGED)


def read_end(stream: BinaryIO, path: Path) -> None:
    """The end of an archive, behind which nothing may follow. Raises BundleError."""
    _expect(stream, END, path, "end")


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
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to be read. Raises BundleError where there is none."""
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

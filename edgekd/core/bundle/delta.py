"""Deltas: a bundle as its differences to an older one. docs/formats/delta.md has the layout.

A delta describes every file of the new bundle, piece by piece, by equal or similar bytes in a file of the old one. The
network is split into its streams first: entropy coding would hide the similarity of two networks. The result of a delta
is the bundle of the head in it, or nothing: the head is judged first, and every file is compared with the manifest.

Shared with the device: Python 3.8, standard library, and NumPy for networks only.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgekd.core.bundle.archive import (
    BLOCK,
    MANIFEST,
    Head,
    compared,
    head_in,
    opened,
    read_end,
    read_length,
    read_member,
    write,
)
from edgekd.core.bundle.manifest import FileEntry, Manifest, from_json
from edgekd.core.canonical import CHUNK, canonical_json, is_sha256, short_int
from edgekd.core.errors import BundleError, HashError, naming

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import Judge

FORMAT = 1
DOCUMENT, DATA = "delta.json", "delta.bin"
MAX_JSON = 1 << 22
MAX_DATA = 1 << 31
MAX_PIECE = 1 << 18
"""Bytes of a piece that is not a plain copy, which is held in memory."""
WINDOW = 1 << 15
"""Maximum bytes of the old bundle that a similar piece refers to: the window of DEFLATE."""
MAX_GROWTH = 8
"""Maximum total length of the parts of a network, relative to its file."""
HEADER_ROOM = 1 << 22
WHOLE = ""
"""Name of the only part of a file that is not split."""
COPY, XOR, NEAR, NEW = KINDS = "copy", "xor", "near", "new"
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    COPY: ("length", "source", "at"),
    XOR: ("length", "source", "at", "stored"),
    NEAR: ("length", "source", "at", "window", "stored"),
    NEW: ("length", "stored"),
}
"""By kind of a piece, its numbers in the order of the delta."""
_FIX = "get the delta again, or the whole bundle"


@dataclass(frozen=True)
class Piece:
    """Some bytes of a part.

    kind: COPY, bytes at offset `at` of a source; XOR, the same with compressed differences; NEAR, compressed with
    `window` bytes of the source as its dictionary; NEW, compressed. stored: its bytes in the delta's data.
    """

    kind: str
    length: int
    source: int = 0
    at: int = 0
    window: int = 0
    stored: int = 0

    def row(self) -> list[Any]:
        """Return the piece as in the delta."""
        return [self.kind, *(getattr(self, name) for name in _NUMBERS[self.kind])]


@dataclass(frozen=True)
class Part:
    """A part of a file, by its name, piece by piece."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        """Its bytes."""
        return sum(piece.length for piece in self.pieces)


@dataclass(frozen=True)
class Delta:
    """Content of a delta.

    old: identity of the source bundle; sources: path and part in that one; files: the parts of each file of the new
    bundle, in the manifest's order.
    """

    old: str
    sources: tuple[tuple[str, str], ...]
    files: tuple[tuple[Part, ...], ...]


class OldBundle:
    """The source bundle of a delta, unpacked in a folder, without further verification."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = (folder / MANIFEST).read_bytes()
        self.identity = hashlib.sha256(content).hexdigest()
        self.manifest: Manifest = from_json(content)
        self._parts: dict[str, dict[str, bytes]] = {}

    def part(self, path: str, name: str) -> bytes:
        """Return a part of the network, which stays in memory. Raises ValueError where there is none of that name."""
        if path not in self._parts:
            from edgekd.core.formats import packed_graph

            self._require(path)
            self._parts[path] = packed_graph.parts((self._folder / path).read_bytes())
        if name not in self._parts[path]:
            raise ValueError(f"{path} has no part {name}")
        return self._parts[path][name]

    def read(self, path: str, name: str, at: int, count: int) -> bytes:
        """Read bytes of a part, or of a file. Raises ValueError where it is too short, OSError."""
        if name:
            content = self.part(path, name)[at : at + count]
        else:
            self._require(path)
            with (self._folder / path).open("rb") as stream:
                stream.seek(at)
                content = stream.read(count)
        if len(content) != count:
            raise ValueError(f"{path} {name} is shorter than {at + count} bytes")
        return content

    def _require(self, path: str) -> None:
        if all(entry.path != path for entry in self.manifest.files):
            raise ValueError(f"the old bundle has no file {path}")


def to_json(delta: Delta) -> bytes:
    """Return the canonical JSON of a delta."""
    files = [[[part.name, [piece.row() for piece in part.pieces]] for part in parts] for parts in delta.files]
    sources = [list(each) for each in delta.sources]
    return canonical_json({"format": FORMAT, "old": delta.old, "sources": sources, "files": files}) + b"\n"


def is_delta(path: Path) -> bool:
    """Return whether a file is a delta, by its first bytes. Raises BundleError where it cannot be read."""
    with opened(path) as stream:
        return stream.read(100).rstrip(b"\0") == DOCUMENT.encode("ascii")


def read_delta_head(path: Path, judge: Judge | None = None) -> Head:
    """Read the head of a delta's target. Raises BundleError, HashError, and what `judge` raises."""
    with opened(path) as stream:
        read_member(stream, path, DOCUMENT, MAX_JSON)
        return head_in(stream, path, judge)


def read_old(path: Path) -> str:
    """Read the identity of a delta's source bundle. Raises BundleError, HashError."""
    with opened(path) as stream:
        return _read(stream, path, None)[1].old


def rebuild(path: Path, old: OldBundle, out: Path, judge: Judge | None = None) -> Head:
    """Write the target of a delta, by its source bundle.

    Raises BundleError for a bad delta, or one from another bundle; what `judge` raises for the head; HashError where
    the result differs from the manifest; SpecError where `out` cannot be written. `out` is then unchanged.
    """
    with opened(path) as stream:
        head, delta = _read(stream, path, judge)
        if delta.old != old.identity:
            raise BundleError(
                f"{path}: from another bundle", expected=delta.old, found=old.identity, fix="get the whole bundle"
            )
        write(out, head, _files(path, head, delta, old, _Data(stream, path)))
    return head


def _read(stream: BinaryIO, path: Path, judge: Judge | None) -> tuple[Head, Delta]:
    """Read the head, which is judged first, and the content of a delta."""
    document = read_member(stream, path, DOCUMENT, MAX_JSON)
    head = head_in(stream, path, judge)
    with naming(path):
        return head, _from_json(document, head.manifest)


def _files(
    path: Path, head: Head, delta: Delta, old: OldBundle, data: _Data
) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
    for entry, parts in zip(head.manifest.files, delta.files):  # noqa: B905 strict= is Python 3.10
        yield entry, _file(path, entry, parts, delta, old, data)
    data.finish()


class _Data:
    """The data of a delta, read in order."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._left = read_length(stream, path, DATA, MAX_DATA)
        self._filling = -self._left % BLOCK

    def inflated(self, stored: int, length: int, dictionary: bytes = b"") -> bytes:
        """Decompress the next piece. Raises ValueError where it has another length."""
        if stored > self._left:
            raise ValueError("the data end early")
        self._left -= stored
        inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=dictionary) if dictionary else zlib.decompressobj(-15)
        try:
            content = inflate.decompress(self._stream.read(stored), length)
            whole = len(content) == length and not inflate.decompress(inflate.unconsumed_tail, 1)
        except zlib.error as error:
            raise ValueError(f"a piece is damaged: {error}") from error
        if not whole or not inflate.eof or inflate.unused_data:
            raise ValueError("a piece has another length than stated")
        return content

    def finish(self) -> None:
        """Raise BundleError where data is left."""
        if self._left or self._stream.read(self._filling).strip(b"\0"):
            raise BundleError(f"{self._path}: data is left over", fix=_FIX)
        read_end(self._stream, self._path)


def _file(
    path: Path, entry: FileEntry, parts: tuple[Part, ...], delta: Delta, old: OldBundle, data: _Data
) -> Iterator[bytes]:
    """Yield the content of a file of the new bundle. Raises HashError at its end when it differs from its entry."""
    content = _content(entry, parts, delta, old, data)
    try:
        yield from compared(f"{path}: {entry.path} was rebuilt as another file", entry, content)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path}: {entry.path} cannot be rebuilt", found=str(error), fix=_FIX) from error
    except HashError as error:
        raise HashError(error.what, expected=error.expected, found=error.found, fix="get the whole bundle") from error


def _content(entry: FileEntry, parts: tuple[Part, ...], delta: Delta, old: OldBundle, data: _Data) -> Iterator[bytes]:
    if parts[0].name == WHOLE:
        for piece in parts[0].pieces:
            yield from _bytes(piece, delta, old, data)
        return
    from edgekd.core.formats import packed_graph

    content = {}
    for part in parts:
        content[part.name] = b"".join(chunk for piece in part.pieces for chunk in _bytes(piece, delta, old, data))
    yield packed_graph.assemble(content)


def _bytes(piece: Piece, delta: Delta, old: OldBundle, data: _Data) -> Iterator[bytes]:
    """Yield the bytes of a piece; a copy in chunks. Raises ValueError, OSError."""
    source = delta.sources[piece.source] if piece.kind != NEW else ("", "")
    if piece.kind == COPY:
        for at in range(piece.at, piece.at + piece.length, CHUNK):
            yield old.read(*source, at, min(CHUNK, piece.at + piece.length - at))
    elif piece.kind == XOR:
        source_bytes = old.read(*source, piece.at, piece.length)
        yield xor(source_bytes, data.inflated(piece.stored, piece.length))
    elif piece.kind == NEAR:
        dictionary = old.read(*source, piece.at, piece.window)
        yield data.inflated(piece.stored, piece.length, dictionary)
    else:
        yield data.inflated(piece.stored, piece.length)


def xor(one: bytes, other: bytes) -> bytes:
    """Return the exclusive or of bytes of the same length."""
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


# --- Rules.


def _from_json(content: bytes, manifest: Manifest) -> Delta:
    """Parse a delta, and check its lengths by the manifest. Raises BundleError."""
    try:
        document = json.loads(content.decode("ascii"), parse_int=short_int)
        if sorted(document) != ["files", "format", "old", "sources"]:
            raise ValueError("other fields than files, format, old, sources")
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}: update edgekd")
        sources = tuple((path, name) for path, name in document["sources"])
        delta = Delta(document["old"], sources, tuple(tuple(map(_part, parts)) for parts in document["files"]))
        if to_json(delta) != content:
            raise ValueError("not as edgekd writes it")
    except (TypeError, KeyError, IndexError, ValueError, RecursionError) as error:
        raise BundleError("the content of the delta is damaged", found=str(error) or repr(error), fix=_FIX) from error
    if not is_sha256(delta.old) or any(type(each) is not str for source in sources for each in source):
        raise BundleError("the content of the delta is damaged", found="an invalid name", fix=_FIX)
    if len(delta.files) != len(manifest.files):
        raise BundleError("the delta is not of this bundle", expected=f"{len(manifest.files)} files", fix=_FIX)
    for entry, parts in zip(manifest.files, delta.files):  # noqa: B905 strict= is Python 3.10
        _check_file(entry, parts, len(sources))
    return delta


def _part(row: Any) -> Part:
    name, rows = row
    if type(name) is not str:
        raise ValueError(f"{name!r} is no name of a part")
    return Part(name, tuple(map(_piece, rows)))


def _piece(row: Any) -> Piece:
    kind, *numbers = row
    valid = kind in KINDS and len(numbers) == len(_NUMBERS[kind])
    if not valid or any(type(each) is not int or each < 0 for each in numbers):
        raise ValueError(f"{str(row)[:60]} is no piece")
    return Piece(kind, **dict(zip(_NUMBERS[kind], numbers)))  # noqa: B905


def _check_file(entry: FileEntry, parts: tuple[Part, ...], sources: int) -> None:
    """Raise BundleError for pieces that are too large for memory, or do not match the file."""
    names = [part.name for part in parts]
    total = sum(part.length for part in parts)
    split = names != [WHOLE]
    limit = entry.length * MAX_GROWTH + HEADER_ROOM if split else entry.length
    if not names or len(set(names)) != len(names) or (split and WHOLE in names):
        raise BundleError(f"{entry.path}: the delta has no parts of it", fix=_FIX)
    if total > limit or (not split and total != entry.length):
        raise BundleError(
            f"{entry.path}: the delta is not of this file", expected=f"{limit} bytes", found=f"{total} bytes", fix=_FIX
        )
    for piece in (piece for part in parts for piece in part.pieces):
        held = piece.length if piece.kind != COPY else 1
        if not piece.length > 0 or held > MAX_PIECE or piece.window > WINDOW or piece.stored > 2 * MAX_PIECE:
            raise BundleError(f"{entry.path}: a piece of the delta is too large", found=str(piece.row()), fix=_FIX)
        if piece.kind != NEW and piece.source >= sources:
            raise BundleError(f"{entry.path}: a piece of the delta has an unknown source", fix=_FIX)

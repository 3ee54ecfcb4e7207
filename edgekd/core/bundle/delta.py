"""Deltas: a bundle as its differences to an older one. docs/reference/formats/delta.md has the layout.

A delta begins with the head of the new bundle, which is judged first. Records follow, which give every file of it piece
by piece, by equal or similar bytes in a file of the old one. The network is split into its streams: entropy coding
would hide the similarity of two networks. Each record is checked when its turn comes, in memory and time that are
bounded by the sizes of both bundles. The result is the bundle of the head, or nothing.

Shared with the device: Python 3.8, standard library, and NumPy for networks only.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgekd.core.atomic_files import new_file, unnamed_file, writing
from edgekd.core.bundle.archive import (
    BLOCK,
    END,
    MANIFEST,
    BundleHead,
    compared,
    head_members,
    opened,
    read_end,
    read_head_at,
    read_length,
    stored_bytes,
    write_to,
)
from edgekd.core.bundle.manifest import FileEntry, Manifest, from_json
from edgekd.core.canonical import CHUNK
from edgekd.core.errors import BundleError, HashError
from edgekd.core.file_view import FileView

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import Judge

FORMAT = 2
DOCUMENT, DATA = "delta.json", "delta.bin"
MAX_DATA = 1 << 31
MAX_PIECE = 1 << 18
"""Maximum bytes of a piece that is not a plain copy, which is held in memory."""
MAX_STORED = 2 * MAX_PIECE
"""Maximum bytes of a piece in the delta."""
WINDOW = 1 << 15
"""Maximum bytes of the old bundle that a similar piece refers to: the window of DEFLATE."""
MAX_GROWTH = 4
"""Maximum total length of the parts of a network, relative to its file."""
EXTRA_GROWTH = 1 << 20
"""Maximum bytes of the parts of a network in addition: a small one has a long header, relative to its file."""
MAX_GRAPH_TEXT = 1 << 19
"""Maximum bytes of a network's header and skeleton: zlib takes 2.5 s for 1 MB of the worst; 160 KB are usual."""
MAX_EXPANSION = 4
"""Maximum bytes of the new bundle, relative to those of the old one and of the delta."""
BYTES_PER_RECORD = 1024
"""Minimum bytes that records give on average, FREE_RECORDS aside: those of many tiny pieces would take minutes."""
FREE_RECORDS = 4096
WHOLE = 0
"""Number of the only part of a file that is not split; the parts of a network count from 1, the header's."""
PART, COPY, XOR, NEAR, NEW = range(5)
"""Kinds of records: a part begins; bytes of a source; differences to it; similar to it; new."""
RECORD = struct.Struct("<BBHIII")

OPENING_BYTES = 86
"""Bytes of the first member."""
_OPENING = re.compile(rb'\{"format":%d,"old":"([0-9a-f]{64})"\}\n' % FORMAT)
_FIX = "get the delta again, or the whole bundle"


@dataclass(frozen=True)
class DeltaRecord:
    """A record of a delta, in front of its data.

    kind: PART, the part with the number `part` begins, and has `length` bytes; COPY, bytes at offset `at` of a source;
    XOR, the same with compressed differences; NEAR, compressed with WINDOW bytes of the source, or as many as there
    are, as the dictionary; NEW, compressed. part, file: number of a part and of its file in the old bundle's manifest.
    stored: bytes of its data.
    """

    kind: int
    length: int
    part: int = 0
    file: int = 0
    at: int = 0
    stored: int = 0

    def packed(self) -> bytes:
        """Return the record as in the delta."""
        return RECORD.pack(self.kind, self.part, self.file, self.length, self.at, self.stored)


class OldBundle:
    """The source bundle of a delta, unpacked in a folder, without further verification.

    scratch: folder for temporary files without a name, such as the parts of a network; None for the system's.
    """

    def __init__(self, folder: Path, scratch: Path | None = None) -> None:
        """Read the manifest. Raises OSError, BundleError."""
        content = (folder / MANIFEST).read_bytes()
        self.identity = hashlib.sha256(content).hexdigest()
        self.manifest: Manifest = from_json(content)
        self.scratch = scratch or Path(tempfile.gettempdir())
        self._folder = folder
        self._opened = ExitStack()
        self._places: dict[tuple[int, int], tuple[int, int, int]] = {}  # handle, offset and length by file and part

    def __enter__(self) -> OldBundle:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, file: int, part: int, at: int, count: int, *, exact: bool = True) -> bytes:
        """Read bytes of a part of a file, both by their numbers.

        exact: whether fewer bytes are an error. Raises ValueError where there are none, SpecError.
        """
        if (file, part) not in self._places:
            self._open(file, split=part != WHOLE)
        if (file, part) not in self._places:
            raise ValueError(f"file {file} of the old bundle has no part {part}")
        handle, begin, length = self._places[file, part]
        content = os.pread(handle, max(min(count, length - at), 0), begin + at)
        if not content or (exact and len(content) != count):
            raise ValueError(f"part {part} of file {file} of the old bundle is shorter than {at + count} bytes")
        return content

    def _open(self, file: int, *, split: bool) -> None:
        if file >= len(self.manifest.files):
            raise ValueError(f"the old bundle has no file {file}")
        path = self._folder / self.manifest.files[file].path
        try:
            stream = self._opened.enter_context(path.open("rb"))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        size = os.fstat(stream.fileno()).st_size
        if split:
            self._expand(file, FileView(stream, 0, size), size * MAX_GROWTH + EXTRA_GROWTH)
        else:
            self._places[file, WHOLE] = (stream.fileno(), 0, size)

    def _expand(self, file: int, content: FileView, limit: int) -> None:
        """Write the parts of a network to a temporary file. Raises ValueError where they are larger than a limit."""
        from edgekd.core.formats import packed_graph

        with writing(self.scratch):
            spool = self._opened.enter_context(unnamed_file(self.scratch))
            for part, (_, chunks) in enumerate(packed_graph.expanded_parts(content), 1):
                begin = spool.tell()
                for chunk in chunks:
                    spool.write(chunk)
                    if spool.tell() > limit:
                        raise ValueError(f"file {file} of the old bundle has parts of more than {limit} bytes")
                self._places[file, part] = (spool.fileno(), begin, spool.tell() - begin)
            spool.flush()


def is_delta(path: Path) -> bool:
    """Return whether a file is a delta, by its first bytes. Raises BundleError where it cannot be read."""
    with opened(path) as stream:
        return begins_delta(stream)


def begins_delta(stream: BinaryIO) -> bool:
    """Return whether a stream, which stays at its beginning, has a delta."""
    name = stream.read(100)
    stream.seek(0)
    return name.rstrip(b"\0") == DOCUMENT.encode("ascii")


def opening(old: str) -> bytes:
    """Return the content of a delta's first member. old: identity of the source bundle."""
    return b'{"format":%d,"old":"%s"}\n' % (FORMAT, old.encode("ascii"))


class DeltaReader:
    """A delta through one file descriptor: what was judged is what is applied.

    old: identity of its source bundle; head: of the bundle that it leads to.
    """

    def __init__(self, stream: BinaryIO, path: Path, judge: Judge | None = None) -> None:
        """Read the head. path: for messages. Raises BundleError, HashError, and what `judge` raises."""
        self.path = path
        self._stream = stream
        self.old = _read_old(stream, path)
        self.head = read_head_at(stream, path, judge)
        self._data_at = stream.tell()

    @property
    def new_bytes(self) -> int:
        """Bytes of the bundle that it leads to."""
        return len(head_members(self.head)) + sum(map(stored_bytes, self.head.manifest.files)) + len(END)

    def rebuild(self, old: OldBundle, out: BinaryIO) -> None:
        """Write the new bundle to a stream.

        Raises BundleError for a bad delta, or one from another bundle; HashError where the result differs from the
        manifest; OSError and SpecError where something cannot be written.
        """
        if self.old != old.identity:
            raise BundleError(
                f"{self.path}: from another bundle", expected=self.old, found=old.identity, fix="get the whole bundle"
            )
        self._require_small(old)
        self._stream.seek(self._data_at)
        records = _Records(self._stream, self.path, old)
        write_to(out, self.head, self._files(records, old))

    def _require_small(self, old: OldBundle) -> None:
        """Raise BundleError for a delta that gives much more than it and the old bundle have."""
        given = sum(entry.length for entry in old.manifest.files) + os.fstat(self._stream.fileno()).st_size
        new = sum(entry.length for entry in self.head.manifest.files)
        if new > MAX_EXPANSION * given:
            expected = f"at most {MAX_EXPANSION * given} bytes, {MAX_EXPANSION} times the old bundle and the delta"
            raise BundleError(
                f"{self.path}: leads to a bundle that is much too large",
                expected=expected,
                found=f"{new} bytes",
                fix="get the whole bundle",
            )

    def _files(self, records: _Records, old: OldBundle) -> Iterator[tuple[FileEntry, Iterator[bytes]]]:
        for entry in self.head.manifest.files:
            yield entry, self._file(entry, records, old)
        records.finish()

    def _file(self, entry: FileEntry, records: _Records, old: OldBundle) -> Iterator[bytes]:
        """Yield the content of a file. Raises HashError at its end when it differs from its entry."""
        content = _content(entry, records, old)
        try:
            yield from compared(f"{self.path}: {entry.path} was rebuilt as another file", entry, content)
        except ValueError as error:
            what = f"{self.path}: {entry.path} cannot be rebuilt"
            raise BundleError(what, found=str(error), fix=_FIX) from error
        except HashError as error:
            fix = "get the whole bundle"
            raise HashError(error.what, expected=error.expected, found=error.found, fix=fix) from error


@contextmanager
def opened_delta(path: Path, judge: Judge | None = None) -> Iterator[DeltaReader]:
    """Open a delta, and judge the head of its target. Raises BundleError, HashError, and what `judge` raises."""
    with opened(path) as stream:
        yield DeltaReader(stream, path, judge)


def read_delta_head(path: Path, judge: Judge | None = None) -> BundleHead:
    """Read the head of a delta's target. Raises BundleError, HashError, and what `judge` raises."""
    with opened_delta(path, judge) as delta:
        return delta.head


def rebuild(path: Path, old: OldBundle, out: Path, judge: Judge | None = None) -> BundleHead:
    """Write the target of a delta to a file, which is unchanged after an error.

    Raises what DeltaReader.rebuild and `judge` raise.
    """
    with opened_delta(path, judge) as delta:
        with new_file(out) as stream:
            delta.rebuild(old, stream)
        return delta.head


def _read_old(stream: BinaryIO, path: Path) -> str:
    """Read the first member of a delta, which has one form, so that nothing is parsed. Raises BundleError."""
    if read_length(stream, path, DOCUMENT, MAX_DATA) == OPENING_BYTES:
        content = stream.read(OPENING_BYTES + -OPENING_BYTES % BLOCK)
        match = _OPENING.match(content)
        if match and not content[OPENING_BYTES:].strip(b"\0"):
            return match[1].decode("ascii")
    raise BundleError(
        f"{path}: a delta of another format",
        expected=f"format {FORMAT}",
        fix="make it again with the `edgekd delta` of this version, or get the whole bundle",
    )


class _Records:
    """The records of a delta and their data, in order."""

    def __init__(self, stream: BinaryIO, path: Path, old: OldBundle) -> None:
        self._stream, self._path, self._old = stream, path, old
        self._left = read_length(stream, path, DATA, MAX_DATA)
        self._filling = -self._left % BLOCK
        self._count = self._given = 0

    def begin(self) -> DeltaRecord:
        """Return the record of the part that begins. Raises ValueError."""
        record = self._next()
        if record.kind != PART or record.file or record.at or record.stored:
            raise ValueError("expected the beginning of a part")
        return record

    def pieces(self, length: int) -> Iterator[bytes]:
        """Yield the bytes of a part, by the records that follow. Raises ValueError, SpecError."""
        while length:
            record = self._next()
            if record.kind == PART or not 0 < record.length <= length:
                raise ValueError("the pieces of a part have another length than it")
            length -= record.length
            self._given += record.length
            yield from self._bytes(record)

    def finish(self) -> None:
        """Raise BundleError where data is left."""
        filling = self._stream.read(self._filling)
        if self._left or len(filling) != self._filling or filling.strip(b"\0"):
            raise BundleError(f"{self._path}: data is left over", fix=_FIX)
        read_end(self._stream, self._path)

    def _next(self) -> DeltaRecord:
        kind, part, file, length, at, stored = RECORD.unpack(self._take(RECORD.size))
        self._count += 1
        if self._count > FREE_RECORDS + self._given // BYTES_PER_RECORD:
            raise ValueError(f"more than one record for {BYTES_PER_RECORD} bytes")
        return DeltaRecord(kind, length, part, file, at, stored)

    def _bytes(self, record: DeltaRecord) -> Iterator[bytes]:
        if record.kind == COPY and not record.stored:
            for offset in range(0, record.length, CHUNK):
                yield self._source(record, min(CHUNK, record.length - offset), offset)
        elif record.length > MAX_PIECE or record.stored > MAX_STORED:
            raise ValueError("a piece is too large")
        elif record.kind == XOR:
            yield xor(self._source(record, record.length), self._inflated(record))
        elif record.kind == NEAR:
            yield self._inflated(record, self._source(record, WINDOW, exact=False))
        elif record.kind == NEW and not (record.part or record.file or record.at):
            yield self._inflated(record)
        else:
            raise ValueError(f"a record of an unknown kind, {record.kind}")

    def _source(self, record: DeltaRecord, count: int, offset: int = 0, *, exact: bool = True) -> bytes:
        return self._old.read(record.file, record.part, record.at + offset, count, exact=exact)

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError("the data end early")
        self._left -= count
        content = self._stream.read(count)
        if len(content) != count:
            raise ValueError("the file is cut short")
        return content

    def _inflated(self, record: DeltaRecord, dictionary: bytes = b"") -> bytes:
        """Decompress the data of a record. Raises ValueError where it has another length."""
        inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=dictionary)
        try:
            content = inflate.decompress(self._take(record.stored), record.length)
            whole = len(content) == record.length and not inflate.decompress(inflate.unconsumed_tail, 1)
        except zlib.error as error:
            raise ValueError(f"a piece is damaged: {error}") from error
        if not whole or not inflate.eof or inflate.unused_data:
            raise ValueError("a piece has another length than stated")
        return content


def _content(entry: FileEntry, records: _Records, old: OldBundle) -> Iterator[bytes]:
    """Yield the content of a file. Raises ValueError, SpecError."""
    first = records.begin()
    if first.part == WHOLE:
        if first.length != entry.length:
            raise ValueError(f"expected {entry.length} bytes, found {first.length}")
        yield from records.pieces(first.length)
        return
    from edgekd.core.formats.packed_graph import PartsPacker
    from edgekd.core.formats.packed_layout import SKELETON

    limit = entry.length * MAX_GROWTH + EXTRA_GROWTH
    with writing(old.scratch), unnamed_file(old.scratch) as spool:
        packer = PartsPacker(_header_part(first, records), spool)
        if first.length + sum(packer.lengths.values()) > limit:
            raise ValueError(f"expected parts of at most {limit} bytes")
        if first.length + packer.lengths[SKELETON] > MAX_GRAPH_TEXT:
            raise ValueError(f"expected header and skeleton of at most {MAX_GRAPH_TEXT} bytes")
        for number, (name, length) in enumerate(packer.lengths.items(), first.part + 1):
            begun = records.begin()
            if (begun.part, begun.length) != (number, length):
                raise ValueError(f"expected part {number} of {length} bytes")
            packer.add(name, records.pieces(length))
            if spool.tell() > entry.length:
                raise ValueError(f"longer than {entry.length} bytes")
        yield from packer.content()


def _header_part(first: DeltaRecord, records: _Records) -> bytes:
    if first.part != WHOLE + 1 or first.length > MAX_GRAPH_TEXT:
        raise ValueError("expected the header of a network")
    return b"".join(records.pieces(first.length))


def xor(one: bytes, other: bytes) -> bytes:
    """Return the exclusive or of bytes of the same length."""
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")

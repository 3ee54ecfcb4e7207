"""`edgekd delta`: what a camera needs of a new bundle beyond the one it has.

Files are cut into chunks where their content says so, so that what was put in or left out moves no other cut. A chunk
that the old bundle has anywhere is a copy. Between copies, the old bytes that most likely became the new ones are taken
as what to differ from, bit for bit, or as a dictionary, whichever is shorter.
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekd.core.atomic_files import copy_file
from edgekd.core.bundle.archive import END, Head, extract, head_members, member, opened_bundle
from edgekd.core.bundle.delta import (
    COPY,
    DATA,
    DOCUMENT,
    EXTRA_GROWTH,
    MAX_GRAPH_TEXT,
    MAX_GROWTH,
    NEAR,
    NEW,
    PART,
    RECORD,
    WHOLE,
    WINDOW,
    XOR,
    OldBundle,
    Record,
    opening,
    rebuild,
    xor,
)
from edgekd.core.bundle.manifest import FileEntry
from edgekd.core.canonical import file_sha256
from edgekd.core.documents import Result
from edgekd.core.errors import BundleError, SpecError
from edgekd.core.formats import packed_graph

STEP = 1 << 16
"""Bytes for which one way to store them is chosen."""
STRIDE = 1 << 14
"""Bytes that one dictionary is for."""
_BITS, _LEAST, _MOST = 10, 256, 1 << 14
"""Of a chunk: it ends where so many bits of a rolling hash are zero, which happens every 1024 bytes."""
_WHOLE_NAME = ""
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)


@dataclass(frozen=True)
class DeltaPieces:
    """Bytes of the new bundle, its network taken apart, by how the delta has them.

    Args:
        copy: As they are in the old bundle.
        xor: By their difference to bytes there.
        near: Compressed with bytes there as a dictionary.
        new: By themselves, compressed.
    """

    copy: int
    xor: int
    near: int
    new: int


@dataclass(frozen=True)
class DeltaResult(Result):
    """A delta that was written.

    Args:
        file: Path of the delta.
        old: Identity of the bundle that it leads from.
        new: Identity of the bundle that it leads to.
        bytes: Size of the delta.
        new_bytes: Size of the new bundle.
        share: `bytes` / `new_bytes`.
    """

    file: Path
    old: str
    new: str
    bytes: int
    new_bytes: int
    share: float
    pieces: DeltaPieces


def run(old: Path, new: Path, out: Path) -> DeltaResult:
    """Write the delta that leads from a bundle to another, and rebuild that by it; the documented result.

    Raises BundleError or HashError for a bad bundle, SpecError where `out` cannot be written, or nothing leads there.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        before, after = Path(scratch) / "old", Path(scratch) / "new"
        extract(old, before)
        with opened_bundle(new) as bundle:
            bundle.extract(after)
            head = bundle.head
        with OldBundle(before, Path(scratch)) as source:
            writer = _Writer(source)
            for entry in head.manifest.files:
                writer.add(entry, (after / entry.path).read_bytes())
            delta = Path(scratch) / "delta"
            first, data = member(DOCUMENT, opening(source.identity)), member(DATA, b"".join(writer.content))
            delta.write_bytes(b"".join((first, head_members(head), data, END)))
            _require_same(delta, source, new, Path(scratch) / "again.edgekd")
        copy_file(delta, out)
    return _result(writer, head, out, new)


def _require_same(delta: Path, source: OldBundle, new: Path, again: Path) -> None:
    """Raise SpecError where a delta does not lead to the new bundle."""
    try:
        rebuild(delta, source, again)
    except BundleError as error:
        what = f"{new}: too little in common with the old bundle"
        raise SpecError(what, found=error.found or error.what, fix="send the whole bundle") from error
    if file_sha256(again) != file_sha256(new):
        raise SpecError(f"{new}: the delta leads to something else", fix="send the whole bundle, and report this")


def _result(writer: _Writer, head: Head, out: Path, new: Path) -> DeltaResult:
    size, whole = out.stat().st_size, new.stat().st_size
    pieces = DeltaPieces(*(writer.given[kind] for kind in (COPY, XOR, NEAR, NEW)))
    return DeltaResult(out, writer.old.identity, head.identity, size, whole, round(size / whole, 4), pieces)


@dataclass(frozen=True)
class _Source:
    """A part of the old bundle: the numbers of its file and of itself, and its content."""

    file: int
    part: int
    content: bytes


@dataclass
class _Encoding:
    """A way to store some bytes: its records, and the data of each."""

    records: list[Record] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)

    def add(self, kind: int, length: int, stored: bytes, source: _Source | None = None, at: int = 0) -> None:
        """Add a record."""
        file, part = (source.file, source.part) if source else (0, 0)
        self.records.append(Record(kind, length, part, file, at, len(stored)))
        self.data.append(stored)

    @property
    def cost(self) -> int:
        """Bytes that it takes in the delta."""
        return sum(len(each) + RECORD.size for each in self.data)


class _Writer:
    """Writes the records of files. content: of the delta's data, in pieces; given: bytes of the new bundle by kind."""

    def __init__(self, old: OldBundle) -> None:
        self.old = old
        self.content: list[bytes] = []
        self.given: Counter[int] = Counter()
        self._parts: dict[tuple[str, str], _Source] = {}
        self._chunks: dict[bytes, tuple[_Source, int]] = {}
        for file, entry in enumerate(old.manifest.files):
            content = old.read(file, WHOLE, 0, entry.length) if entry.length else b""
            for part, (name, split) in enumerate(_parts(entry, content).items(), WHOLE + 1):
                self._index((entry.path, name), _Source(file, part, split))
            self._index((entry.path, _WHOLE_NAME), _Source(file, WHOLE, content))

    def _index(self, place: tuple[str, str], source: _Source) -> None:
        self._parts[place] = source
        for begin, end in chunks(source.content):
            self._chunks.setdefault(_digest(source.content[begin:end]), (source, begin))

    def add(self, entry: FileEntry, content: bytes) -> None:
        """Write the records of a file of the new bundle, which is split where that is of use."""
        same = self._parts.get((entry.path, _WHOLE_NAME))
        split = _parts(entry, content)
        if same and same.content == content:
            self._write(Record(PART, len(content)))
            if content:
                self._write(_copy(same, 0, len(content)))
        elif split:
            for number, (name, part) in enumerate(split.items(), WHOLE + 1):
                self._add_part((entry.path, name), number, part)
        else:
            self._add_part((entry.path, _WHOLE_NAME), WHOLE, content)

    def _write(self, record: Record, data: bytes = b"") -> None:
        self.content += [record.packed(), data]
        if record.kind != PART:
            self.given[record.kind] += record.length

    def _add_part(self, place: tuple[str, str], number: int, content: bytes) -> None:
        """Write the records of a part: copies, and between them what is new."""
        self._write(Record(PART, len(content), number))
        alike, at, pending, copy = self._parts.get(place), 0, 0, None
        for begin, end in [*chunks(content), (len(content), len(content))]:
            there = self._copy_of(content[begin:end], copy)
            if there is None and begin < end:
                continue
            if pending < begin:
                if copy:
                    self._write(_copy(*copy))
                    alike, at = copy[0], copy[1] + copy[2] - pending
                    copy = None
                self._add_new(content, pending, begin, alike, at)
            if there and copy and (there[0] is copy[0] and there[1] == copy[1] + copy[2]):
                copy = (copy[0], copy[1], copy[2] + end - begin)
            else:
                if copy:
                    self._write(_copy(*copy))
                copy = (*there, end - begin) if there else None
            pending = end

    def _copy_of(self, chunk: bytes, copy: tuple[_Source, int, int] | None) -> tuple[_Source, int] | None:
        """Return where the old bundle has a chunk: best where the copy before it ends."""
        if not chunk:
            return None
        if copy:
            source, at = copy[0], copy[1] + copy[2]
            if source.content[at : at + len(chunk)] == chunk:
                return source, at
        return self._chunks.get(_digest(chunk))

    def _add_new(self, content: bytes, begin: int, end: int, alike: _Source | None, shift: int) -> None:
        """Write a part that the old bundle lacks, compressed; `shift`: offset of a similar part of the old one."""
        for first in range(begin, end, STEP):
            last = min(first + STEP, end)
            encodings = [_compressed(content[first:last])]
            if alike and alike.content:
                tail = len(alike.content) - len(content)
                for at in sorted({first, first + shift, first + tail}):
                    if at >= 0 and at + last - first <= len(alike.content):
                        encodings.append(_different(content[first:last], alike, at))
                encodings.append(_near(content, first, last, alike, shift))
            best = min(encodings, key=lambda encoding: encoding.cost)
            for record, data in zip(best.records, best.data, strict=True):
                self._write(record, data)


def _copy(source: _Source, at: int, length: int) -> Record:
    return Record(COPY, length, source.part, source.file, at)


def chunks(content: bytes) -> list[tuple[int, int]]:
    """Return the borders of a content's chunks, defined by the content: equal parts of two are mostly cut alike."""
    if not content:
        return []
    rolling = _GEAR[np.frombuffer(content, np.uint8)]
    for shift in (1, 2, 4, 8, 16):
        rolling[shift:] = rolling[shift:] + (rolling[:-shift] << np.uint32(shift))
    cuts = np.flatnonzero(rolling >> np.uint32(32 - _BITS) == 0) + 1
    found, begin = [], 0
    for cut in [*cuts.tolist(), len(content)]:
        while cut - begin > _MOST:
            found.append((begin, begin + _MOST))
            begin += _MOST
        if cut - begin >= _LEAST or (cut == len(content) and cut > begin):
            found.append((begin, cut))
            begin = cut
    return found


_GEAR = np.frombuffer(hashlib.shake_128(b"edgekd delta").digest(1024), "<u4").astype(np.uint32)


def _parts(entry: FileEntry, content: bytes) -> Mapping[str, bytes]:
    """Return a network without its entropy coding, where this zlib codes it the same; nothing for any other file."""
    if entry.role != "graph":
        return {}
    try:
        parts = packed_graph.parts(content)
        same = packed_graph.assemble(parts) == content
    except ValueError:
        return {}
    small = sum(map(len, parts.values())) <= entry.length * MAX_GROWTH + EXTRA_GROWTH
    plain = len(parts[packed_graph.HEADER]) + len(parts[packed_graph.SKELETON]) <= MAX_GRAPH_TEXT
    return parts if same and small and plain else {}


def _digest(chunk: bytes) -> bytes:
    return hashlib.blake2b(chunk, digest_size=16).digest()


def _deflated(content: bytes, dictionary: bytes = b"") -> bytes:
    found = []
    for strategy in _STRATEGIES:
        told = {"zdict": dictionary} if dictionary else {}
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy, **told)
        found.append(deflate.compress(content) + deflate.flush())
    return min(found, key=len)


def _compressed(content: bytes) -> _Encoding:
    encoding = _Encoding()
    encoding.add(NEW, len(content), _deflated(content))
    return encoding


def _different(content: bytes, old: _Source, at: int) -> _Encoding:
    encoding = _Encoding()
    encoding.add(XOR, len(content), _deflated(xor(old.content[at : at + len(content)], content)), old, at)
    return encoding


def _near(content: bytes, first: int, last: int, old: _Source, shift: int) -> _Encoding:
    encoding = _Encoding()
    for begin in range(first, last, STRIDE):
        end = min(begin + STRIDE, last)
        at = max(0, min(begin + shift - (WINDOW - STRIDE) // 2, len(old.content) - WINDOW))
        window = old.content[at : at + WINDOW]
        encoding.add(NEAR, end - begin, _deflated(content[begin:end], window), old, at)
    return encoding

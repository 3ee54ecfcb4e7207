"""`edgekd delta`: the difference between two bundles.

Files are cut into chunks at positions defined by their content, so that insertions and deletions move no other cuts. A
chunk that occurs in the old bundle becomes a copy. Bytes between copies are stored as the difference from similar old
bytes, or compressed with old bytes as dictionary, whichever is shortest.
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
from edgekd.core.bundle.archive import END, BundleHead, extract, head_members, member, opened_bundle
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
    DeltaRecord,
    OldBundle,
    opening,
    rebuild,
    xor,
)
from edgekd.core.bundle.manifest import FileEntry
from edgekd.core.canonical import file_sha256
from edgekd.core.documents import Result
from edgekd.core.errors import BundleError, SpecError
from edgekd.core.formats import packed_graph
from edgekd.core.formats.packed_layout import SKELETON

BLOCK_BYTES = 1 << 16  # stored by one method
NEAR_BYTES = 1 << 14  # compressed with one dictionary
_CHUNK_BITS = 10  # a chunk ends where this many bits of the rolling hash are 0: every 1024 bytes on average
_MIN_CHUNK_BYTES = 256
_MAX_CHUNK_BYTES = 1 << 14
_WHOLE_NAME = ""
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)


@dataclass(frozen=True)
class DeltaPieces:
    """Bytes of the new bundle, with its network unpacked, by kind of record.

    Args:
        copy: Equal to bytes of the old bundle.
        xor: Stored as differences from bytes of the old bundle.
        near: Compressed with bytes of the old bundle as dictionary.
        new: Compressed alone.
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
        old: Identity of the bundle that it applies to.
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
    """Write the delta from one bundle to another, and verify it by rebuilding the new one.

    Raises BundleError or HashError for an invalid bundle, SpecError if `out` cannot be written, or the bundles have too
    little in common.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        before, after = Path(scratch) / "old", Path(scratch) / "new"
        extract(old, before)
        with opened_bundle(new) as bundle:
            bundle.extract(after)
            head = bundle.head
        with OldBundle(before, Path(scratch)) as source:
            writer = _DeltaWriter(source)
            for entry in head.manifest.files:
                writer.add(entry, (after / entry.path).read_bytes())
            delta = Path(scratch) / "delta"
            first, data = member(DOCUMENT, opening(source.identity)), member(DATA, b"".join(writer.content))
            delta.write_bytes(b"".join((first, head_members(head), data, END)))
            _require_same(delta, source, new, Path(scratch) / "again.edgekd")
        copy_file(delta, out)
    return _result(writer, head, out, new)


def _require_same(delta: Path, source: OldBundle, new: Path, again: Path) -> None:
    """Raise SpecError unless a delta rebuilds the new bundle."""
    try:
        rebuild(delta, source, again)
    except BundleError as error:
        what = f"{new}: too little in common with the old bundle"
        raise SpecError(what, found=error.found or error.what, fix="send the whole bundle") from error
    if file_sha256(again) != file_sha256(new):
        raise SpecError(f"{new}: the delta leads to something else", fix="send the whole bundle, and report this")


def _result(writer: _DeltaWriter, head: BundleHead, out: Path, new: Path) -> DeltaResult:
    size, whole = out.stat().st_size, new.stat().st_size
    pieces = DeltaPieces(*(writer.given[kind] for kind in (COPY, XOR, NEAR, NEW)))
    return DeltaResult(out, writer.old.identity, head.identity, size, whole, round(size / whole, 4), pieces)


@dataclass(frozen=True)
class _Source:
    """A part of the old bundle: number of its file, its own number, and its content."""

    file: int
    part: int
    content: bytes


@dataclass
class _Encoding:
    """Encoded bytes: records, and the data of each."""

    records: list[DeltaRecord] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)

    def add(self, kind: int, length: int, stored: bytes, source: _Source | None = None, at: int = 0) -> None:
        """Add a record."""
        file, part = (source.file, source.part) if source else (0, 0)
        self.records.append(DeltaRecord(kind, length, part, file, at, len(stored)))
        self.data.append(stored)

    @property
    def cost(self) -> int:
        """Size in the delta."""
        return sum(len(each) + RECORD.size for each in self.data)


class _DeltaWriter:
    """Writes the records of files. content: the delta's data, in parts; given: bytes of the new bundle by kind."""

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
        """Write the records of a file of the new bundle."""
        same = self._parts.get((entry.path, _WHOLE_NAME))
        split = _parts(entry, content)
        if same and same.content == content:
            self._write(DeltaRecord(PART, len(content)))
            if content:
                self._write(_copy(same, 0, len(content)))
        elif split:
            for number, (name, part) in enumerate(split.items(), WHOLE + 1):
                self._add_part((entry.path, name), number, part)
        else:
            self._add_part((entry.path, _WHOLE_NAME), WHOLE, content)

    def _write(self, record: DeltaRecord, data: bytes = b"") -> None:
        self.content += [record.packed(), data]
        if record.kind != PART:
            self.given[record.kind] += record.length

    def _add_part(self, place: tuple[str, str], number: int, content: bytes) -> None:
        """Write the records of a part: copies, and new bytes between them."""
        self._write(DeltaRecord(PART, len(content), number))
        similar, at, pending, copy = self._parts.get(place), 0, 0, None
        for begin, end in [*chunks(content), (len(content), len(content))]:
            there = self._copy_of(content[begin:end], copy)
            if there is None and begin < end:
                continue
            if pending < begin:
                if copy:
                    self._write(_copy(*copy))
                    similar, at = copy[0], copy[1] + copy[2] - pending
                    copy = None
                self._add_new(content, pending, begin, similar, at)
            if there and copy and (there[0] is copy[0] and there[1] == copy[1] + copy[2]):
                copy = (copy[0], copy[1], copy[2] + end - begin)
            else:
                if copy:
                    self._write(_copy(*copy))
                copy = (*there, end - begin) if there else None
            pending = end

    def _copy_of(self, chunk: bytes, copy: tuple[_Source, int, int] | None) -> tuple[_Source, int] | None:
        """Find a chunk in the old bundle, preferably where the previous copy ends."""
        if not chunk:
            return None
        if copy:
            source, at = copy[0], copy[1] + copy[2]
            if source.content[at : at + len(chunk)] == chunk:
                return source, at
        return self._chunks.get(_digest(chunk))

    def _add_new(self, content: bytes, begin: int, end: int, similar: _Source | None, shift: int) -> None:
        """Write bytes that the old bundle lacks; shift: offset of similar bytes in `similar`."""
        for first in range(begin, end, BLOCK_BYTES):
            last = min(first + BLOCK_BYTES, end)
            encodings = [_compressed(content[first:last])]
            if similar and similar.content:
                tail = len(similar.content) - len(content)
                for at in sorted({first, first + shift, first + tail}):
                    if at >= 0 and at + last - first <= len(similar.content):
                        encodings.append(_different(content[first:last], similar, at))
                encodings.append(_near(content, first, last, similar, shift))
            best = min(encodings, key=lambda encoding: encoding.cost)
            for record, data in zip(best.records, best.data, strict=True):
                self._write(record, data)


def _copy(source: _Source, at: int, length: int) -> DeltaRecord:
    return DeltaRecord(COPY, length, source.part, source.file, at)


def chunks(content: bytes) -> list[tuple[int, int]]:
    """Return the bounds of content-defined chunks: equal bytes are mostly cut at the same positions."""
    if not content:
        return []
    rolling = _GEAR[np.frombuffer(content, np.uint8)]
    for shift in (1, 2, 4, 8, 16):
        rolling[shift:] = rolling[shift:] + (rolling[:-shift] << np.uint32(shift))
    cuts = np.flatnonzero(rolling >> np.uint32(32 - _CHUNK_BITS) == 0) + 1
    found, begin = [], 0
    for cut in [*cuts.tolist(), len(content)]:
        while cut - begin > _MAX_CHUNK_BYTES:
            found.append((begin, begin + _MAX_CHUNK_BYTES))
            begin += _MAX_CHUNK_BYTES
        if cut - begin >= _MIN_CHUNK_BYTES or (cut == len(content) and cut > begin):
            found.append((begin, cut))
            begin = cut
    return found


_GEAR = np.frombuffer(hashlib.shake_128(b"edgekd delta").digest(1024), "<u4").astype(np.uint32)


def _parts(entry: FileEntry, content: bytes) -> Mapping[str, bytes]:
    """Return the parts of a packed graph without entropy coding, if this zlib reproduces it; else none."""
    if entry.role != "graph":
        return {}
    try:
        parts = packed_graph.parts(content)
        same = packed_graph.assemble(parts) == content
    except ValueError:
        return {}
    small = sum(map(len, parts.values())) <= entry.length * MAX_GROWTH + EXTRA_GROWTH
    plain = len(parts[packed_graph.HEADER]) + len(parts[SKELETON]) <= MAX_GRAPH_TEXT
    return parts if same and small and plain else {}


def _digest(chunk: bytes) -> bytes:
    return hashlib.blake2b(chunk, digest_size=16).digest()


def _deflated(content: bytes, dictionary: bytes = b"") -> bytes:
    found = []
    for strategy in _STRATEGIES:
        options = {"zdict": dictionary} if dictionary else {}
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy, **options)
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
    for begin in range(first, last, NEAR_BYTES):
        end = min(begin + NEAR_BYTES, last)
        at = max(0, min(begin + shift - (WINDOW - NEAR_BYTES) // 2, len(old.content) - WINDOW))
        window = old.content[at : at + WINDOW]
        encoding.add(NEAR, end - begin, _deflated(content[begin:end], window), old, at)
    return encoding

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgekd.core.atomic_files import new_file
from edgekd.core.bundle.archive import END, extract, head_members, member, read_head
from edgekd.core.bundle.delta import (
    COPY,
    DATA,
    DOCUMENT,
    HEADER_ROOM,
    MAX_GROWTH,
    MAX_JSON,
    NEAR,
    NEW,
    WHOLE,
    WINDOW,
    XOR,
    Delta,
    OldBundle,
    Part,
    Piece,
    rebuild,
    to_json,
    xor,
)
from edgekd.core.bundle.manifest import FileEntry
from edgekd.core.canonical import file_sha256
from edgekd.core.documents import Result
from edgekd.core.errors import SpecError
from edgekd.core.formats import packed_graph

STEP = 1 << 16
"""Bytes for which one way to store them is chosen."""
STRIDE = 1 << 14
"""Bytes that one dictionary is for."""
_BITS, _LEAST, _MOST = 10, 256, 1 << 14
"""Of a chunk: it ends where so many bits of a rolling hash are zero, which happens every 1024 bytes."""
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
        manifest = extract(new, after)
        writer = _Writer(OldBundle(before))
        files = tuple(writer.file(entry, (after / entry.path).read_bytes()) for entry in manifest.files)
        delta = Delta(writer.old.identity, tuple(writer.sources), files)
        told = to_json(delta)
        if len(told) > MAX_JSON:
            raise SpecError(f"{new}: too little in common with {old}", fix="send the whole bundle")
        head = read_head(new)
        with new_file(out) as stream:
            for content in (member(DOCUMENT, told), head_members(head), member(DATA, b"".join(writer.data)), END):
                stream.write(content)
        again = Path(scratch) / "again.edgekd"
        rebuild(out, writer.old, again)
        if file_sha256(again) != file_sha256(new):
            raise SpecError(f"{out}: does not lead to {new}", fix="send the whole bundle, and report this")
    return _result(delta, head.identity, out, new)


def _result(delta: Delta, identity: str, out: Path, new: Path) -> DeltaResult:
    kinds: Counter[str] = Counter()
    for piece in (piece for parts in delta.files for part in parts for piece in part.pieces):
        kinds[piece.kind] += piece.length
    size, whole = out.stat().st_size, new.stat().st_size
    pieces = DeltaPieces(*(kinds[kind] for kind in (COPY, XOR, NEAR, NEW)))
    return DeltaResult(out, delta.old, identity, size, whole, round(size / whole, 4), pieces)


@dataclass
class _Source:
    """A part of the old bundle: its number, None while nothing refers to it, and its content."""

    place: tuple[str, str]
    content: bytes
    number: int | None = None


@dataclass
class _Way:
    """A way to store some bytes: its pieces, and the data of each."""

    pieces: list[Piece] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)

    def add(self, kind: str, length: int, stored: bytes, at: int = 0, window: int = 0) -> None:
        """One piece more; which source it is from is said later."""
        self.pieces.append(Piece(kind, length, 0, at, window, len(stored)))
        self.data.append(stored)

    @property
    def cost(self) -> int:
        """About how many bytes it takes in the delta."""
        return sum(len(each) + 24 for each in self.data)


class _Writer:
    """Makes pieces of files. sources, data: what goes into the delta for them."""

    def __init__(self, old: OldBundle) -> None:
        self.old = old
        self.sources: list[tuple[str, str]] = []
        self.data: list[bytes] = []
        self._found: dict[tuple[str, str], _Source] = {}
        self._chunks: dict[bytes, tuple[_Source, int]] = {}
        for entry in old.manifest.files:
            content = old.read(entry.path, WHOLE, 0, entry.length)
            for name, part in _parts(entry, content).items():
                self._index(_Source((entry.path, name), part))
            if (entry.path, WHOLE) not in self._found:
                self._index(_Source((entry.path, WHOLE), content))

    def _index(self, source: _Source) -> None:
        self._found[source.place] = source
        for begin, end in chunks(source.content):
            self._chunks.setdefault(_digest(source.content[begin:end]), (source, begin))

    def file(self, entry: FileEntry, content: bytes) -> tuple[Part, ...]:
        """The parts of a file of the new bundle, taken apart where that is of use."""
        same = self._found.get((entry.path, WHOLE))
        if same and same.content == content:
            pieces = (self._copy(same, 0, len(content)),) if content else ()
            return (Part(WHOLE, pieces),)
        parts = _parts(entry, content)
        return tuple(Part(name, tuple(self._pieces((entry.path, name), part))) for name, part in parts.items())

    def _pieces(self, place: tuple[str, str], content: bytes) -> Iterator[Piece]:
        """The pieces of a part: copies, and between them what is new."""
        alike, at, pending, copy = self._found.get(place), 0, 0, None
        for begin, end in [*chunks(content), (len(content), len(content))]:
            there = self._copy_of(content[begin:end], copy)
            if there is None and begin < end:
                continue
            if pending < begin:
                if copy:
                    yield self._copy(*copy)
                    alike, at = copy[0], copy[1] + copy[2] - pending
                    copy = None
                yield from self._new(content, pending, begin, alike, at)
            if there and copy and (there[0] is copy[0] and there[1] == copy[1] + copy[2]):
                copy = (copy[0], copy[1], copy[2] + end - begin)
            else:
                if copy:
                    yield self._copy(*copy)
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

    def _new(self, content: bytes, begin: int, end: int, alike: _Source | None, shift: int) -> Iterator[Piece]:
        """Return a part that the old bundle lacks, compressed; `shift`: offset of a similar part of the old one."""
        for first in range(begin, end, STEP):
            last = min(first + STEP, end)
            ways = [_compressed(content[first:last])]
            if alike:
                old = alike.content
                tail = len(old) - len(content)
                for at in sorted({first, first + shift, first + tail}):
                    if at >= 0 and at + last - first <= len(old):
                        ways.append(_different(content[first:last], old, at))
                ways.append(_near(content, first, last, old, shift))
            best = min(ways, key=lambda way: way.cost)
            self.data += best.data
            for piece in best.pieces:
                number = 0 if piece.kind == NEW or alike is None else self._number(alike)
                yield Piece(piece.kind, piece.length, number, piece.at, piece.window, piece.stored)

    def _copy(self, source: _Source, at: int, length: int) -> Piece:
        return Piece(COPY, length, self._number(source), at)

    def _number(self, source: _Source) -> int:
        if source.number is None:
            source.number = len(self.sources)
            self.sources.append(source.place)
        return source.number


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
    """A network without its entropy coding, where this zlib codes it the same; any other file as it is."""
    whole = {WHOLE: content}
    if entry.role != "graph":
        return whole
    try:
        parts = packed_graph.parts(content)
        same = packed_graph.assemble(parts) == content
    except ValueError:
        return whole
    return parts if same and sum(map(len, parts.values())) <= entry.length * MAX_GROWTH + HEADER_ROOM else whole


def _digest(chunk: bytes) -> bytes:
    return hashlib.blake2b(chunk, digest_size=16).digest()


def _deflated(content: bytes, dictionary: bytes = b"") -> bytes:
    found = []
    for strategy in _STRATEGIES:
        told = {"zdict": dictionary} if dictionary else {}
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy, **told)
        found.append(deflate.compress(content) + deflate.flush())
    return min(found, key=len)


def _compressed(content: bytes) -> _Way:
    way = _Way()
    way.add(NEW, len(content), _deflated(content))
    return way


def _different(content: bytes, old: bytes, at: int) -> _Way:
    way = _Way()
    way.add(XOR, len(content), _deflated(xor(old[at : at + len(content)], content)), at)
    return way


def _near(content: bytes, first: int, last: int, old: bytes, shift: int) -> _Way:
    way = _Way()
    for begin in range(first, last, STRIDE):
        end = min(begin + STRIDE, last)
        at = max(0, min(begin + shift - (WINDOW - STRIDE) // 2, len(old) - WINDOW))
        window = old[at : at + WINDOW]
        way.add(NEAR, end - begin, _deflated(content[begin:end], window), at, len(window))
    return way

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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

BLOCK_BYTES = 1 << 16  # stored by one method
NEAR_BYTES = 1 << 14  # compressed with one dictionary
_CHUNK_BITS = 10  # a chunk ends where this many bits of the rolling hash are 0: every 1024 bytes on average
_MIN_CHUNK_BYTES = 256
_MAX_CHUNK_BYTES = 1 << 14
_PIECE_BYTES = 24  # about what the description of a piece takes in the delta
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)


@dataclass(frozen=True)
class DeltaPieces:
    """Bytes of the new bundle, with its network unpacked, by kind of piece.

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
        manifest = extract(new, after)
        encoder = _Encoder(OldBundle(before))
        files = tuple(encoder.file(entry, (after / entry.path).read_bytes()) for entry in manifest.files)
        delta = Delta(encoder.old.identity, tuple(encoder.sources), files)
        document = to_json(delta)
        if len(document) > MAX_JSON:
            raise SpecError(f"{new}: too little in common with {old}", fix="send the whole bundle")
        head = read_head(new)
        with new_file(out) as stream:
            for part in (member(DOCUMENT, document), head_members(head), member(DATA, b"".join(encoder.data)), END):
                stream.write(part)
        again = Path(scratch) / "again.edgekd"
        rebuild(out, encoder.old, again)
        if file_sha256(again) != file_sha256(new):
            raise SpecError(f"{out}: does not lead to {new}", fix="send the whole bundle, and report this")
    kinds: Counter[str] = Counter()
    for piece in (piece for parts in files for part in parts for piece in part.pieces):
        kinds[piece.kind] += piece.length
    size, new_size = out.stat().st_size, new.stat().st_size
    return DeltaResult(
        file=out,
        old=delta.old,
        new=head.identity,
        bytes=size,
        new_bytes=new_size,
        share=round(size / new_size, 4),
        pieces=DeltaPieces(kinds[COPY], kinds[XOR], kinds[NEAR], kinds[NEW]),
    )


@dataclass
class _Source:
    """A part of the old bundle: file and part name, content, and its number once a piece refers to it."""

    place: tuple[str, str]
    content: bytes
    number: int | None = None


class _Copy(NamedTuple):
    """Bytes of a source."""

    source: _Source
    offset: int
    length: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.length


Encoded = list[tuple[Piece, bytes]]
"""Pieces and their data; the number of their source is set later."""


class _Encoder:
    """Encodes files as pieces. sources, data: what the pieces refer to."""

    def __init__(self, old: OldBundle) -> None:
        self.old = old
        self.sources: list[tuple[str, str]] = []
        self.data: list[bytes] = []
        self._parts: dict[tuple[str, str], _Source] = {}
        self._chunks: dict[bytes, _Copy] = {}
        for entry in old.manifest.files:
            content = old.read(entry.path, WHOLE, 0, entry.length)
            for name, part in {**_parts(entry, content), WHOLE: content}.items():
                self._index(_Source((entry.path, name), part))

    def _index(self, source: _Source) -> None:
        self._parts[source.place] = source
        for begin, end in chunks(source.content):
            self._chunks.setdefault(_digest(source.content[begin:end]), _Copy(source, begin))

    def file(self, entry: FileEntry, content: bytes) -> tuple[Part, ...]:
        """Encode a file of the new bundle."""
        same = self._parts.get((entry.path, WHOLE))
        if same and same.content == content:
            pieces = (self._copy(_Copy(same, 0, len(content))),) if content else ()
            return (Part(WHOLE, pieces),)
        parts = _parts(entry, content)
        return tuple(Part(name, tuple(self._pieces((entry.path, name), part))) for name, part in parts.items())

    def _pieces(self, place: tuple[str, str], content: bytes) -> Iterator[Piece]:
        """Yield the pieces of a part: copies, and new bytes between them."""
        similar, shift, pending, copy = self._parts.get(place), 0, 0, None
        for begin, end in [*chunks(content), (len(content), len(content))]:
            match = self._match(content[begin:end], copy)
            if match is None and begin < end:
                continue
            if pending < begin:
                if copy:
                    yield self._copy(copy)
                    similar, shift = copy.source, copy.end - pending
                    copy = None
                yield from self._new(content, pending, begin, similar, shift)
            if match and copy and match.source is copy.source and match.offset == copy.end:
                copy = copy._replace(length=copy.length + end - begin)
            else:
                if copy:
                    yield self._copy(copy)
                copy = match._replace(length=end - begin) if match else None
            pending = end

    def _match(self, chunk: bytes, copy: _Copy | None) -> _Copy | None:
        """Find a chunk in the old bundle, preferably where the previous copy ends."""
        if not chunk:
            return None
        if copy and copy.source.content[copy.end : copy.end + len(chunk)] == chunk:
            return _Copy(copy.source, copy.end)
        return self._chunks.get(_digest(chunk))

    def _new(self, content: bytes, begin: int, end: int, similar: _Source | None, shift: int) -> Iterator[Piece]:
        """Yield pieces of bytes that the old bundle lacks; shift: offset of similar bytes in `similar`."""
        for first in range(begin, end, BLOCK_BYTES):
            last = min(first + BLOCK_BYTES, end)
            block = content[first:last]
            options = [[_encoded(NEW, len(block), _deflated(block))]]
            if similar:
                old = similar.content
                for offset in sorted({first, first + shift, first + len(old) - len(content)}):
                    if 0 <= offset <= len(old) - len(block):
                        difference = _deflated(xor(old[offset : offset + len(block)], block))
                        options.append([_encoded(XOR, len(block), difference, offset)])
                options.append(_near(content, first, last, old, shift))
            for piece, data in min(options, key=_cost):
                self.data.append(data)
                yield piece if piece.kind == NEW or similar is None else replace(piece, source=self._number(similar))

    def _copy(self, copy: _Copy) -> Piece:
        return Piece(COPY, copy.length, self._number(copy.source), copy.offset)

    def _number(self, source: _Source) -> int:
        if source.number is None:
            source.number = len(self.sources)
            self.sources.append(source.place)
        return source.number


def chunks(content: bytes) -> list[tuple[int, int]]:
    """Return the bounds of content-defined chunks: equal bytes are mostly cut at the same positions."""
    if not content:
        return []
    rolling = _GEAR[np.frombuffer(content, np.uint8)]
    for shift in (1, 2, 4, 8, 16):
        rolling[shift:] = rolling[shift:] + (rolling[:-shift] << np.uint32(shift))
    cuts = np.flatnonzero(rolling >> np.uint32(32 - _CHUNK_BITS) == 0) + 1
    bounds, begin = [], 0
    for cut in [*cuts.tolist(), len(content)]:
        while cut - begin > _MAX_CHUNK_BYTES:
            bounds.append((begin, begin + _MAX_CHUNK_BYTES))
            begin += _MAX_CHUNK_BYTES
        if cut - begin >= _MIN_CHUNK_BYTES or (cut == len(content) and cut > begin):
            bounds.append((begin, cut))
            begin = cut
    return bounds


_GEAR = np.frombuffer(hashlib.shake_128(b"edgekd delta").digest(1024), "<u4").astype(np.uint32)


def _parts(entry: FileEntry, content: bytes) -> Mapping[str, bytes]:
    """Return a packed graph without entropy coding, if this zlib reproduces it; other files as one part."""
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
    options = {"zdict": dictionary} if dictionary else {}
    results = []
    for strategy in _STRATEGIES:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy, **options)
        results.append(deflate.compress(content) + deflate.flush())
    return min(results, key=len)


def _encoded(kind: str, length: int, data: bytes, offset: int = 0, window: int = 0) -> tuple[Piece, bytes]:
    return Piece(kind, length, 0, offset, window, len(data)), data


def _near(content: bytes, first: int, last: int, old: bytes, shift: int) -> Encoded:
    """Compress bytes with windows of similar old bytes as dictionaries."""
    encoded = []
    for begin in range(first, last, NEAR_BYTES):
        end = min(begin + NEAR_BYTES, last)
        offset = max(0, min(begin + shift - (WINDOW - NEAR_BYTES) // 2, len(old) - WINDOW))
        window = old[offset : offset + WINDOW]
        data = _deflated(content[begin:end], window)
        encoded.append(_encoded(NEAR, end - begin, data, offset, len(window)))
    return encoded


def _cost(encoded: Sequence[tuple[Piece, bytes]]) -> int:
    """Return the approximate number of bytes in the delta."""
    return sum(len(data) + _PIECE_BYTES for _, data in encoded)

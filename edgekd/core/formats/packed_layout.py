"""Layout of a packed graph: its header, its streams, and the skeleton of the ONNX file.

The format is docs/reference/formats/packed-graph.md.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from edgekd.core.canonical import bounded_json, canonical_json, is_sha256
from edgekd.core.formats.fp4x_size import packed_bytes
from edgekd.core.formats.inflate_stream import InflateStream

if TYPE_CHECKING:
    from edgekd.core.file_view import FileView

MAGIC = b"EDGEKDPG"
MAX_FORMAT = 1
"""Latest format that is read. A file with coded INT8 is of format 1, any other of format 0."""
MAX_BYTES = 2**31 - 1
"""Maximum bytes of an ONNX file: the limit of a Protocol Buffers message."""
MAX_HEADER = 1 << 22
"""Maximum bytes of a header."""
MAX_VALUES = 1 << 17
"""Maximum values in a header, as `bounded_json` counts: of 26,000 large initializers."""
MAX_COLUMNS = 1 << 20
"""Maximum weights of a channel in fp4x or coded INT8, of which some are decoded together; 25,000 are many."""
CODED = "coded-int8"
ENCODINGS = (CODED, "fp4x", "float16", "raw")
SKELETON = "skeleton"
SYMBOLS = tuple(f"coded-{index:02}" for index in range(16))
"""Names of the streams with the symbols of coded INT8, by class."""
PREFIX = struct.Struct("<8sIIII")
"""Magic, format, CRC-32 of what follows, stored and expanded length of the header."""
CHUNK = 1 << 16
"""Bytes of a step."""
_KEPT = 16  # bytes before the last read that can be read again: an integer of Protocol Buffers has at most 10


@dataclass(frozen=True)
class Cut:
    """A tensor that was cut out, `gap` bytes of skeleton after the one before.

    fp4x and coded INT8: `rows` channels of `columns` weights; coded INT8 has `taps` of them for each input. float16 and
    raw: `rows` elements of `columns` stored bytes.
    """

    gap: int
    encoding: str
    rows: int
    columns: int
    taps: int = 1

    @property
    def expanded(self) -> int:
        """Bytes in the ONNX file."""
        return self.rows * self.columns * (2 if self.encoding == "float16" else 1)

    @property
    def streams(self) -> list[tuple[str, int]]:
        """Its streams, and its bytes in each: bytes of the same significance share a stream.

        Symbols of coded INT8 are not counted here: how many of them each class has depends on the other streams.
        """
        if self.encoding == CODED:
            inputs = self.columns // self.taps
            return [("coded-rows", self.rows), ("coded-columns", inputs + self.taps), ("coded-steps", inputs)]
        if self.encoding == "fp4x":
            weights, multipliers = packed_bytes((self.rows, self.columns))
            return [("fp4x-weights", weights), ("fp4x-multipliers", multipliers)]
        return [(f"bytes-{self.columns}-{place}", self.rows) for place in range(self.columns)]

    @property
    def used_streams(self) -> list[str]:
        """Names of the streams that it may take bytes from."""
        return [*(name for name, _ in self.streams), *(SYMBOLS if self.encoding == CODED else ())]

    @property
    def fits(self) -> bool:
        """Return whether rows, columns and taps are those of its encoding."""
        if self.encoding == CODED:
            return 1 <= self.columns <= MAX_COLUMNS and self.taps >= 1 and self.columns % self.taps == 0
        columns = {"fp4x": range(1, MAX_COLUMNS + 1), "float16": (2,), "raw": (1, 2, 4, 8)}
        return self.columns in columns[self.encoding]


@dataclass(frozen=True)
class Header:
    """length: bytes of the ONNX file. streams: name and stored bytes of each, in order.

    symbols: number of symbols of coded INT8 in each class, over all tensors; empty without such tensors.
    """

    length: int
    sha256: str
    streams: tuple[tuple[str, int], ...]
    cuts: tuple[Cut, ...]
    symbols: tuple[int, ...] = ()

    @property
    def format(self) -> int:
        """Format of the file: 1 with coded INT8, else 0."""
        return int(any(cut.encoding == CODED for cut in self.cuts))

    @property
    def skeleton(self) -> int:
        """Bytes of the skeleton when expanded."""
        return self.length - sum(cut.expanded for cut in self.cuts)

    @property
    def expanded(self) -> dict[str, int]:
        """Bytes of each stream when expanded, in order."""
        counts = dict.fromkeys((name for name, _ in self.streams), 0)
        for cut in self.cuts:
            for name, count in cut.streams:
                counts[name] += count
        counts.update((name, count) for name, count in zip(SYMBOLS, self.symbols) if count)  # noqa: B905 Python 3.10
        counts[SKELETON] = self.skeleton
        return counts


def header_json(header: Header) -> bytes:
    """Return a header in canonical form."""
    cuts = []
    for cut in header.cuts:
        taps = [cut.taps] if cut.encoding == CODED else []
        cuts.append([cut.gap, cut.encoding, cut.rows, cut.columns, *taps])
    document = {"length": header.length, "sha256": header.sha256, "streams": header.streams, "tensors": cuts}
    return canonical_json({**document, "symbols": header.symbols} if header.format else document)


def open_packed(data: bytes | FileView, limit: int) -> tuple[Header, dict[str, InflateStream]]:
    """Open header and streams of a packed graph, checked by each other and by the length of the file.

    limit: bytes of the ONNX file. Raises ValueError.
    """
    if len(data) < PREFIX.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"not a packed graph: expected a file that begins with {MAGIC.decode()}")
    _, version, checksum, stored, expanded = PREFIX.unpack(bytes(data[: PREFIX.size]))
    if version > MAX_FORMAT:
        raise ValueError(f"expected format 0 to {MAX_FORMAT}, found {version}: update edgekd")
    content = (memoryview(data) if isinstance(data, bytes) else data)[PREFIX.size :]
    found = 0
    for at in range(0, len(content), CHUNK):
        found = zlib.crc32(bytes(content[at : at + CHUNK]), found)
    if found != checksum:
        raise ValueError("cut short or damaged: its content has another checksum")
    if expanded > MAX_HEADER:
        raise ValueError(f"expected a header of at most {MAX_HEADER} bytes, found {expanded}")
    head = InflateStream(content[:stored])
    header = read_header(head.read(expanded))
    head.finish()
    if version != header.format:
        raise ValueError(f"expected format {header.format} by the header, found {version}")
    if header.length > limit:
        raise ValueError(f"expected an ONNX file of at most {limit} bytes, found {header.length}")
    streams, offset = {}, stored
    for name, length in header.streams:
        streams[name] = InflateStream(content[offset : offset + length])
        offset += length
    if offset != len(content):
        raise ValueError(f"expected header and streams of {offset} bytes, found {len(content)}")
    return header, streams


def read_header(content: bytes) -> Header:
    """Parse a header. Raises ValueError where it is not in canonical form, or numbers disagree."""
    try:
        document = bounded_json(content, MAX_VALUES)
        header = Header(
            document["length"],
            document["sha256"],
            tuple((name, length) for name, length in document["streams"]),
            tuple(Cut(*row) for row in document["tensors"]),
            tuple(document.get("symbols", ())),
        )
        same = header_json(header) == content
    except (TypeError, KeyError) as error:
        raise ValueError(f"the header is damaged: {error!r}") from error
    counts: list[Any] = [header.length, *(length for _, length in header.streams), *header.symbols]
    counts += [number for cut in header.cuts for number in (cut.gap, cut.rows, cut.columns, cut.taps)]
    valid = all(type(count) is int and 0 <= count < 10**10 for count in counts) and is_sha256(header.sha256)
    if not same or not valid:
        raise ValueError("the header is not as edgekd writes it")
    for cut in header.cuts:
        if cut.encoding not in ENCODINGS or not cut.fits or not cut.rows:
            raise ValueError(f"expected tensors in {', '.join(ENCODINGS)}, found {cut}")
    if sum(cut.gap for cut in header.cuts) > header.skeleton:
        raise ValueError("expected tensors that fit into the file, found larger ones")
    _require_streams(header)
    return header


def _require_streams(header: Header) -> None:
    """Raise ValueError where the streams are not those of the tensors."""
    coded = sum(cut.rows * cut.columns for cut in header.cuts if cut.encoding == CODED)
    if header.format and (len(header.symbols), sum(header.symbols)) != (len(SYMBOLS), coded):
        raise ValueError(f"expected {coded} symbols in {len(SYMBOLS)} classes, found {header.symbols}")
    needed = {SKELETON, *(name for cut in header.cuts for name, _ in cut.streams)}
    needed |= {name for name, count in zip(SYMBOLS, header.symbols) if count}  # noqa: B905 Python 3.10
    if [name for name, _ in header.streams] != sorted(needed):
        raise ValueError(f"expected the streams {sorted(needed)}, found others")


class Skeleton:
    """The ONNX file in a packed graph as a sequence of bytes, without expanding the tensors that were cut out.

    It is read forwards, in bounded memory. Raises ValueError for a byte of such a tensor, and for a damaged stream.
    """

    def __init__(self, data: bytes | FileView, limit: int = MAX_BYTES) -> None:
        """Open a packed graph. limit: bytes of the ONNX file. Raises ValueError."""
        header, streams = open_packed(data, limit)
        self._length = header.length
        self._pieces = _skeleton_pieces(header, streams[SKELETON])
        self._begin, self._content = 0, b""

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, part: int) -> int: ...

    @overload
    def __getitem__(self, part: slice) -> bytes: ...

    def __getitem__(self, part: int | slice) -> int | bytes:
        if isinstance(part, slice):
            first, last, _ = part.indices(self._length)
            self._require(first, last)
            return self._content[first - self._begin : last - self._begin]
        if not 0 <= part - self._begin < len(self._content):
            self._require(part, part + 1)
        return self._content[part - self._begin]

    def _require(self, first: int, last: int) -> None:
        """Read on until these bytes are held. Raises ValueError."""
        while self._begin + len(self._content) < last:
            begin, piece = next(self._pieces, (self._length, b""))
            if begin == self._begin + len(self._content) and piece:
                passed = min(max(first - self._begin - _KEPT, 0), len(self._content))
                self._begin, self._content = self._begin + passed, self._content[passed:] + piece
            else:
                self._begin, self._content = begin, piece
            if first < self._begin:
                break
        if first < self._begin:
            raise ValueError(f"not an ONNX file: byte {first} is one of a tensor")


def _skeleton_pieces(header: Header, stream: InflateStream) -> Iterator[tuple[int, bytes]]:
    """Yield the skeleton in small pieces, each with its offset in the ONNX file. Raises ValueError."""
    gaps = [(cut.gap, cut.expanded) for cut in header.cuts]
    rest = header.skeleton - sum(gap for gap, _ in gaps)
    offset = 0
    for gap, cut_bytes in (*gaps, (rest, 0)):
        for piece in stream.steps(gap):
            yield offset, piece
            offset += len(piece)
        offset += cut_bytes

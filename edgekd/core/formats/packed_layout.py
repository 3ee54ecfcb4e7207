"""Layout of a packed graph: its header, its streams, and the skeleton of the ONNX file. docs/formats/packed-graph.md.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from edgekd.core.canonical import bounded_json, canonical_json, is_sha256
from edgekd.core.formats.fp4x_size import packed_bytes
from edgekd.core.formats.inflate_stream import InflateStream

if TYPE_CHECKING:
    from edgekd.core.file_view import FileView

MAGIC = b"EDGEKDPG"
FORMAT = 0
MAX_BYTES = 2**31 - 1
"""Maximum bytes of an ONNX file: the limit of a Protocol Buffers message."""
MAX_HEADER = 1 << 22
"""Maximum bytes of a header."""
MAX_VALUES = 1 << 17
"""Maximum values in a header, as `bounded_json` counts: of 26,000 large initializers."""
MAX_COLUMNS = 1 << 20
"""Maximum weights of a channel in fp4x, of which some are decoded together; 25,000 are many."""
ENCODINGS = ("fp4x", "float16", "raw")
SKELETON = "skeleton"
PREFIX = struct.Struct("<8sIIII")
"""Magic, format, CRC-32 of what follows, stored and expanded length of the header."""
CHUNK = 1 << 16
"""Bytes of a step."""
_KEPT = 16  # bytes before the last read that can be read again: an integer of Protocol Buffers has at most 10


@dataclass(frozen=True)
class Cut:
    """A tensor that was cut out, `gap` bytes of skeleton after the one before.

    fp4x: `rows` channels of `columns` weights. float16 and raw: `rows` elements of `columns` stored bytes.
    """

    gap: int
    encoding: str
    rows: int
    columns: int

    @property
    def expanded(self) -> int:
        return self.rows * self.columns * (2 if self.encoding == "float16" else 1)

    @property
    def streams(self) -> list[tuple[str, int]]:
        """Its streams, and its bytes in each: bytes of the same significance share a stream."""
        if self.encoding == "fp4x":
            weights, multipliers = packed_bytes((self.rows, self.columns))
            return [("fp4x-weights", weights), ("fp4x-multipliers", multipliers)]
        return [(f"bytes-{self.columns}-{place}", self.rows) for place in range(self.columns)]


@dataclass(frozen=True)
class Header:
    """length: bytes of the ONNX file. streams: name and stored bytes of each, in order."""

    length: int
    sha256: str
    streams: tuple[tuple[str, int], ...]
    cuts: tuple[Cut, ...]

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
        counts[SKELETON] = self.skeleton
        return counts


def header_json(header: Header) -> bytes:
    """Return a header in canonical form."""
    cuts = [[cut.gap, cut.encoding, cut.rows, cut.columns] for cut in header.cuts]
    document = {"length": header.length, "sha256": header.sha256, "streams": header.streams, "tensors": cuts}
    return canonical_json(document)


def open_packed(data: bytes | FileView, limit: int) -> tuple[Header, dict[str, InflateStream]]:
    """Open header and streams of a packed graph, checked by each other and by the length of the file.

    limit: bytes of the ONNX file. Raises ValueError.
    """
    if len(data) < PREFIX.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"not a packed graph: expected a file that begins with {MAGIC.decode()}")
    _, version, checksum, stored, expanded = PREFIX.unpack(bytes(data[: PREFIX.size]))
    if version != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {version}: update edgekd")
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
        )
        same = header_json(header) == content
    except (TypeError, KeyError) as error:
        raise ValueError(f"the header is damaged: {error!r}") from error
    counts = [header.length, *(length for _, length in header.streams)]
    counts += [number for cut in header.cuts for number in (cut.gap, cut.rows, cut.columns)]
    valid = all(type(count) is int and 0 <= count < 10**10 for count in counts) and is_sha256(header.sha256)
    if not same or not valid:
        raise ValueError("the header is not as edgekd writes it")
    for cut in header.cuts:
        fits = {
            "fp4x": 1 <= cut.columns <= MAX_COLUMNS,
            "float16": cut.columns == 2,
            "raw": cut.columns in (1, 2, 4, 8),
        }
        if cut.encoding not in ENCODINGS or not fits[cut.encoding] or not cut.rows:
            raise ValueError(f"expected tensors in {', '.join(ENCODINGS)}, found {cut}")
    if sum(cut.gap for cut in header.cuts) > header.skeleton:
        raise ValueError("expected tensors that fit into the file, found larger ones")
    needed = {SKELETON, *(name for cut in header.cuts for name, _ in cut.streams)}
    if [name for name, _ in header.streams] != sorted(needed):
        raise ValueError(f"expected the streams {sorted(needed)}, found others")
    return header


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

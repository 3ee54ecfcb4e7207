"""A packed graph: an ONNX file, compressed without loss, and expanded without the onnx package.

The content of every large initializer is cut out of the file, and stored in the smallest lossless encoding; the rest is
the skeleton. Both are compressed with DEFLATE. Expanding concatenates skeleton, tensor, skeleton, tensor.
docs/formats/packed-graph.md has the layout.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import BinaryIO

import numpy as np

from edgekd.core.canonical import bounded_json, canonical_json, is_sha256
from edgekd.core.file_view import FileView
from edgekd.core.formats import fp4x
from edgekd.core.formats.inflate_stream import InflateStream
from edgekd.core.formats.onnx_bytes import FLOAT, INT8, Tensor, initializers

MAGIC = b"EDGEKDPG"
FORMAT = 0
MAX_BYTES = 2**31 - 1
"""Maximum bytes of an ONNX file: the limit of a Protocol Buffers message."""
MAX_HEADER = 1 << 22
MAX_VALUES = 1 << 17
"""Maximum values in a header, as `bounded_json` counts: of 26,000 large initializers."""
MIN_CUT = 64
"""Minimum bytes of a tensor that is cut out."""
MAX_COLUMNS = 1 << 20
"""Maximum weights of a channel in fp4x, of which some are decoded together; 25,000 are many."""
_MAX_ELEMENTS = 1 << 18
"""Elements of a tensor that `expand` decodes together, but for long rows."""
ENCODINGS = ("fp4x", "float16", "raw")
SKELETON = "skeleton"
HEADER = "header"
"""Name of the header in `parts`."""

_PREFIX = struct.Struct("<8sIIII")  # magic, format, CRC-32 of what follows, stored and expanded length of the header
_CHUNK = 1 << 16
_WIDTHS = {FLOAT: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # bytes; 1 for other types


@dataclass(frozen=True)
class Section:
    """Size of one tensor. stored_bytes: in the file; the last section is the skeleton, without a shape.

    Tensors share streams, whose bits do not end with a tensor: stored_bytes are accurate to a few bytes.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    stored_bytes: int
    expanded_bytes: int


@dataclass(frozen=True)
class _CutTensor:
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
            weights, multipliers = fp4x.packed_bytes((self.rows, self.columns))
            return [("fp4x-weights", weights), ("fp4x-multipliers", multipliers)]
        return [(f"bytes-{self.columns}-{place}", self.rows) for place in range(self.columns)]


@dataclass(frozen=True)
class _Header:
    """length: bytes of the ONNX file. streams: name and stored bytes of each, in order."""

    length: int
    sha256: str
    streams: tuple[tuple[str, int], ...]
    cuts: tuple[_CutTensor, ...]

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


def pack(onnx: bytes) -> bytes:
    """Pack an ONNX file; deterministic for a version of zlib.

    Initializers without raw data, such as external ones, and those of subgraphs stay in the skeleton.
    Raises ValueError where `onnx` is no Protocol Buffers message, or longer than MAX_BYTES.
    """
    if len(onnx) > MAX_BYTES:
        raise ValueError(f"expected an ONNX file of at most {MAX_BYTES} bytes, found {len(onnx)}")
    collected: dict[str, list[bytes]] = defaultdict(list)
    cuts, offset = [], 0
    for tensor in initializers(onnx):
        if tensor.end - tensor.begin < MIN_CUT:
            continue
        encoding, rows, columns, parts = _encode(tensor, onnx[tensor.begin : tensor.end])
        cuts.append(_CutTensor(tensor.begin - offset, encoding, rows, columns))
        for place, (name, _) in enumerate(cuts[-1].streams):
            collected[name].append(parts[place])
        collected[SKELETON].append(onnx[offset : tensor.begin])
        offset = tensor.end
    collected[SKELETON].append(onnx[offset:])
    streams = {name: _deflated(b"".join(parts), name) for name, parts in sorted(collected.items())}
    lengths = tuple((name, len(stored)) for name, stored in streams.items())
    header = _header_json(_Header(len(onnx), hashlib.sha256(onnx).hexdigest(), lengths, tuple(cuts)))
    if len(header) > MAX_HEADER:
        raise ValueError(f"too many initializers: expected a header of at most {MAX_HEADER} bytes, found {len(header)}")
    return _assembled(header, streams.values())


def parts(data: bytes) -> dict[str, bytes]:
    """Return header and expanded streams of a packed graph, by name, in order. Raises ValueError."""
    return {name: b"".join(chunks) for name, chunks in expanded_parts(data)}


def expanded_parts(data: bytes | FileView) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield what `parts` returns, part by part, each in small chunks. Raises ValueError."""
    header, streams = _opened(data, MAX_BYTES)
    yield HEADER, iter((_header_json(header),))
    for name, count in header.expanded.items():
        yield name, streams[name].chunks(count)


def assemble(expanded: Mapping[str, bytes]) -> bytes:
    """Return the packed graph of these parts, by this machine's zlib. Raises ValueError where they do not fit."""
    spool = io.BytesIO()
    packer = PartsPacker(expanded.get(HEADER, b""), spool)
    if [HEADER, *packer.lengths] != list(expanded):
        raise ValueError("expected the streams of the header, found others")
    for name in packer.lengths:
        content = expanded[name]
        packer.add(name, (content[at : at + _CHUNK] for at in range(0, len(content), _CHUNK)))
    return b"".join(packer.content())


class PartsPacker:
    """Packs the parts of a graph one after the other, in memory that does not depend on their length.

    lengths: bytes of each stream, by its name, in the order in which they are to be added; spool: an empty file that
    keeps the packed streams.
    """

    def __init__(self, header: bytes, spool: BinaryIO) -> None:
        """Begin with the header. Raises ValueError where it is damaged."""
        self.lengths: Mapping[str, int] = _header(header).expanded
        self._spool = spool
        self._expanded_header = len(header)
        self._stored_header = _deflated(header, HEADER)
        self._checksum = zlib.crc32(self._stored_header)

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
        """Add the next stream. Raises ValueError where it has another length than in the header."""
        deflate, length = _deflater(name), 0
        for chunk in chunks:
            length += len(chunk)
            self._store(deflate.compress(chunk))
        self._store(deflate.flush())
        if length != self.lengths[name]:
            raise ValueError(f"expected {self.lengths[name]} bytes of {name}, found {length}")

    def content(self) -> Iterator[bytes]:
        """Yield the packed graph, after all streams were added."""
        yield _prefix(self._checksum, self._stored_header, self._expanded_header)
        yield self._stored_header
        self._spool.seek(0)
        yield from iter(lambda: self._spool.read(_CHUNK), b"")

    def _store(self, content: bytes) -> None:
        self._checksum = zlib.crc32(content, self._checksum)
        self._spool.write(content)


def _assembled(header: bytes, streams: Iterable[bytes]) -> bytes:
    stored = _deflated(header, HEADER)
    content = b"".join((stored, *streams))
    return _prefix(zlib.crc32(content), stored, len(header)) + content


def _prefix(checksum: int, stored_header: bytes, expanded_header: int) -> bytes:
    return _PREFIX.pack(MAGIC, FORMAT, checksum, len(stored_header), expanded_header)


def unpack(data: bytes, limit: int = MAX_BYTES) -> bytes:
    """Expand a packed graph to its ONNX file. Raises ValueError where it is damaged, or longer than `limit`.

    Memory grows with the content of the streams, not with the lengths in the header.
    """
    return _unpack(data, limit)[0]


def expand(data: bytes | FileView, limit: int = MAX_BYTES) -> Iterator[bytes]:
    """Yield what `unpack` returns, in small pieces and bounded memory. Raises ValueError, of the content at its end."""
    header, streams = _opened(data, limit)
    digest = hashlib.sha256()
    for piece in _pieces(header, streams, [], max_elements=_MAX_ELEMENTS):
        digest.update(piece)
        yield piece
    _require_same(header, digest.hexdigest())


def expanded_bytes(data: bytes | FileView, limit: int = MAX_BYTES) -> int:
    """Return the length of the ONNX file by the header. Raises ValueError where that is damaged, or above `limit`."""
    return _opened(data, limit)[0].length


def sections(data: bytes) -> list[Section]:
    """Return the sizes of the tensors, in file order. Raises ValueError where `unpack` does."""
    onnx, cuts, stored = _unpack(data, MAX_BYTES)
    ends, offset = {}, 0
    for cut, count in zip(cuts, stored):  # noqa: B905 strict= is Python 3.10
        offset += cut.gap + cut.expanded
        ends[offset] = cut, count
    packed = [(tensor, *ends[tensor.end]) for tensor in initializers(onnx) if tensor.end in ends]
    listed = [Section(tensor.name, tensor.shape, cut.encoding, count, cut.expanded) for tensor, cut, count in packed]
    skeleton = len(onnx) - sum(cut.expanded for cut in cuts)
    return [*listed, Section("", (), SKELETON, stored[-1], skeleton)]


def _unpack(data: bytes, limit: int) -> tuple[bytes, tuple[_CutTensor, ...], list[int]]:
    """Return the ONNX file; its cuts; the stored bytes of each cut, and last of the skeleton."""
    header, streams = _opened(data, limit)
    stored: list[int] = []
    onnx = b"".join(_pieces(header, streams, stored))
    _require_same(header, hashlib.sha256(onnx).hexdigest())
    return onnx, header.cuts, stored


def _require_same(header: _Header, sha256: str) -> None:
    if sha256 != header.sha256:
        raise ValueError("the ONNX file has another SHA-256 than the one it was packed from")


def _pieces(
    header: _Header, streams: Mapping[str, InflateStream], stored: list[int], max_elements: int | None = None
) -> Iterator[bytes]:
    """Yield the ONNX file. stored: gets the stored bytes of each cut, and last of the skeleton.

    max_elements: of a tensor that are decoded together; None for all of them.
    """
    remaining = header.skeleton
    for cut in header.cuts:
        remaining -= cut.gap
        yield from streams[SKELETON].steps(cut.gap)
        used = [streams[name] for name, _ in cut.streams]
        before = sum(stream.consumed for stream in used)
        # Two rows of an odd number of nibbles end with a byte.
        step = cut.rows if max_elements is None else max(max_elements // cut.columns // 2 * 2, 2)
        for first in range(0, cut.rows, step):
            part = replace(cut, rows=min(step, cut.rows - first))
            sizes = [count for _, count in part.streams]
            yield _decoded(part, [stream.read(count) for stream, count in zip(used, sizes)])  # noqa: B905 Python 3.10
        stored.append(sum(stream.consumed for stream in used) - before)
    yield from streams[SKELETON].steps(remaining)
    for stream in streams.values():
        stream.finish()
    stored.append(streams[SKELETON].consumed)


def _encode(tensor: Tensor, raw: bytes) -> tuple[str, int, int, list[bytes]]:
    """Return encoding, rows, columns, and the bytes for each of its streams, of a tensor's raw data."""
    width, count = _WIDTHS.get(tensor.data_type, 1), prod(tensor.shape)
    if count * width != len(raw):  # not a valid tensor, but bytes all the same
        width = 1
    elif tensor.data_type == INT8 and len(tensor.shape) >= 2:
        codes = np.frombuffer(raw, np.int8).reshape(tensor.shape[0], -1)
        split, multipliers = fp4x.packed_bytes(codes.shape)
        if split + multipliers < len(raw) and codes.shape[1] <= MAX_COLUMNS and fp4x.representable(codes):
            packed = fp4x.pack(codes)
            return "fp4x", codes.shape[0], codes.shape[1], [packed[:split], packed[split:]]
    elif tensor.data_type == FLOAT:
        wide = np.frombuffer(raw, "<f4")
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = wide.astype("<f2")
        # Not for NaN, whose bits depend on the processor.
        if not np.isnan(wide).any() and narrow.astype("<f4").tobytes() == raw:
            return "float16", count, 2, _planes(narrow.tobytes(), 2)
    return "raw", len(raw) // width, width, _planes(raw, width)


def _decoded(cut: _CutTensor, parts: list[bytes]) -> bytes:
    if cut.encoding == "fp4x":
        return fp4x.unpack(b"".join(parts), (cut.rows, cut.columns)).tobytes()
    joined = np.stack([np.frombuffer(part, np.uint8) for part in parts], axis=1).tobytes()
    return np.frombuffer(joined, "<f2").astype("<f4").tobytes() if cut.encoding == "float16" else joined


def _planes(raw: bytes, width: int) -> list[bytes]:
    return [raw[place::width] for place in range(width)]


def _deflated(content: bytes, name: str) -> bytes:
    deflate = _deflater(name)
    return deflate.compress(content) + deflate.flush()


def _deflater(name: str) -> zlib._Compress:
    # Weights hardly repeat: matches only spoil their Huffman codes. Names and nodes do repeat.
    strategy = zlib.Z_DEFAULT_STRATEGY if name in (HEADER, SKELETON) else zlib.Z_RLE
    return zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)


def _header_json(header: _Header) -> bytes:
    cuts = [[cut.gap, cut.encoding, cut.rows, cut.columns] for cut in header.cuts]
    document = {"length": header.length, "sha256": header.sha256, "streams": header.streams, "tensors": cuts}
    return canonical_json(document)


def _opened(data: bytes | FileView, limit: int) -> tuple[_Header, dict[str, InflateStream]]:
    """Open header and streams of a packed graph, checked by each other and by the length of the file."""
    if len(data) < _PREFIX.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"not a packed graph: expected a file that begins with {MAGIC.decode()}")
    _, version, checksum, stored, expanded = _PREFIX.unpack(bytes(data[: _PREFIX.size]))
    if version != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {version}: update edgekd")
    content = (memoryview(data) if isinstance(data, bytes) else data)[_PREFIX.size :]
    found = 0
    for at in range(0, len(content), _CHUNK):
        found = zlib.crc32(bytes(content[at : at + _CHUNK]), found)
    if found != checksum:
        raise ValueError("cut short or damaged: its content has another checksum")
    if expanded > MAX_HEADER:
        raise ValueError(f"expected a header of at most {MAX_HEADER} bytes, found {expanded}")
    head = InflateStream(content[:stored])
    header = _header(head.read(expanded))
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


def _header(content: bytes) -> _Header:
    """Parse a header. Raises ValueError where it is not in canonical form, or numbers disagree."""
    try:
        document = bounded_json(content, MAX_VALUES)
        header = _Header(
            document["length"],
            document["sha256"],
            tuple((name, length) for name, length in document["streams"]),
            tuple(_CutTensor(*row) for row in document["tensors"]),
        )
        same = _header_json(header) == content
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

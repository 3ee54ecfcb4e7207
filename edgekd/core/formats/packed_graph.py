"""A packed graph: an ONNX file, compressed without loss, and expanded without the onnx package.

The content of every large initializer is cut out of the file, and stored in the smallest lossless encoding; the rest is
the skeleton. Both are compressed with DEFLATE. Expanding concatenates skeleton, tensor, skeleton, tensor.
docs/formats/packed-graph.md has the layout.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import BinaryIO

import numpy as np

from edgekd.core.file_view import FileView
from edgekd.core.formats import fp4x
from edgekd.core.formats.fp4x_size import packed_bytes
from edgekd.core.formats.inflate_stream import InflateStream
from edgekd.core.formats.onnx_bytes import FLOAT, INT8, Tensor, initializers
from edgekd.core.formats.packed_layout import (
    CHUNK,
    FORMAT,
    MAGIC,
    MAX_BYTES,
    MAX_COLUMNS,
    MAX_HEADER,
    PREFIX,
    SKELETON,
    Cut,
    Header,
    header_json,
    open_packed,
    read_header,
)

MIN_CUT = 64
"""Minimum bytes of a tensor that is cut out."""
_MAX_ELEMENTS = 1 << 18
"""Elements of a tensor that `expand` decodes together, but for long rows."""
HEADER = "header"
"""Name of the header in `parts`."""
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
        cuts.append(Cut(tensor.begin - offset, encoding, rows, columns))
        for place, (name, _) in enumerate(cuts[-1].streams):
            collected[name].append(parts[place])
        collected[SKELETON].append(onnx[offset : tensor.begin])
        offset = tensor.end
    collected[SKELETON].append(onnx[offset:])
    streams = {name: _deflated(b"".join(parts), name) for name, parts in sorted(collected.items())}
    lengths = tuple((name, len(stored)) for name, stored in streams.items())
    header = header_json(Header(len(onnx), hashlib.sha256(onnx).hexdigest(), lengths, tuple(cuts)))
    if len(header) > MAX_HEADER:
        raise ValueError(f"too many initializers: expected a header of at most {MAX_HEADER} bytes, found {len(header)}")
    return _assembled(header, streams.values())


def parts(data: bytes) -> dict[str, bytes]:
    """Return header and expanded streams of a packed graph, by name, in order. Raises ValueError."""
    return {name: b"".join(chunks) for name, chunks in expanded_parts(data)}


def expanded_parts(data: bytes | FileView) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield what `parts` returns, part by part, each in small chunks. Raises ValueError."""
    header, streams = open_packed(data, MAX_BYTES)
    yield HEADER, iter((header_json(header),))
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
        packer.add(name, (content[at : at + CHUNK] for at in range(0, len(content), CHUNK)))
    return b"".join(packer.content())


class PartsPacker:
    """Packs the parts of a graph one after the other, in memory that does not depend on their length.

    lengths: bytes of each stream, by its name, in the order in which they are to be added; spool: an empty file that
    keeps the packed streams.
    """

    def __init__(self, header: bytes, spool: BinaryIO) -> None:
        """Begin with the header. Raises ValueError where it is damaged."""
        self.lengths: Mapping[str, int] = read_header(header).expanded
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
        yield from iter(lambda: self._spool.read(CHUNK), b"")

    def _store(self, content: bytes) -> None:
        self._checksum = zlib.crc32(content, self._checksum)
        self._spool.write(content)


def _assembled(header: bytes, streams: Iterable[bytes]) -> bytes:
    stored = _deflated(header, HEADER)
    content = b"".join((stored, *streams))
    return _prefix(zlib.crc32(content), stored, len(header)) + content


def _prefix(checksum: int, stored_header: bytes, expanded_header: int) -> bytes:
    return PREFIX.pack(MAGIC, FORMAT, checksum, len(stored_header), expanded_header)


def unpack(data: bytes, limit: int = MAX_BYTES) -> bytes:
    """Expand a packed graph to its ONNX file. Raises ValueError where it is damaged, or longer than `limit`.

    Memory grows with the content of the streams, not with the lengths in the header.
    """
    return _unpack(data, limit)[0]


def expand(data: bytes | FileView, limit: int = MAX_BYTES) -> Iterator[bytes]:
    """Yield what `unpack` returns, in small pieces and bounded memory. Raises ValueError, of the content at its end."""
    header, streams = open_packed(data, limit)
    digest = hashlib.sha256()
    for piece in _pieces(header, streams, [], max_elements=_MAX_ELEMENTS):
        digest.update(piece)
        yield piece
    _require_same(header, digest.hexdigest())


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


def _unpack(data: bytes, limit: int) -> tuple[bytes, tuple[Cut, ...], list[int]]:
    """Return the ONNX file; its cuts; the stored bytes of each cut, and last of the skeleton."""
    header, streams = open_packed(data, limit)
    stored: list[int] = []
    onnx = b"".join(_pieces(header, streams, stored))
    _require_same(header, hashlib.sha256(onnx).hexdigest())
    return onnx, header.cuts, stored


def _require_same(header: Header, sha256: str) -> None:
    if sha256 != header.sha256:
        raise ValueError("the ONNX file has another SHA-256 than the one it was packed from")


def _pieces(
    header: Header, streams: Mapping[str, InflateStream], stored: list[int], max_elements: int | None = None
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
        split, multipliers = packed_bytes(codes.shape)
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


def _decoded(cut: Cut, parts: list[bytes]) -> bytes:
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

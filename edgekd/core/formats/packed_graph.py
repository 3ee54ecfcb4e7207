"""A packed graph: an ONNX file, compressed without loss, and expanded without the onnx package.

The content of every large initializer is cut out of the file, and stored in the smallest lossless encoding; the rest is
the skeleton. Both are compressed with DEFLATE. Expanding concatenates skeleton, tensor, skeleton, tensor.
docs/reference/formats/packed-graph.md has the layout.

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
from edgekd.core.formats import coded_int8, fp4x
from edgekd.core.formats.fp4x_size import packed_bytes
from edgekd.core.formats.inflate_stream import InflateStream
from edgekd.core.formats.onnx_bytes import FLOAT, INT8, Tensor, initializers
from edgekd.core.formats.packed_layout import (
    CHUNK,
    CODED,
    MAGIC,
    MAX_BYTES,
    MAX_COLUMNS,
    MAX_HEADER,
    PREFIX,
    SKELETON,
    SYMBOLS,
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
        cut, content = _encode(tensor, onnx[tensor.begin : tensor.end], tensor.begin - offset)
        cuts.append(cut)
        for name, part in content.items():
            collected[name].append(part)
        collected[SKELETON].append(onnx[offset : tensor.begin])
        offset = tensor.end
    collected[SKELETON].append(onnx[offset:])
    streams = {name: _deflated(b"".join(parts), name) for name, parts in sorted(collected.items())}
    lengths = tuple((name, len(stored)) for name, stored in streams.items())
    header = Header(len(onnx), hashlib.sha256(onnx).hexdigest(), lengths, tuple(cuts))
    if header.format:
        header = replace(header, symbols=tuple(sum(map(len, collected[name])) for name in SYMBOLS))
    text = header_json(header)
    if len(text) > MAX_HEADER:
        raise ValueError(f"too many initializers: expected a header of at most {MAX_HEADER} bytes, found {len(text)}")
    return _assembled(header.format, text, streams.values())


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
        parsed = read_header(header)
        self.lengths: Mapping[str, int] = parsed.expanded
        self._format = parsed.format
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
        yield _prefix(self._format, self._checksum, self._stored_header, self._expanded_header)
        yield self._stored_header
        self._spool.seek(0)
        yield from iter(lambda: self._spool.read(CHUNK), b"")

    def _store(self, content: bytes) -> None:
        self._checksum = zlib.crc32(content, self._checksum)
        self._spool.write(content)


def _assembled(version: int, header: bytes, streams: Iterable[bytes]) -> bytes:
    stored = _deflated(header, HEADER)
    content = b"".join((stored, *streams))
    return _prefix(version, zlib.crc32(content), stored, len(header)) + content


def _prefix(version: int, checksum: int, stored_header: bytes, expanded_header: int) -> bytes:
    return PREFIX.pack(MAGIC, version, checksum, len(stored_header), expanded_header)


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

    max_elements: of a tensor that are decoded together, if not in coded INT8; None for all of them.
    """
    remaining = header.skeleton
    for cut in header.cuts:
        remaining -= cut.gap
        yield from streams[SKELETON].steps(cut.gap)
        used = [streams[name] for name in cut.used_streams if name in streams]
        before = sum(stream.consumed for stream in used)
        # The few bytes of a row and of all columns could claim gigabytes of coded INT8.
        elements = _MAX_ELEMENTS if cut.encoding == CODED else max_elements
        # Two rows of an odd number of nibbles end with a byte.
        step = cut.rows if elements is None else max(elements // cut.columns // 2 * 2, 2)
        parts = (replace(cut, rows=min(step, cut.rows - first)) for first in range(0, cut.rows, step))
        yield from _coded(cut, parts, streams) if cut.encoding == CODED else _uncoded(parts, streams)
        stored.append(sum(stream.consumed for stream in used) - before)
    yield from streams[SKELETON].steps(remaining)
    for stream in streams.values():
        stream.finish()
    stored.append(streams[SKELETON].consumed)


def _encode(tensor: Tensor, raw: bytes, gap: int) -> tuple[Cut, dict[str, bytes]]:
    """Return a tensor's cut, and its bytes for each stream, from its raw data."""
    width, count = _WIDTHS.get(tensor.data_type, 1), prod(tensor.shape)
    if count * width != len(raw):  # not a valid tensor, but bytes all the same
        width = 1
    elif tensor.data_type == INT8 and len(tensor.shape) >= 2:
        found = _encoded_int8(np.frombuffer(raw, np.int8).reshape(tensor.shape), gap)
        if found is not None:
            return found
    elif tensor.data_type == FLOAT:
        wide = np.frombuffer(raw, "<f4")
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = wide.astype("<f2")
        # Not for NaN, whose bits depend on the processor.
        if not np.isnan(wide).any() and narrow.astype("<f4").tobytes() == raw:
            return _in_planes(Cut(gap, "float16", count, 2), narrow.tobytes())
    return _in_planes(Cut(gap, "raw", len(raw) // width, width), raw)


def _encoded_int8(codes: np.ndarray, gap: int) -> tuple[Cut, dict[str, bytes]] | None:
    """Return cut and streams of codes int8 [O, ...] in fp4x or coded INT8; None where neither stores them."""
    rows = codes.reshape(len(codes), -1)
    split, multipliers = packed_bytes(rows.shape)
    if rows.shape[1] > MAX_COLUMNS:
        return None
    if split + multipliers < codes.size and fp4x.representable(rows):
        packed = fp4x.pack(rows)
        return Cut(gap, "fp4x", *rows.shape), {"fp4x-weights": packed[:split], "fp4x-multipliers": packed[split:]}
    coded = coded_int8.encode(codes)
    if coded is None:
        return None
    columns = coded.columns
    parts = {
        "coded-rows": coded.rows.tobytes(),
        "coded-columns": columns.inputs.tobytes() + columns.taps.tobytes(),
        "coded-steps": columns.steps.tobytes(),
        **{name: symbols for name, symbols in zip(SYMBOLS, coded.symbols) if symbols},  # noqa: B905 Python 3.10
    }
    return Cut(gap, CODED, *rows.shape, len(columns.taps)), parts


def _coded(cut: Cut, parts: Iterable[Cut], streams: Mapping[str, InflateStream]) -> Iterator[bytes]:
    """Yield the content of a tensor in coded INT8, in `parts` of some rows."""

    def symbols(index: int, count: int) -> bytes:
        if SYMBOLS[index] not in streams:
            raise ValueError(f"expected no symbols of class {index}, found {count}")
        return streams[SYMBOLS[index]].read(count)

    inputs = cut.columns // cut.taps
    steps = np.frombuffer(streams["coded-steps"].read(inputs), np.uint8)
    sizes = np.frombuffer(streams["coded-columns"].read(inputs + cut.taps), np.int8)
    columns = coded_int8.Columns(steps, sizes[:inputs], sizes[inputs:])
    for part in parts:
        rows = np.frombuffer(streams["coded-rows"].read(part.rows), np.int8)
        yield coded_int8.decode(rows, columns, symbols).tobytes()


def _uncoded(parts: Iterable[Cut], streams: Mapping[str, InflateStream]) -> Iterator[bytes]:
    """Yield the content of a tensor in another encoding, in `parts` of some rows."""
    for part in parts:
        stored = [streams[name].read(count) for name, count in part.streams]
        if part.encoding == "fp4x":
            yield fp4x.unpack(b"".join(stored), (part.rows, part.columns)).tobytes()
        else:
            joined = np.stack([np.frombuffer(each, np.uint8) for each in stored], axis=1).tobytes()
            yield np.frombuffer(joined, "<f2").astype("<f4").tobytes() if part.encoding == "float16" else joined


def _in_planes(cut: Cut, raw: bytes) -> tuple[Cut, dict[str, bytes]]:
    """Return a cut with the bytes of each significance."""
    return cut, {name: raw[place :: cut.columns] for place, (name, _) in enumerate(cut.streams)}


def _deflated(content: bytes, name: str) -> bytes:
    deflate = _deflater(name)
    return deflate.compress(content) + deflate.flush()


def _deflater(name: str) -> zlib._Compress:
    level, strategy = _DEFLATE_SETTINGS.get(name, (9, zlib.Z_RLE))
    return zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)


# Level and strategy of streams; that of the others finds runs alone. Names and nodes repeat. Weights hardly do, so that
# matches only spoil their Huffman codes. Symbols of coded INT8 have no runs that pay, except in class 0, nearly all of
# which are zero. Tables of positions among float16 weights repeat: a low level finds that, too, and bounds the time
# that the worst content takes on a device.
_DEFLATE_SETTINGS = {
    HEADER: (9, zlib.Z_DEFAULT_STRATEGY),
    SKELETON: (9, zlib.Z_DEFAULT_STRATEGY),
    **dict.fromkeys(("bytes-2-0", "bytes-2-1"), (4, zlib.Z_FILTERED)),
    **dict.fromkeys(SYMBOLS[1:], (9, zlib.Z_HUFFMAN_ONLY)),
}

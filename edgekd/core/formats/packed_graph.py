"""A packed graph: an ONNX file, compressed without loss, and expanded without the onnx package.

The content of every large initializer is cut out of the file, and stored in the smallest lossless encoding; the rest is
the skeleton. Both are compressed with DEFLATE. Expanding concatenates skeleton, tensor, skeleton, tensor.
docs/formats/packed-graph.md has the layout.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgekd.core.canonical import canonical_json
from edgekd.core.formats import fp4x
from edgekd.core.formats.onnx_bytes import FLOAT, INT8, Tensor, initializers

MAGIC = b"EDGEKDPG"
FORMAT = 0
MAX_BYTES = 2**31 - 1
"""Maximum bytes of an ONNX file: the limit of a Protocol Buffers message."""
MAX_HEADER = 1 << 22
MIN_CUT = 64
"""Minimum bytes of a tensor that is cut out."""
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
class _Cut:
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
    cuts: tuple[_Cut, ...]

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


class _Stream:
    """Reads a DEFLATE stream in small chunks, so that memory does not depend on claimed lengths."""

    def __init__(self, stored: memoryview) -> None:
        self._stored, self._fed = stored, 0
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def consumed(self) -> int:
        """Stored bytes that were used so far."""
        return self._fed - len(self._inflate.unconsumed_tail)

    def read(self, count: int) -> bytes:
        """Read `count` bytes. Raises ValueError where there are fewer, or the stream is damaged."""
        parts = []
        while count:
            part, more = self._step(min(count, _CHUNK))
            if not part and not more:
                raise ValueError("a stream ends early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Raise ValueError where the stream does not end."""
        while not self._inflate.eof:
            part, more = self._step(1)
            if part or not more:
                raise ValueError("a stream does not end where it should")
        if self._inflate.unused_data or self._inflate.unconsumed_tail or self._fed < len(self._stored):
            raise ValueError("something follows the end of a stream")

    def _step(self, count: int) -> tuple[bytes, bool]:
        """Decompress at most `count` bytes; return whether stored bytes were consumed, too."""
        if self._inflate.eof:
            return b"", False  # its unconsumed tail would be fed again and again
        stored: Any = self._inflate.unconsumed_tail
        if not stored:
            stored = self._stored[self._fed : self._fed + _CHUNK]
            self._fed += len(stored)
        try:
            return self._inflate.decompress(stored, count), bool(stored)
        except zlib.error as error:
            raise ValueError(f"a stream is damaged: {error}") from error


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
        cuts.append(_Cut(tensor.begin - offset, encoding, rows, columns))
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
    header, streams = _opened(data, MAX_BYTES)
    expanded = {HEADER: _header_json(header)}
    for name, count in header.expanded.items():
        expanded[name] = streams[name].read(count)
        streams[name].finish()
    return expanded


def assemble(expanded: Mapping[str, bytes]) -> bytes:
    """Return the packed graph of these parts, by this machine's zlib. Raises ValueError where they do not fit."""
    header = _header(expanded.get(HEADER, b""))
    if {name: len(part) for name, part in expanded.items() if name != HEADER} != header.expanded:
        raise ValueError("expected the streams of the header, found others")
    return _assembled(expanded[HEADER], [_deflated(expanded[name], name) for name, _ in header.streams])


def _assembled(header: bytes, streams: Iterable[bytes]) -> bytes:
    stored = _deflated(header, HEADER)
    content = b"".join((stored, *streams))
    return _PREFIX.pack(MAGIC, FORMAT, zlib.crc32(content), len(stored), len(header)) + content


def unpack(data: bytes, limit: int = MAX_BYTES) -> bytes:
    """Expand a packed graph to its ONNX file. Raises ValueError where it is damaged, or longer than `limit`.

    Memory grows with the content of the streams, not with the lengths in the header.
    """
    return _unpack(data, limit)[0]


def expanded_bytes(data: bytes) -> int:
    """Return the length of the ONNX file by the header. Raises ValueError where that is damaged."""
    return _opened(data, MAX_BYTES)[0].length


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


def _unpack(data: bytes, limit: int) -> tuple[bytes, tuple[_Cut, ...], list[int]]:
    """Return the ONNX file; its cuts; the stored bytes of each cut, and last of the skeleton."""
    header, streams = _opened(data, limit)
    parts, stored, remaining = [], [], header.skeleton
    for cut in header.cuts:
        remaining -= cut.gap
        parts.append(streams[SKELETON].read(cut.gap))
        used = [streams[name] for name, _ in cut.streams]
        before = sum(stream.consumed for stream in used)
        parts.append(_decoded(cut, [streams[name].read(count) for name, count in cut.streams]))
        stored.append(sum(stream.consumed for stream in used) - before)
    parts.append(streams[SKELETON].read(remaining))
    for stream in streams.values():
        stream.finish()
    onnx = b"".join(parts)
    if hashlib.sha256(onnx).hexdigest() != header.sha256:
        raise ValueError("the ONNX file has another SHA-256 than the one it was packed from")
    return onnx, header.cuts, [*stored, streams[SKELETON].consumed]


def _encode(tensor: Tensor, raw: bytes) -> tuple[str, int, int, list[bytes]]:
    """Return encoding, rows, columns, and the bytes for each of its streams, of a tensor's raw data."""
    width, count = _WIDTHS.get(tensor.data_type, 1), prod(tensor.shape)
    if count * width != len(raw):  # not a valid tensor, but bytes all the same
        width = 1
    elif tensor.data_type == INT8 and len(tensor.shape) >= 2:
        codes = np.frombuffer(raw, np.int8).reshape(tensor.shape[0], -1)
        split, multipliers = fp4x.packed_bytes(codes.shape)
        if split + multipliers < len(raw) and fp4x.representable(codes):
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


def _decoded(cut: _Cut, parts: list[bytes]) -> bytes:
    if cut.encoding == "fp4x":
        return fp4x.unpack(b"".join(parts), (cut.rows, cut.columns)).tobytes()
    joined = np.stack([np.frombuffer(part, np.uint8) for part in parts], axis=1).tobytes()
    return np.frombuffer(joined, "<f2").astype("<f4").tobytes() if cut.encoding == "float16" else joined


def _planes(raw: bytes, width: int) -> list[bytes]:
    return [raw[place::width] for place in range(width)]


def _deflated(content: bytes, name: str) -> bytes:
    # Weights hardly repeat: matches only spoil their Huffman codes. Names and nodes do repeat.
    strategy = zlib.Z_DEFAULT_STRATEGY if name in (HEADER, SKELETON) else zlib.Z_RLE
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return deflate.compress(content) + deflate.flush()


def _header_json(header: _Header) -> bytes:
    cuts = [[cut.gap, cut.encoding, cut.rows, cut.columns] for cut in header.cuts]
    document = {"length": header.length, "sha256": header.sha256, "streams": header.streams, "tensors": cuts}
    return canonical_json(document)


def _opened(data: bytes, limit: int) -> tuple[_Header, dict[str, _Stream]]:
    """Open header and streams of a packed graph, checked by each other and by the length of the file."""
    if len(data) < _PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"not a packed graph: expected a file that begins with {MAGIC.decode()}")
    _, version, checksum, stored, expanded = _PREFIX.unpack_from(data)
    if version != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {version}: update edgekd")
    content = memoryview(data)[_PREFIX.size :]
    if zlib.crc32(content) != checksum:
        raise ValueError("cut short or damaged: its content has another checksum")
    if expanded > MAX_HEADER:
        raise ValueError(f"expected a header of at most {MAX_HEADER} bytes, found {expanded}")
    head = _Stream(content[:stored])
    header = _header(head.read(expanded))
    head.finish()
    if header.length > limit:
        raise ValueError(f"expected an ONNX file of at most {limit} bytes, found {header.length}")
    streams, offset = {}, stored
    for name, length in header.streams:
        streams[name] = _Stream(content[offset : offset + length])
        offset += length
    if offset != len(content):
        raise ValueError(f"expected header and streams of {offset} bytes, found {len(content)}")
    return header, streams


def _header(content: bytes) -> _Header:
    """Parse a header. Raises ValueError where it is not in canonical form, or numbers disagree."""
    try:
        document = json.loads(content.decode("utf-8"), parse_int=_count)
        header = _Header(
            document["length"],
            document["sha256"],
            tuple((name, length) for name, length in document["streams"]),
            tuple(_Cut(*row) for row in document["tensors"]),
        )
        same = _header_json(header) == content
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"the header is damaged: {error!r}") from error
    counts = [header.length, *(length for _, length in header.streams)]
    counts += [number for cut in header.cuts for number in (cut.gap, cut.rows, cut.columns)]
    if not same or any(type(number) is not int for number in counts):
        raise ValueError("the header is not as edgekd writes it")
    for cut in header.cuts:
        fits = {"fp4x": cut.columns >= 1, "float16": cut.columns == 2, "raw": cut.columns in (1, 2, 4, 8)}
        if cut.encoding not in ENCODINGS or not fits[cut.encoding] or not cut.rows:
            raise ValueError(f"expected tensors in {', '.join(ENCODINGS)}, found {cut}")
    if sum(cut.gap for cut in header.cuts) > header.skeleton:
        raise ValueError("expected tensors that fit into the file, found larger ones")
    needed = {SKELETON, *(name for cut in header.cuts for name, _ in cut.streams)}
    if [name for name, _ in header.streams] != sorted(needed):
        raise ValueError(f"expected the streams {sorted(needed)}, found others")
    return header


def _count(digits: str) -> int:
    if len(digits) > 10 or digits.startswith("-"):
        raise ValueError(f"expected a count, found {digits[:20]}")
    return int(digits)

"""A packed graph: an ONNX file in fewer bytes, which expands to exactly that file without the onnx package.

The content of every large initializer is cut out of the file's bytes and stored in the smallest encoding that gives it
back bit for bit; what is left is the skeleton. Both are entropy-coded with DEFLATE. Expanding is splicing: skeleton,
tensor, skeleton, tensor. docs/formats/packed-graph.md has the layout.

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
from typing import Any

import numpy as np

from edgekd.core.canonical import canonical_json
from edgekd.core.formats import fp4x
from edgekd.core.formats.onnx_bytes import FLOAT, INT8, Tensor, initializers

MAGIC = b"EDGEKDPG"
FORMAT = 0
MAX_BYTES = 2**31 - 1
"""Of an ONNX file: what one Protocol Buffers message may have."""
MAX_HEADER = 1 << 22
SMALLEST_CUT = 64
"""Bytes of a tensor from which cutting it out pays."""
ENCODINGS = ("fp4x", "float16", "raw")
SKELETON = "skeleton"
HEADER = "header"
"""What `parts` calls the header."""

_PREFIX = struct.Struct("<8sIIII")  # magic, format, CRC-32 of what follows, stored and expanded length of the header
_CHUNK = 1 << 16
_WIDTHS = {FLOAT: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # bytes of the others: taken as 1


@dataclass(frozen=True)
class Section:
    """What one tensor takes. `stored_bytes` are those of the file; the last section is the skeleton, without a shape.

    Tensors share streams, whose bits do not end with a tensor: its `stored_bytes` are right to within a few.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    stored_bytes: int
    expanded_bytes: int


@dataclass(frozen=True)
class _Cut:
    """A tensor that was cut out, `gap` bytes of skeleton after the one before.

    fp4x: `rows` channels of `columns` weights. float16 and raw: `rows` elements that take `columns` bytes when stored.
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
        """The streams it is stored in, and how many bytes it has of each: bytes of one significance stay together."""
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
    """Reads a DEFLATE stream a few bytes at a time: what it never holds is a length that somebody claimed."""

    def __init__(self, stored: memoryview) -> None:
        self._stored, self._fed = stored, 0
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def consumed(self) -> int:
        """Stored bytes that were needed so far."""
        return self._fed - len(self._inflate.unconsumed_tail)

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Raises ValueError where there are fewer, or the stream is damaged."""
        parts = []
        while count:
            part, more = self._step(min(count, _CHUNK))
            if not part and not more:
                raise ValueError("a stream ends early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Raises ValueError where something follows."""
        while not self._inflate.eof:
            part, more = self._step(1)
            if part or not more:
                raise ValueError("a stream does not end where it should")
        if self._inflate.unused_data or self._inflate.unconsumed_tail or self._fed < len(self._stored):
            raise ValueError("something follows the end of a stream")

    def _step(self, count: int) -> tuple[bytes, bool]:
        """At most `count` bytes, and whether stored bytes were there to make more of."""
        if self._inflate.eof:
            return b"", False  # it may still hold a tail, which it would take in again and again
        stored: Any = self._inflate.unconsumed_tail
        if not stored:
            stored = self._stored[self._fed : self._fed + _CHUNK]
            self._fed += len(stored)
        try:
            return self._inflate.decompress(stored, count), bool(stored)
        except zlib.error as error:
            raise ValueError(f"a stream is damaged: {error}") from error


def pack(onnx: bytes) -> bytes:
    """The packed form of an ONNX file; the same file and zlib give the same bytes.

    Initializers without raw data, such as those in files of their own, and those of subgraphs stay in the skeleton.
    Raises ValueError where `onnx` is no Protocol Buffers message, or longer than MAX_BYTES.
    """
    if len(onnx) > MAX_BYTES:
        raise ValueError(f"expected an ONNX file of at most {MAX_BYTES} bytes, found {len(onnx)}")
    collected: dict[str, list[bytes]] = defaultdict(list)
    cuts, at = [], 0
    for found in initializers(onnx):
        if found.end - found.begin < SMALLEST_CUT:
            continue
        encoding, rows, columns, parts = _encode(found, onnx[found.begin : found.end])
        cuts.append(_Cut(found.begin - at, encoding, rows, columns))
        for place, (name, _) in enumerate(cuts[-1].streams):
            collected[name].append(parts[place])
        collected[SKELETON].append(onnx[at : found.begin])
        at = found.end
    collected[SKELETON].append(onnx[at:])
    streams = {name: _deflated(b"".join(parts), name) for name, parts in sorted(collected.items())}
    lengths = tuple((name, len(stored)) for name, stored in streams.items())
    header = _header_json(_Header(len(onnx), hashlib.sha256(onnx).hexdigest(), lengths, tuple(cuts)))
    if len(header) > MAX_HEADER:
        raise ValueError(f"too many initializers: expected a header of at most {MAX_HEADER} bytes, found {len(header)}")
    return _assembled(header, streams.values())


def parts(data: bytes) -> dict[str, bytes]:
    """A packed graph without its entropy coding: header and streams, by name, in order. Raises ValueError."""
    header, streams = _opened(data, MAX_BYTES)
    found = {HEADER: _header_json(header)}
    for name, count in header.expanded.items():
        found[name] = streams[name].read(count)
        streams[name].finish()
    return found


def assemble(found: Mapping[str, bytes]) -> bytes:
    """The packed graph of these parts, as this machine's zlib codes them. Raises ValueError where there is none."""
    header = _header(found.get(HEADER, b""))
    if {name: len(part) for name, part in found.items() if name != HEADER} != header.expanded:
        raise ValueError("expected the streams that the header tells of, found others")
    return _assembled(found[HEADER], [_deflated(found[name], name) for name, _ in header.streams])


def _assembled(header: bytes, streams: Iterable[bytes]) -> bytes:
    stored = _deflated(header, HEADER)
    content = b"".join((stored, *streams))
    return _PREFIX.pack(MAGIC, FORMAT, zlib.crc32(content), len(stored), len(header)) + content


def unpack(data: bytes, limit: int = MAX_BYTES) -> bytes:
    """The ONNX file that `data` was packed from. Raises ValueError where that is not so, or it is longer than `limit`.

    Memory grows with what the streams really hold, not with what the header claims.
    """
    return _unpack(data, limit)[0]


def expanded_bytes(data: bytes) -> int:
    """How long the ONNX file is that `data` was packed from, by its header. Raises ValueError where that is damaged."""
    return _opened(data, MAX_BYTES)[0].length


def sections(data: bytes) -> list[Section]:
    """What takes the room, in the order of the file. Raises ValueError where `unpack` does."""
    onnx, cuts, stored = _unpack(data, MAX_BYTES)
    ends, at = {}, 0
    for index, cut in enumerate(cuts):
        at += cut.gap + cut.expanded
        ends[at] = cut, stored[index]
    told = [(found, *ends[found.end]) for found in initializers(onnx) if found.end in ends]
    listed = [Section(found.name, found.shape, cut.encoding, taken, cut.expanded) for found, cut, taken in told]
    skeleton = len(onnx) - sum(cut.expanded for cut in cuts)
    return [*listed, Section("", (), SKELETON, stored[-1], skeleton)]


def _unpack(data: bytes, limit: int) -> tuple[bytes, tuple[_Cut, ...], list[int]]:
    """The ONNX file; what was cut from it; the stored bytes of each cut, and last of the skeleton."""
    header, streams = _opened(data, limit)
    parts, stored, left = [], [], header.skeleton
    for cut in header.cuts:
        left -= cut.gap
        parts.append(streams[SKELETON].read(cut.gap))
        used = [streams[name] for name, _ in cut.streams]
        before = sum(stream.consumed for stream in used)
        parts.append(_decoded(cut, [streams[name].read(count) for name, count in cut.streams]))
        stored.append(sum(stream.consumed for stream in used) - before)
    parts.append(streams[SKELETON].read(left))
    for stream in streams.values():
        stream.finish()
    onnx = b"".join(parts)
    if hashlib.sha256(onnx).hexdigest() != header.sha256:
        raise ValueError("the ONNX file has another SHA-256 than the one it was packed from")
    return onnx, header.cuts, [*stored, streams[SKELETON].consumed]


def _encode(found: Tensor, raw: bytes) -> tuple[str, int, int, list[bytes]]:
    """Encoding, rows, columns, and the bytes for each of its streams, of a tensor's raw data."""
    width = _WIDTHS.get(found.data_type, 1)
    count = 1
    for side in found.shape:
        count *= side
    if count * width != len(raw):  # not a valid tensor, but bytes all the same
        width = 1
    elif found.data_type == INT8 and len(found.shape) >= 2:
        codes = np.frombuffer(raw, np.int8).reshape(found.shape[0], -1)
        split, multipliers = fp4x.packed_bytes(codes.shape)
        if split + multipliers < len(raw) and fp4x.representable(codes):
            packed = fp4x.pack(codes)
            return "fp4x", codes.shape[0], codes.shape[1], [packed[:split], packed[split:]]
    elif found.data_type == FLOAT:
        wide = np.frombuffer(raw, "<f4")
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = wide.astype("<f2")
        # Not for NaN: what becomes of its bits depends on the processor.
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
    # Weights hardly ever repeat, and looking for it only spoils their Huffman codes; names and nodes do.
    strategy = zlib.Z_DEFAULT_STRATEGY if name in (HEADER, SKELETON) else zlib.Z_RLE
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return deflate.compress(content) + deflate.flush()


def _header_json(header: _Header) -> bytes:
    cuts = [[cut.gap, cut.encoding, cut.rows, cut.columns] for cut in header.cuts]
    told = {"length": header.length, "sha256": header.sha256, "streams": header.streams, "tensors": cuts}
    return canonical_json(told)


def _opened(data: bytes, limit: int) -> tuple[_Header, dict[str, _Stream]]:
    """Header and streams of a packed graph, checked against each other and against the length of the file."""
    if len(data) < _PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"not a packed graph: expected a file that begins with {MAGIC.decode()}")
    _, version, checksum, stored, expanded = _PREFIX.unpack_from(data)
    if version != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {version}: update edgekd")
    content = memoryview(data)[_PREFIX.size :]
    if zlib.crc32(content) != checksum:
        raise ValueError("cut short or damaged: what is in it has another checksum")
    if expanded > MAX_HEADER:
        raise ValueError(f"expected a header of at most {MAX_HEADER} bytes, found {expanded}")
    head = _Stream(content[:stored])
    header = _header(head.read(expanded))
    head.finish()
    if header.length > limit:
        raise ValueError(f"expected an ONNX file of at most {limit} bytes, found {header.length}")
    streams, at = {}, stored
    for name, length in header.streams:
        streams[name] = _Stream(content[at : at + length])
        at += length
    if at != len(content):
        raise ValueError(f"expected header and streams of {at} bytes, found {len(content)}")
    return header, streams


def _header(content: bytes) -> _Header:
    """The header in its JSON. Raises ValueError where `_header_json` cannot have made it, or numbers disagree."""
    try:
        found = json.loads(content.decode("utf-8"), parse_int=_count)
        header = _Header(
            found["length"],
            found["sha256"],
            tuple((name, length) for name, length in found["streams"]),
            tuple(_Cut(*row) for row in found["tensors"]),
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

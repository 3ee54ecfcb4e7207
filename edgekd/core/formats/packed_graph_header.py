"""The header of a packed graph: where tensors were cut out of an ONNX file, and the streams that hold them.

docs/formats/packed-graph.md has the layout. Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekd.core.canonical import bounded_json, canonical_json, is_sha256
from edgekd.core.formats import coded_int8, fp4x

MAX_VALUES = 1 << 17
"""Maximum values in a header, as `bounded_json` counts: of 26,000 large initializers."""
MAX_COLUMNS = 1 << 20
"""Maximum weights of a channel in fp4x or coded INT8, of which some are decoded together; 25,000 are many."""
CODED = "coded-int8"
ENCODINGS = (CODED, "fp4x", "float16", "raw")
SKELETON = "skeleton"
SYMBOLS = tuple(f"coded-{index:02}" for index in range(coded_int8.CLASSES))
"""Names of the streams with the symbols of coded INT8, by class."""


@dataclass(frozen=True)
class CutTensor:
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
            weights, multipliers = fp4x.packed_bytes((self.rows, self.columns))
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
    cuts: tuple[CutTensor, ...]
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
    """Return the header as it is stored."""
    cuts = []
    for cut in header.cuts:
        taps = [cut.taps] if cut.encoding == CODED else []
        cuts.append([cut.gap, cut.encoding, cut.rows, cut.columns, *taps])
    document = {"length": header.length, "sha256": header.sha256, "streams": header.streams, "tensors": cuts}
    return canonical_json({**document, "symbols": header.symbols} if header.format else document)


def parse_header(content: bytes) -> Header:
    """Parse a header. Raises ValueError where it is not in canonical form, or numbers disagree."""
    try:
        document = bounded_json(content, MAX_VALUES)
        header = Header(
            document["length"],
            document["sha256"],
            tuple((name, length) for name, length in document["streams"]),
            tuple(CutTensor(*row) for row in document["tensors"]),
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

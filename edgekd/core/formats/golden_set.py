"""A golden set: frames for the self-test of a network, and its output at selected candidates.

Frames are stored coarsely, because only their equality on both sides matters. The layout:
docs/reference/formats/golden-set.md.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edgekd.core.canonical import canonical_json

MAGIC = b"EDGEKDGS"
FORMAT = 0
PRECISIONS = ("float", "int8")
MAX_BYTES = 1 << 24
"""Maximum bytes of the expanded content."""
MAX_HEADER = 1 << 10
BITS = 5
"""Bits of a colour in a stored frame."""

_PREFIX = struct.Struct("<8sII")  # magic, format, length of the header
_COUNTS = ("features", "frames", "height", "places", "width", "zoom")
_FIELDS = (*_COUNTS, "output", "precision", "tolerance")


@dataclass(frozen=True, eq=False)
class GoldenSet:
    """n frames, and m rows of f numbers for each.

    precision: `int8` where the network has quantized layers, else `float`; tolerance: the largest error of boxes and of
    scores, relative; output: the shape of the network's output;
    zoom: input pixels per pixel of a frame, in each direction; frames uint8 [n, h, w, 3] BGR;
    places uint32 [n, m]: indices of the selected candidates; values float16 [n, m, f]: their numbers.
    """

    precision: str
    tolerance: tuple[float, float]
    output: tuple[int, ...]
    zoom: int
    frames: np.ndarray
    places: np.ndarray
    values: np.ndarray

    def canvas(self, index: int, height: int, width: int) -> np.ndarray:
        """Return one frame as an input canvas uint8 [height, width, 3] BGR, the same on every machine."""
        rows = _grown(self.frames[index].astype(np.int32), self.zoom)
        grown = _grown(rows.transpose(1, 0, 2), self.zoom).transpose(1, 0, 2)
        return np.ascontiguousarray(grown[:height, :width].astype(np.uint8))


def coarse(frames: np.ndarray) -> np.ndarray:
    """Return frames uint8 with the bits of a colour that are stored."""
    cut: np.ndarray = frames >> (8 - BITS) << (8 - BITS)
    return cut


def to_bytes(golden: GoldenSet) -> bytes:
    """Return the file of a golden set whose frames are `coarse`; deterministic for a version of zlib."""
    count, height, width, _ = golden.frames.shape
    levels = golden.frames >> (8 - BITS)
    steps = np.diff(levels, axis=2, prepend=np.zeros((count, height, 1, 3), np.uint8))
    content = steps.tobytes() + golden.places.astype("<u4").tobytes() + golden.values.astype("<f2").tobytes()
    header = canonical_json(
        {
            "features": golden.values.shape[2],
            "frames": count,
            "height": height,
            "output": list(golden.output),
            "places": golden.places.shape[1],
            "precision": golden.precision,
            "tolerance": list(golden.tolerance),
            "width": width,
            "zoom": golden.zoom,
        }
    )
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return _PREFIX.pack(MAGIC, FORMAT, len(header)) + header + deflate.compress(content) + deflate.flush()


def from_bytes(data: bytes) -> GoldenSet:
    """Parse a golden set. Raises ValueError."""
    if len(data) < _PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"not a golden set: expected a file that begins with {MAGIC.decode()}")
    _, version, length = _PREFIX.unpack_from(data)
    if version != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {version}: update edgekd")
    if length > MAX_HEADER:
        raise ValueError(f"expected a header of at most {MAX_HEADER} bytes, found {length}")
    offset = _PREFIX.size + length
    header = _header(data[_PREFIX.size : offset])
    count, places = header["frames"], header["places"]
    parts = {
        "frames": ("u1", (count, header["height"], header["width"], 3)),
        "places": ("<u4", (count, places)),
        "values": ("<f2", (count, places, header["features"])),
    }
    sizes = {name: np.dtype(kind).itemsize * prod(shape) for name, (kind, shape) in parts.items()}
    content = _inflated(data[offset:], sum(sizes.values()))
    arrays, offset = {}, 0
    for name, (kind, shape) in parts.items():
        arrays[name] = np.frombuffer(content[offset : offset + sizes[name]], kind).reshape(shape)
        offset += sizes[name]
    levels = np.cumsum(arrays["frames"], axis=2, dtype=np.uint8)
    if levels.max() >> BITS or not np.isfinite(arrays["values"]).all():
        raise ValueError(f"expected colours of {BITS} bits and finite numbers, found others")
    return GoldenSet(
        precision=header["precision"],
        tolerance=tuple(header["tolerance"]),
        output=tuple(header["output"]),
        zoom=header["zoom"],
        frames=levels << (8 - BITS),
        places=arrays["places"],
        values=arrays["values"],
    )


def _grown(pixels: np.ndarray, zoom: int) -> np.ndarray:
    """Enlarge integers [n, ...] to [n * zoom, ...], linear between pixel centres, with exact rounding."""
    middles = 2 * np.arange(len(pixels) * zoom) + 1 - zoom  # in units of half an input pixel
    before, share = middles // (2 * zoom), (middles % (2 * zoom)).reshape(-1, *[1] * (pixels.ndim - 1))
    first, second = (pixels[np.clip(index, 0, len(pixels) - 1)] for index in (before, before + 1))
    grown: np.ndarray = ((2 * zoom - share) * first + share * second + zoom) // (2 * zoom)
    return grown


def _header(content: bytes) -> dict[str, Any]:
    """Parse a header. Raises ValueError where it is not in canonical form."""
    try:
        found = json.loads(content.decode("utf-8"))
        same = isinstance(found, dict) and set(found) == set(_FIELDS) and canonical_json(found) == content
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header is damaged: {error}") from error
    if not same or not isinstance(found["output"], list) or not isinstance(found["tolerance"], list):
        raise ValueError("the header is not as edgekd writes it")
    counts = [*found["output"], *(found[name] for name in _COUNTS)]
    if any(type(count) is not int or not 0 < count <= MAX_BYTES for count in counts):
        raise ValueError(f"expected counts from 1 to {MAX_BYTES} in the header, found {counts}")
    tolerance = found["tolerance"]
    if len(tolerance) != 2 or any(type(limit) is not float or not 0 < limit < 10 for limit in tolerance):
        raise ValueError(f"expected two tolerances above 0, found {tolerance}")
    if found["precision"] not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, found {found['precision']!r}")
    return dict(found)


def _inflated(stored: bytes, length: int) -> bytes:
    """Decompress exactly `length` bytes from one DEFLATE stream without a trailer."""
    if length > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes of content, found {length}")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflate.decompress(stored, length + 1)
    except zlib.error as error:
        raise ValueError(f"the content is damaged: {error}") from error
    if len(content) != length or not inflate.eof or inflate.unused_data:
        raise ValueError(f"expected {length} bytes of content, found another number")
    return content

"""Width and height of a compressed image, from its header, before a decoder allocates memory for it.

Sources: PNG (W3C), JPEG (ITU-T T.81), BMP (Microsoft), WebP (RFC 9649), TIFF 6.0 and BigTIFF. No I/O.
"""

from __future__ import annotations

import re
import struct

MAX_PIXELS = 1 << 27
"""Maximum pixels of an image: 0.4 GB when decoded. Cameras of 100 megapixels have fewer."""
MAX_SCANS = 200
"""Maximum scans of a progressive JPEG, each of which covers all pixels; encoders write 10."""
_NO_FRAME = {0xC4, 0xC8, 0xCC}  # DHT, JPG and DAC, between the start-of-frame markers
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""A marker of a JPEG, except stuffed bytes of a scan, restart markers, and fill bytes."""
_TIFF_SIZES = {256: 0, 257: 1, 322: 2, 323: 3}
"""Tags of the width and height of the image, and of a tile, with their indices in `sizes`."""
_TIFF_INTEGERS = {3: "H", 4: "I", 16: "Q"}


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels; None if the data is no JPEG, PNG, WebP, TIFF or BMP.

    For a tiled TIFF the larger of image and tile, because decoders allocate whole tiles. Raises ValueError for an
    invalid header.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"BM"):
            return _bmp(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data)
    except (struct.error, IndexError) as error:
        raise ValueError("its header is incomplete") from error
    return None


def require_small(data: bytes) -> None:
    """Raise ValueError for an image that takes too much memory or time to decode, or has another format."""
    size = image_size(data)
    if size is None:
        raise ValueError("no JPEG, PNG, WebP, TIFF or BMP")
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, where at most {MAX_PIXELS} can be decoded")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"a JPEG of more than {MAX_SCANS} scans")


def _jpeg(data: bytes) -> tuple[int, int]:
    """Return the size in the first start-of-frame segment."""
    place = 2
    while True:
        place = data.index(b"\xff", place) if data[place] != 0xFF else place
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without a segment
            place += 2
        elif marker in (0xD9, 0xDA):
            raise ValueError("a JPEG without a size")
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]


def has_jpeg_end(data: bytes) -> bool:
    """Return whether the segments and scans of a JPEG lead to its end-of-image marker, whatever follows that."""
    place = 2
    while (found := _MARKER.search(data, place)) is not None:
        place, marker = found.end(), data[found.end() - 1]
        if marker == 0xD9:
            return True
        if marker not in (0x01, 0xD8):  # without a segment
            if len(data) < place + 2:
                return False
            place += struct.unpack_from(">H", data, place)[0]
    return False


def _bmp(data: bytes) -> tuple[int, int]:
    header = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return abs(width), abs(height)  # a negative height means rows from the top


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        wide, high = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return wide, high
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        wide, high = struct.unpack_from("<HH", data, 26)
        return wide & 0x3FFF, high & 0x3FFF
    raise ValueError("a WebP without an image")


def _tiff(data: bytes) -> tuple[int, int]:
    """Return the size in the first directory."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
    first, step, value = (offset + 8, 20, 12) if big else (offset + 2, 12, 8)
    sizes = [0, 0, 0, 0]
    for entry in range(first, first + step * min(count, 1000), step):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in _TIFF_SIZES and kind in _TIFF_INTEGERS:
            sizes[_TIFF_SIZES[tag]] = struct.unpack_from(order + _TIFF_INTEGERS[kind], data, entry + value)[0]
    return max(sizes[0], sizes[2]), max(sizes[1], sizes[3])

"""The Protocol Buffers encoding, as needed to read and write ONNX files without the onnx package.

Source: protobuf.dev/programming-guides/encoding. Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: encodings of a field's value."""
MAX_TAG = (1 << 32) - 1
"""Largest number of a field with its wire type. Of a larger one libraries drop bits, and see another field."""


def fields(message: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, and begin and end of the value of each field of a message. Raises ValueError."""
    at = begin
    while at < end:
        tag, at = varint(message, at, end)
        first, wire = at, tag & 7
        if not 8 <= tag <= MAX_TAG:
            raise ValueError(f"not an ONNX file: no field at byte {first}")
        if wire == VARINT:
            at = varint(message, at, end)[1]
        elif wire == BYTES:
            length, first = varint(message, at, end)
            at = first + length
        elif wire in (FIXED32, FIXED64):
            at += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"not an ONNX file: wire type {wire} at byte {first}")
        if at > end:
            raise ValueError(f"not an ONNX file: a field at byte {first} ends after its message")
        yield tag >> 3, wire, first, at


def varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the variable-length integer at an offset, and the offset after it. Raises ValueError."""
    value = 0
    for place in range(at, min(at + 10, end)):
        value |= (message[place] & 127) << 7 * (place - at)
        if message[place] < 128:
            return value, place + 1
    raise ValueError(f"not an ONNX file: no integer at byte {at}")


def integer(value: int) -> bytes:
    """Encode a variable-length integer of at least 0."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def field(number: int, content: bytes) -> bytes:
    """Encode a field of bytes: text, a message, or raw data."""
    return integer(number << 3 | BYTES) + integer(len(content)) + content


def integer_field(number: int, value: int) -> bytes:
    """Encode a field with an integer of at least 0."""
    return integer(number << 3 | VARINT) + integer(value)


def copied(message: bytes, number: int, wire: int, begin: int, end: int) -> bytes:
    """Return a field of a message, by the begin and end of its value."""
    length = integer(end - begin) if wire == BYTES else b""
    return integer(number << 3 | wire) + length + message[begin:end]

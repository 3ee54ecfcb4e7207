"""A part of an open file as a sequence of bytes, read into memory on access only.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import os
from typing import BinaryIO


class FileView:
    """Bytes of a file, by slices as of a memoryview. The file must stay open, and as long as it is."""

    def __init__(self, stream: BinaryIO, begin: int, length: int) -> None:
        self._stream, self._begin, self._length = stream, begin, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> FileView:
        first, last, _ = part.indices(self._length)
        return FileView(self._stream, self._begin + first, max(last - first, 0))

    def __bytes__(self) -> bytes:
        content = os.pread(self._stream.fileno(), self._length, self._begin)
        if len(content) != self._length:
            raise ValueError("the file was cut short")
        return content


def file_view(stream: BinaryIO) -> FileView:
    """Return the view of a whole file."""
    return FileView(stream, 0, os.fstat(stream.fileno()).st_size)

"""A DEFLATE stream of known length, read in small steps.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.core.file_view import FileView

CHUNK = 1 << 16
"""Maximum bytes of a step, stored or expanded."""


class InflateStream:
    """Reads a DEFLATE stream in small chunks, so that memory does not depend on claimed lengths."""

    def __init__(self, stored: memoryview | FileView) -> None:
        self._stored, self._fed = stored, 0
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def consumed(self) -> int:
        """Stored bytes that were used so far."""
        return self._fed - len(self._inflate.unconsumed_tail)

    def read(self, count: int) -> bytes:
        """Read `count` bytes. Raises ValueError where there are fewer, or the stream is damaged."""
        return b"".join(self.steps(count))

    def chunks(self, count: int) -> Iterator[bytes]:
        """Yield all of a stream of `count` bytes. Raises ValueError where it has others, or is damaged."""
        yield from self.steps(count)
        self.finish()

    def steps(self, count: int) -> Iterator[bytes]:
        """Yield what `read` returns, in small chunks."""
        while count:
            part, more = self._step(min(count, CHUNK))
            if not part and not more:
                raise ValueError("a stream ends early")
            yield part
            count -= len(part)

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
            stored = bytes(self._stored[self._fed : self._fed + CHUNK])
            self._fed += len(stored)
        try:
            return self._inflate.decompress(stored, count), bool(stored)
        except zlib.error as error:
            raise ValueError(f"a stream is damaged: {error}") from error

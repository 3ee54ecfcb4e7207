"""A fake of CUDA's memory and of one stream, with a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.core.errors import DeviceError


class FakeCuda:
    """Memory of a GPU. The work in its stream runs, in order, when the stream is synchronized."""

    streams: dict[int, FakeCuda] = {}  # noqa: RUF012 by the handle passed to engines
    compiler: Callable[[str, str, Mapping[str, int]], Any] | None = None
    """Compiles a kernel that runs on the memory of this process; None if there is no compiler."""

    def __init__(self) -> None:
        self.stream = 1000 + len(self.streams)
        self.streams[self.stream] = self
        self.memory: dict[int, np.ndarray] = {}
        self.queue: list[Callable[[], None]] = []
        self._pinned: list[np.ndarray] = []
        self.closed = False

    def pinned(self, shape: Sequence[int], kind: Any) -> np.ndarray:
        self._pinned.append(np.zeros(tuple(shape), kind))
        return self._pinned[-1]

    def allocate(self, count: int) -> int:
        array = np.zeros(count, np.uint8)
        self.memory[array.ctypes.data] = array
        return int(array.ctypes.data)

    def kernel(self, source: str, name: str, definitions: Mapping[str, int]) -> Any:
        if self.compiler is None:
            raise DeviceError("no compiler for kernels")
        run = self.compiler(source, name, definitions)
        return lambda *launch: self.queue.append(lambda: run(*launch))

    def upload(self, address: int, array: np.ndarray) -> None:
        self._check(address, array)
        content = array.reshape(-1).view(np.uint8)
        self.queue.append(lambda: np.copyto(self.memory[address][: array.nbytes], content))

    def download(self, array: np.ndarray, address: int) -> None:
        self._check(address, array)
        content = array.reshape(-1).view(np.uint8)
        self.queue.append(lambda: np.copyto(content, self.memory[address][: array.nbytes]))

    def wait(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def close(self) -> None:
        assert not self.queue, "closed before the stream was waited for"
        self.memory.clear()
        self.closed = True

    def _check(self, address: int, array: np.ndarray) -> None:
        assert not self.closed
        assert array.flags.c_contiguous
        (buffer,) = (each for each in self._pinned if np.may_share_memory(array, each))
        assert self.memory[address].nbytes == buffer.nbytes >= array.nbytes

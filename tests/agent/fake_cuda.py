"""CUDA's memory and one stream, played by a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class FakeCuda:
    """Memory of a GPU; the work in its stream is done, in order, when the stream is waited for."""

    streams: dict[int, FakeCuda] = {}  # noqa: RUF012 by the handles that engines get

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
        address = 1 << 20 | len(self.memory) + 1
        self.memory[address] = np.zeros(count, np.uint8)
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        self._check(address, array)
        self.queue.append(lambda: np.copyto(self.memory[address], array.reshape(-1).view(np.uint8)))

    def download(self, array: np.ndarray, address: int) -> None:
        self._check(address, array)
        self.queue.append(lambda: np.copyto(array.reshape(-1).view(np.uint8), self.memory[address]))

    def wait(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def close(self) -> None:
        assert not self.queue, "closed before the stream was waited for"
        self.memory.clear()
        self.closed = True

    def _check(self, address: int, array: np.ndarray) -> None:
        assert not self.closed
        assert any(array is each for each in self._pinned), "memory that is not pinned"
        assert self.memory[address].nbytes == array.nbytes

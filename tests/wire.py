"""A TCP proxy between a host and a camera that can reset connections, or stop forwarding, at any moment."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PIECE = 1 << 14


class Wire:
    """Forwards connections to `port` to another port of this machine.

    sent_bytes: bytes sent to the camera by all connections; bytes_per_s: rate limit in that direction.
    """

    def __init__(self, goal: int, bytes_per_s: float = 20e6) -> None:
        self.sent_bytes = 0
        self._bytes_per_s = bytes_per_s
        self._left: int | None = None
        self._act: Callable[[], None] = self.cut
        self._goal = goal
        self._dead = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def after(self, count: int, act: Callable[[], None]) -> None:
        """Call `act`, for example `cut`, once after `count` more bytes were sent."""
        self._act, self._left = act, count

    def cut(self) -> None:
        """Reset every connection, as a restarting host does."""
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                # A linger time of 0 makes close() reset the connection.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def go_dead(self) -> None:
        """Stop forwarding, keep connections open, and accept no new ones."""
        self._dead.set()

    def close(self) -> None:
        """Close all sockets."""
        with self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)  # else the thread would wait for connections forever
        self._accepting.join()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._goal))
            except OSError:
                return
            self._pairs.append((near, far))
            for source, goal, counted in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass_on, args=(source, goal, counted), daemon=True).start()

    def _pass_on(self, source: socket.socket, goal: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                if self._dead.is_set():
                    self._dead.wait(0.05)
                    if not self._pairs:
                        return None
                    select.select([], [], [], 0.05)
                    continue
                if not select.select([source], [], [], 0.05)[0]:
                    continue
                piece = source.recv(_PIECE)
                if counted and self._left is not None and len(piece) >= self._left:
                    goal.sendall(piece[: self._left])
                    self.sent_bytes += self._left
                    self._left = None
                    self._act()
                    continue
                if not piece:
                    return goal.shutdown(socket.SHUT_WR)
                goal.sendall(piece)
                if counted:
                    time.sleep(len(piece) / self._bytes_per_s)
                    self.sent_bytes += len(piece)
                    self._left = None if self._left is None else self._left - len(piece)


@contextmanager
def wire_to(port: int, bytes_per_s: float = 20e6) -> Iterator[Wire]:
    """Yield a wire to a port; close it at the end."""
    wire = Wire(port, bytes_per_s)
    try:
        yield wire
    finally:
        wire.close()

"""A wire between a host and a camera that can be cut, or go dead, at any moment."""

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
    """Passes on what comes to `port`, to another port of this machine.

    sent_bytes: to the camera, by all connections; bytes_per_s: how fast it is in that direction.
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
        """Do something, such as `cut`, once when `count` more bytes have been sent."""
        self._act, self._left = act, count

    def cut(self) -> None:
        """Reset every connection, as a switch that loses power does not, but a host that restarts."""
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                # To linger for no time is to reset.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def go_dead(self) -> None:
        """Pass nothing on any more, in connections that stay open, and take no new ones."""
        self._dead.set()

    def close(self) -> None:
        """Let go of everything."""
        with self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)  # or the thread would wait for connections for ever
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
    """A wire to a port, closed at the end."""
    wire = Wire(port, bytes_per_s)
    try:
        yield wire
    finally:
        wire.close()

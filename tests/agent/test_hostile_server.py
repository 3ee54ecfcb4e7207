"""A server that misbehaves costs one error: no traceback, no memory, no endless download."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import pytest
from cameras import fetch

from edgekd.agent import fetching, http_transport
from edgekd.agent.engines.camera import Camera
from edgekd.agent.fetching import FetchRequest
from edgekd.agent.http_transport import BrokenError, Pace, TransferLimits, Transport, is_url
from edgekd.agent.state.slots import State
from edgekd.core.errors import DeviceError, EdgeKDError, SpecError

Script = Callable[[socket.socket, bytes], None]
OK = b"HTTP/1.1 200 OK\r\n"
REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: "


class Server:
    """A server on a real socket that does with each connection, after the request, what its script does."""

    def __init__(self) -> None:
        self.script: Script = lambda connection, request: None
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/model.edgekd"
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            request = connection.recv(65536)
            self.requests.append(request)
            with suppress(OSError):  # the client goes away
                self.script(connection, request)

    def close(self) -> None:
        with self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)  # or the thread would wait for connections for ever
        self._serving.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Any]:
    def run(**named: Any) -> Any:
        request = FetchRequest(**{"url": server.url, "out": tmp_path / "got", "timeout_s": 5.0, "tries": 3, **named})
        return fetch(Camera(State(tmp_path / "state"), tmp_path / "root"), request, lambda seconds: None)

    return run


def always(answer: bytes) -> Script:
    return lambda connection, request: connection.sendall(answer)


MALFORMED = {
    "no HTTP": b"\x00\xff\x01 nonsense\r\n\r\n",
    "nothing": b"",
    "status without a number": b"HTTP/1.1 abc OK\r\n\r\n",
    "status out of range": b"HTTP/1.1 99999 OK\r\n\r\n",
    "version of its own": b"HTTP/9.9 200 OK\r\n\r\n",
    "header without a colon": OK + b"nonsense\r\n\r\nbody",
    "header of other bytes": OK + b"Content-Length: \xb2\xb3\r\nETag: \xff\xfe\r\n\r\nbody",
    "length of 5,000 digits": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nbody",
    "negative length": OK + b"Content-Length: -7\r\n\r\nbody",
    "range without being asked": b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\n\r\nbody",
    "range of 5,000 digits": b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/" + b"9" * 5000 + b"\r\n\r\nbody",
    "chunk size that is none": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nbody\r\n",
    "negative chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nbody of a chunk\r\n",
    "endless chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 60_000 + b"\r\nbody\r\n",
    "line of 100 kB": OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
    "1,000 headers": OK + b"X: y\r\n" * 1000 + b"\r\n",
    "10,000 interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    "redirect to nowhere": REDIRECT + b"\r\n\r\n",
    "redirect to half an address": REDIRECT + b"http://[::1\r\n\r\n",
    "redirect to a port that is none": REDIRECT + b"http://127.0.0.1:abc/\r\n\r\n",
    "redirect to a port too high": REDIRECT + b"http://127.0.0.1:99999/\r\n\r\n",
    "redirect of other bytes": REDIRECT + b"http://\xff\xfe/\x01\r\n\r\n",
    "redirect to a file": REDIRECT + b"file:///etc/passwd\r\n\r\n",
    "redirect to ftp": REDIRECT + b"ftp://127.0.0.1/x\r\n\r\n",
    "redirect to itself": REDIRECT + b"/model.edgekd\r\n\r\n",
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_answer_is_one_error(
    server: Server, get: Callable[..., Any], tmp_path: Path, answer: bytes
) -> None:
    server.script = always(answer)
    with pytest.raises(EdgeKDError) as caught:
        get()
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "got").exists()
    assert len(server.requests) <= 6


def test_the_body_of_a_redirect_is_not_read(server: Server, get: Callable[..., Any], bundle: Path) -> None:
    """It may be endless: urllib reads all of it into memory."""
    sent = []

    def answer(connection: socket.socket, request: bytes) -> None:
        if b"/model.edgekd" not in request:
            content = bundle.read_bytes()
            connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            return
        connection.sendall(REDIRECT + b"/other\r\n\r\n")
        while sum(sent) < 1 << 28:
            sent.append(connection.send(bytes(1 << 16)))

    server.script = answer
    assert get()["bytes"] == bundle.stat().st_size
    assert sum(sent) < 1 << 26


def test_a_redirect_away_from_encryption_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Transport(Pace(TransferLimits()), 1.0)

    def redirects(url: str, headers: Any) -> Any:
        raise http_transport.urllib.error.HTTPError(url, 302, "Found", {"Location": "http://x/y"}, None)  # type: ignore

    monkeypatch.setattr(transport, "_open", redirects)
    with pytest.raises(DeviceError, match="without encryption"):
        transport.open("https://x/y", {})


def test_a_server_that_sends_a_byte_a_connection_is_given_up(server: Server, get: Callable[..., Any]) -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        begin = int(request.partition(b"Range: bytes=")[2].partition(b"-")[0] or 0)
        status = b"HTTP/1.1 206 P\r\nContent-Range: bytes %d-99999/100000\r\n" % begin if begin else OK
        connection.sendall(status + b'ETag: "1"\r\nContent-Length: %d\r\n\r\nx' % (100_000 - begin))

    server.script = answer
    with pytest.raises(DeviceError, match="3 of 100000 bytes"):
        get()
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "head", [b"", OK + b"X: ", OK + b"\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n1;"], ids=str
)
def test_a_server_that_trickles_is_given_up(server: Server, get: Callable[..., Any], head: bytes) -> None:
    """Each byte comes long before the timeout, in the status line, a header, the body, or a chunk's extension."""

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"H")
            time.sleep(0.02)

    server.script = answer
    with pytest.raises(DeviceError, match="too slow"):
        get(limits=TransferLimits(window_s=0.3, min_bytes_per_s=1000))
    assert len(server.requests) == 3
    with pytest.raises(DeviceError, match="takes too long"):
        get(limits=TransferLimits(window_s=100, max_duration_s=0.3))


def test_endless_trailers_and_empty_answers_end(server: Server, get: Callable[..., Any]) -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        while True:
            connection.sendall(b"X: y\r\n" * 1000)

    server.script = answer
    with pytest.raises(DeviceError, match="too slow"):
        get(limits=TransferLimits(window_s=0.2))


def test_a_call_has_a_limit_of_connections(
    server: Server, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MAX_CONNECTIONS", 5)
    body = bytes(1000)

    def answer(connection: socket.socket, request: bytes) -> None:
        begin = int(request.partition(b"Range: bytes=")[2].partition(b"-")[0] or 0)
        status = b"HTTP/1.1 206 P\r\nContent-Range: bytes %d-99999/100000\r\n" % begin if begin else OK
        connection.sendall(status + b'ETag: "1"\r\nContent-Length: %d\r\n\r\n' % (100_000 - begin) + body)

    server.script = answer
    with pytest.raises(DeviceError, match="5000 of 100000 bytes"):
        get()


def test_a_refused_connection_is_tried_for_the_timeout_only(tmp_path: Path) -> None:
    waits: list[float] = []
    request = FetchRequest(f"http://127.0.0.1:{_free_port()}/x", tmp_path / "got", timeout_s=7.0)
    with pytest.raises(DeviceError, match="refused"):
        fetch(Camera(State(tmp_path / "state"), tmp_path / "root"), request, waits.append)
    assert waits == [2, 4], "8 more would be too long"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://x:y/", "http:///x", "http://x/ y", "http://x/\n", "http://\u00e4/", "x"]
)
def test_an_address_that_is_none(get: Callable[..., Any], url: str) -> None:
    assert not is_url(url)
    with pytest.raises(SpecError, match="cannot be fetched"):
        get(url=url)


@pytest.mark.parametrize(
    "change",
    [{"validator": "a\r\nX: y"}, {"validator": 7}, {"kept": -1}, {"total": "9"}, {"total": -9}, {"kept": True}],
)
def test_a_damaged_note_is_not_used(
    server: Server, get: Callable[..., Any], bundle: Path, tmp_path: Path, change: Any
) -> None:
    content = bundle.read_bytes()
    server.script = always(OK + b"Content-Length: %d\r\n\r\n" % len(content) + content)
    note = {"url": server.url, "validator": '"1"', "total": len(content), "kept": 3, **change}
    (tmp_path / "got.part").write_bytes(b"abc")
    (tmp_path / "got.part.json").write_text(json.dumps(note))
    assert get()["resumed_bytes"] == 0
    assert b"Range" not in server.requests[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the download is killed in a process of its own")
def test_a_small_file_goes_on_after_a_kill(
    server: Server, get: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    content = bundle.read_bytes()

    def stall(connection: socket.socket, request: bytes) -> None:
        connection.sendall(OK + b'ETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(content) + content[:3000])
        connection.recv(1)  # till the client is gone

    def go_on(connection: socket.socket, request: bytes) -> None:
        begin = int(request.partition(b"Range: bytes=")[2].partition(b"-")[0] or 0)
        rest = b"Content-Range: bytes %d-%d/%d\r\n" % (begin, len(content) - 1, len(content))
        connection.sendall(b"HTTP/1.1 206 P\r\n" + rest + b"\r\n" + content[begin:])

    server.script = stall
    child = os.fork()
    if child == 0:
        try:
            get(timeout_s=60)
        finally:
            os._exit(1)
    noted, end = 0, time.monotonic() + 30
    while not noted and time.monotonic() < end:
        time.sleep(0.05)
        path = tmp_path / "got.part.json"
        noted = json.loads(path.read_bytes())["kept"] if path.exists() else 0
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    server.script = go_on
    assert get()["resumed_bytes"] == noted > 0
    assert (tmp_path / "got").read_bytes() == content


def test_a_broken_connection_tells_its_cause() -> None:
    assert BrokenError("x", slow=True).slow
    assert not BrokenError("x").refused

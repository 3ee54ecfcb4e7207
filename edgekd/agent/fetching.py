"""A bundle or a delta over HTTP: a download that goes on where it broke off, and is taken only when it is to be
trusted.

What has arrived is flushed every few megabytes, and only then noted: after a power cut the download goes on from what
is certainly on the disk. The file appears under its name when all of it has been verified.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from edgekd.agent.apply_delta import any_head
from edgekd.agent.slots import require_alone, require_room
from edgekd.agent.trust_state import held_trust, judge
from edgekd.core.atomic_files import publish, write_file, writing
from edgekd.core.bundle.archive import verify
from edgekd.core.bundle.delta import is_delta
from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.errors import DeviceError, HashError, SpecError

if TYPE_CHECKING:
    from edgekd.agent.commands import Camera

SCHEMES = ("https", "http", "file")
FLUSHED = 4 << 20
"""Bytes after which what has arrived is flushed and noted."""
LONGEST_WAIT_S = 30.0
_CHUNK = 1 << 16
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a server after which the same request may go well."""


@dataclass(frozen=True)
class Order:
    """What to fetch, and where to.

    sha256: of the file, None where its own signatures are enough; max_bytes: more are refused; tries: how often in a
    row nothing may come before it is given up; timeout_s: seconds without a byte that count as a broken connection.
    """

    url: str
    out: Path
    sha256: str | None = None
    max_bytes: int = 1 << 31
    tries: int = 8
    timeout_s: float = 30.0


@dataclass(frozen=True)
class _Note:
    """What is known of what has arrived.

    validator: of the server, for that version of the file; kept: bytes that are certainly on the disk.
    """

    url: str = ""
    validator: str | None = None
    total: int | None = None
    kept: int = 0


class _BrokenError(Exception):
    """The connection broke, or the server cannot answer now: it may go well the next time."""


def fetch(camera: Camera, order: Order, sleep: Callable[[float], object] = time.sleep) -> dict[str, Any]:
    """Fetch a file, from where the last call ended. Raises SpecError, DeviceError, BundleError, HashError,
    SignatureError.

    What was fetched already stays for the next call, unless it turned out to be wrong.
    """
    if urlsplit(order.url).scheme not in SCHEMES:
        raise SpecError(f"{order.url}: cannot be fetched", expected="https://, http:// or file://")
    download = _Download(order)
    changed = not (order.sha256 and order.out.is_file() and file_sha256(order.out) == order.sha256)
    resumed = 0
    if changed:
        with download.opened() as stream:
            resumed = download.note.kept
            _receive(download, stream, order, sleep)
            _require_right(camera, order, download)
            with writing(order.out):
                publish(download.part, order.out)
    return {
        "file": str(order.out),
        "kind": "delta" if is_delta(order.out) else "bundle",
        "identity": any_head(order.out, None).identity,
        "bytes": order.out.stat().st_size,
        "resumed_bytes": resumed,
        "received_bytes": download.received,
        "connections": download.connections,
        "changed": changed,
    }


def _receive(download: _Download, stream: BinaryIO, order: Order, sleep: Callable[[float], object]) -> None:
    """Ask again until all of it is there. Raises DeviceError where nothing comes any more."""
    failed = 0
    while not download.complete:
        before = download.note.kept
        try:
            download.go_on(stream)
        except _BrokenError as error:
            failed = 0 if download.note.kept > before else failed + 1
            if failed >= order.tries or order.url.startswith("file:"):
                what = f"{order.url}: cannot be fetched"
                raise DeviceError(what, found=str(error), fix="call it again: it goes on from there") from error
            sleep(min(2.0**failed, LONGEST_WAIT_S))


def _require_right(camera: Camera, order: Order, download: _Download) -> None:
    """Raises HashError, SignatureError or BundleError where what arrived is not to be taken; then it does not stay."""
    part = download.part
    download.useless = True
    found = file_sha256(part) if order.sha256 else None
    if found != order.sha256:
        what = f"{order.url}: another file than was asked for"
        raise HashError(what, expected=f"SHA-256 {order.sha256}", found=f"SHA-256 {found}", fix="check the address")
    allowed = judge(held_trust(camera.state, camera.root), camera.clock())
    if is_delta(part):
        any_head(part, allowed)
    else:
        verify(part, allowed)
    download.useless = False


class _Download:
    """A file on its way.

    part: where it arrives; note: what is known of that; received: bytes of this call; useless: whether what is there
    may go.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self.part = order.out.with_name(f"{order.out.name}.part")
        self._noted = order.out.with_name(f"{order.out.name}.part.json")
        self.note = _Note()
        self.received = self.connections = 0
        self.complete = self.useless = False
        self._opener = urllib.request.OpenerDirector()
        handlers = ["ProxyHandler", "HTTPHandler", "HTTPSHandler", "FileHandler", "HTTPDefaultErrorHandler"]
        for name in (*handlers, "HTTPErrorProcessor", "UnknownHandler"):
            handler = getattr(urllib.request, name, None)  # there is none for HTTPS where Python has no ssl
            if handler:
                self._opener.add_handler(handler())
        self._opener.add_handler(_NoDowngrade())

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file that it arrives in, cut to what is certain. Raises DeviceError where another call writes to it."""
        with writing(self._order.out):
            stream = self.part.open("ab")
        with stream:
            require_alone(stream, self.part, "one download at a time")
            self.note = self._read_note()
            with writing(self._order.out):
                kept = min(self.note.kept, self.part.stat().st_size)
                self._begin(stream, replace(self.note, kept=kept))
            self.complete = kept == self.note.total
            try:
                yield stream
            finally:
                if self.useless or not self.note.kept or not self.part.exists():
                    self._forget()

    def go_on(self, stream: BinaryIO) -> None:
        """One request, and all that comes of it. Raises _BrokenError, DeviceError, SpecError."""
        self.connections += 1
        try:
            with self._opener.open(self._request(), timeout=self._order.timeout_s) as response:
                self._accept(stream, response)
                self._receive(stream, response)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and self.note.kept:
                self._begin(stream, _Note(self._order.url))
            elif error.code not in _AGAIN:
                what = f"{self._order.url}: cannot be fetched"
                raise DeviceError(what, found=f"HTTP {error.code} {error.reason}", fix="check the address") from error
            raise _BrokenError(f"HTTP {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise _BrokenError(str(error.reason)) from error
        except (http.client.HTTPException, ConnectionError, socket.timeout) as error:  # noqa: UP041 since Python 3.10
            raise _BrokenError(str(error) or type(error).__name__) from error

    def _forget(self) -> None:
        for path in (self.part, self._noted):
            if path.exists():
                path.unlink()

    def _request(self) -> urllib.request.Request:
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgekd"}
        if self.note.kept:
            headers["Range"] = f"bytes={self.note.kept}-"
            if self.note.validator:
                headers["If-Range"] = self.note.validator
        return urllib.request.Request(self._order.url, headers=headers)

    def _accept(self, stream: BinaryIO, response: Any) -> None:
        """Take what the server says of the file; begin anew where it is another one, or it sends all of it."""
        found = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
        length = response.headers.get("Content-Length") or ""
        if getattr(response, "status", None) == 206:
            total = int(found[2]) if found else None
            if not found or int(found[1]) != self.note.kept or self.note.total not in (None, total):
                self._begin(stream, _Note(self._order.url))
                raise _BrokenError("the server sent another part than was asked for")
            self.note = replace(self.note, total=total)
        else:
            total = int(length) if length.isdigit() else None
            self._begin(stream, _Note(self._order.url, _validator(response.headers), total))
        if total is not None:
            self._require_small(total)
            require_room(self.part.absolute().parent, {"the download": total - self.note.kept})

    def _receive(self, stream: BinaryIO, response: Any) -> None:
        """Write what comes until it ends; noted is what was flushed, however it ends."""
        try:
            for chunk in iter(lambda: _some(response), b""):
                with writing(self.part):
                    stream.write(chunk)
                self.received += len(chunk)
                self._require_small(stream.tell())
                if stream.tell() - self.note.kept >= FLUSHED:
                    self._keep(stream)
        finally:
            self._keep(stream)
        total = self.note.total
        if total is not None and self.note.kept < total:
            raise _BrokenError(f"the connection ended after {self.note.kept} of {total} bytes")
        self.complete = True

    def _require_small(self, count: int) -> None:
        most = self._order.max_bytes
        if count > most:
            self.useless = True
            what = f"{self._order.url}: too large"
            raise DeviceError(what, expected=f"at most {most} bytes", found=f"{count} or more", fix="--max-bytes")

    def _begin(self, stream: BinaryIO, note: _Note) -> None:
        stream.truncate(note.kept)
        stream.seek(note.kept)
        self._write_note(note)

    def _keep(self, stream: BinaryIO) -> None:
        with writing(self.part):
            stream.flush()
            os.fsync(stream.fileno())
        self._write_note(replace(self.note, kept=stream.tell()))

    def _write_note(self, note: _Note) -> None:
        self.note = note
        write_file(self._noted, canonical_json(asdict(note)))

    def _read_note(self) -> _Note:
        """What an earlier call noted of this address; nothing where it is of another one, or cannot be read."""
        try:
            note = _Note(**json.loads(self._noted.read_bytes()))
        except (OSError, TypeError, ValueError):
            return _Note(self._order.url)
        good = type(note.kept) is int and note.kept >= 0 and note.url == self._order.url
        return note if good else _Note(self._order.url)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows a server elsewhere, but not from https to http."""

    def redirect_request(self, request: Any, *told: Any) -> Any:
        """The request for the other place. Raises HTTPError where it is not encrypted any more."""
        new = super().redirect_request(request, *told)
        if new is not None and request.type == "https" and new.type != "https":
            raise urllib.error.HTTPError(request.full_url, 403, "leads to a place without encryption", told[3], told[0])
        return new


def _validator(headers: Mapping[str, str]) -> str | None:
    """What names this version of a file on its server: a strong ETag, else its date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _some(response: Any) -> bytes:
    """The next bytes; few at a time, because those of a read that breaks are lost. Raises _BrokenError."""
    try:
        found: bytes = response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error
    return found

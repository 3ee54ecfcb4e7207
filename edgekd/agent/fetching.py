"""Download of a bundle or a delta over HTTP, resumed after an interruption, and verified before it appears.

Data is flushed every few megabytes, and only then noted: after a power cut the download resumes at the noted offset.
The file appears under its name after all of it has been verified.
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
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import urlsplit

from edgekd.agent.apply_delta import any_head, opened_update
from edgekd.agent.state.slots import require_alone, require_room
from edgekd.agent.trust_state import camera_judge
from edgekd.core.atomic_files import publish, write_file, writing
from edgekd.core.bundle.archive import BundleReader
from edgekd.core.bundle.delta import is_delta
from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.errors import DeviceError, HashError, SpecError

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera

SCHEMES = ("https", "http", "file")
FLUSH_BYTES = 4 << 20
"""Bytes between two flushes."""
MAX_WAIT_S = 30.0
"""Seconds between two attempts, at most."""
_CHUNK = 1 << 16  # bytes of a read; those of a read that fails are lost
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_RETRY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP codes after which the same request may succeed."""


@dataclass(frozen=True)
class FetchRequest:
    """A file to fetch.

    sha256: of the file, None where its signatures are enough; max_bytes: maximum size; tries: attempts in a row without
    progress; timeout_s: seconds without a byte after which a connection counts as broken.
    """

    url: str
    out: Path
    sha256: str | None = None
    max_bytes: int = 1 << 31
    tries: int = 8
    timeout_s: float = 30.0


@dataclass(frozen=True)
class FetchResult:
    """Result of `fetch`.

    Args:
        file: Path of the file.
        kind: Kind of the file.
        identity: Identity of the bundle, or of the target of the delta.
        bytes: Size of the file.
        resumed_bytes: Bytes of it that earlier calls had received.
        received_bytes: Bytes that this call received, some perhaps twice.
        connections: Number of requests.
        changed: False where the file with this SHA-256 was there already.
    """

    file: Path
    kind: Literal["bundle", "delta"]
    identity: str
    bytes: int
    resumed_bytes: int
    received_bytes: int
    connections: int
    changed: bool


@dataclass(frozen=True)
class _Note:
    """Progress of a download. validator: of the server, for the version of the file; kept: flushed bytes."""

    url: str = ""
    validator: str | None = None
    total: int | None = None
    kept: int = 0


class _BrokenError(Exception):
    """The connection broke, or the server is busy: another attempt may succeed."""


def fetch(camera: Camera, request: FetchRequest, sleep: Callable[[float], object] = time.sleep) -> FetchResult:
    """Fetch a file, and resume where an earlier call ended.

    Raises SpecError, DeviceError, BundleError, HashError, SignatureError. The data so far then stays for the next call,
    unless it is wrong.
    """
    if urlsplit(request.url).scheme not in SCHEMES:
        raise SpecError(f"{request.url}: cannot be fetched", expected="https://, http:// or file://")
    download = _Download(request)
    changed = not (request.sha256 and request.out.is_file() and file_sha256(request.out) == request.sha256)
    resumed = 0
    if changed:
        with download.opened() as stream:
            resumed = download.note.kept
            _receive(download, stream, request, sleep)
            _require_valid(camera, request, download)
            with writing(request.out):
                publish(download.part, request.out)
    return FetchResult(
        request.out,
        "delta" if is_delta(request.out) else "bundle",
        any_head(request.out, None).identity,
        request.out.stat().st_size,
        resumed,
        download.received,
        download.connections,
        changed,
    )


def _receive(download: _Download, stream: BinaryIO, request: FetchRequest, sleep: Callable[[float], object]) -> None:
    """Connect until the file is complete. Raises DeviceError after too many attempts without progress."""
    failed = 0
    while not download.complete:
        before = download.note.kept
        try:
            download.connect(stream)
        except _BrokenError as error:
            failed = 0 if download.note.kept > before else failed + 1
            if failed >= request.tries or request.url.startswith("file:"):
                what = f"{request.url}: cannot be fetched"
                raise DeviceError(what, found=str(error), fix="call it again: it goes on from there") from error
            sleep(min(2.0**failed, MAX_WAIT_S))


def _require_valid(camera: Camera, request: FetchRequest, download: _Download) -> None:
    """Verify the file, which is removed otherwise. Raises HashError, SignatureError or BundleError."""
    part = download.part
    download.useless = True
    found = file_sha256(part) if request.sha256 else None
    if found != request.sha256:
        what = f"{request.url}: not the requested file"
        raise HashError(what, expected=f"SHA-256 {request.sha256}", found=f"SHA-256 {found}", fix="check the address")
    judge = camera_judge(camera.state, camera.root, camera.clock())
    with opened_update(part, judge) as update:
        if isinstance(update, BundleReader):
            update.verify()
    download.useless = False


class _Download:
    """A download in progress.

    part: the partial file; note: its progress; received: bytes of this call; useless: whether the partial file is to be
    removed.
    """

    def __init__(self, request: FetchRequest) -> None:
        self._request = request
        self.part = request.out.with_name(f"{request.out.name}.part")
        self._noted = request.out.with_name(f"{request.out.name}.part.json")
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
        """Open the partial file, cut to its flushed bytes. Raises DeviceError where another call writes to it."""
        with writing(self._request.out):
            stream = self.part.open("ab")
        with stream:
            require_alone(stream, self.part, "one download at a time")
            self.note = self._read_note()
            with writing(self._request.out):
                kept = min(self.note.kept, self.part.stat().st_size)
                self._begin(stream, replace(self.note, kept=kept))
            self.complete = kept == self.note.total
            try:
                yield stream
            finally:
                if self.useless or not self.note.kept or not self.part.exists():
                    self._remove()

    def connect(self, stream: BinaryIO) -> None:
        """Send one request, and receive its response. Raises _BrokenError, DeviceError, SpecError."""
        self.connections += 1
        try:
            with self._opener.open(self._http_request(), timeout=self._request.timeout_s) as response:
                self._accept(stream, response)
                self._receive(stream, response)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and self.note.kept:
                self._begin(stream, _Note(self._request.url))
            elif error.code not in _RETRY:
                what = f"{self._request.url}: cannot be fetched"
                raise DeviceError(what, found=f"HTTP {error.code} {error.reason}", fix="check the address") from error
            raise _BrokenError(f"HTTP {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise _BrokenError(str(error.reason)) from error
        except (http.client.HTTPException, ConnectionError, socket.timeout) as error:  # noqa: UP041 since Python 3.10
            raise _BrokenError(str(error) or type(error).__name__) from error

    def _remove(self) -> None:
        for path in (self.part, self._noted):
            if path.exists():
                path.unlink()

    def _http_request(self) -> urllib.request.Request:
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgekd"}
        if self.note.kept:
            headers["Range"] = f"bytes={self.note.kept}-"
            if self.note.validator:
                headers["If-Range"] = self.note.validator
        return urllib.request.Request(self._request.url, headers=headers)

    def _accept(self, stream: BinaryIO, response: Any) -> None:
        """Check the headers of a response; start over where it is another file, or all of it."""
        part = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
        length = response.headers.get("Content-Length") or ""
        if getattr(response, "status", None) == 206:
            total = int(part[2]) if part else None
            if not part or int(part[1]) != self.note.kept or self.note.total not in (None, total):
                self._begin(stream, _Note(self._request.url))
                raise _BrokenError("the server sent another range than requested")
            self.note = replace(self.note, total=total)
        else:
            total = int(length) if length.isdigit() else None
            self._begin(stream, _Note(self._request.url, _validator(response.headers), total))
        if total is not None:
            self._require_small(total)
            require_room(self.part.absolute().parent, {"the download": total - self.note.kept})

    def _receive(self, stream: BinaryIO, response: Any) -> None:
        """Write a response up to its end, and note the flushed bytes however it ends."""
        try:
            for chunk in iter(lambda: _read(response), b""):
                with writing(self.part):
                    stream.write(chunk)
                self.received += len(chunk)
                self._require_small(stream.tell())
                if stream.tell() - self.note.kept >= FLUSH_BYTES:
                    self._flush(stream)
        finally:
            self._flush(stream)
        total = self.note.total
        if total is not None and self.note.kept < total:
            raise _BrokenError(f"the connection ended after {self.note.kept} of {total} bytes")
        self.complete = True

    def _require_small(self, count: int) -> None:
        limit = self._request.max_bytes
        if count > limit:
            self.useless = True
            what = f"{self._request.url}: too large"
            raise DeviceError(what, expected=f"at most {limit} bytes", found=f"{count} or more", fix="--max-bytes")

    def _begin(self, stream: BinaryIO, note: _Note) -> None:
        stream.truncate(note.kept)
        stream.seek(note.kept)
        self._write_note(note)

    def _flush(self, stream: BinaryIO) -> None:
        with writing(self.part):
            stream.flush()
            os.fsync(stream.fileno())
        self._write_note(replace(self.note, kept=stream.tell()))

    def _write_note(self, note: _Note) -> None:
        self.note = note
        write_file(self._noted, canonical_json(asdict(note)))

    def _read_note(self) -> _Note:
        """Read the note of an earlier call for this URL; an empty one where there is none."""
        try:
            note = _Note(**json.loads(self._noted.read_bytes()))
        except (OSError, TypeError, ValueError):
            return _Note(self._request.url)
        valid = type(note.kept) is int and note.kept >= 0 and note.url == self._request.url
        return note if valid else _Note(self._request.url)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http."""

    def redirect_request(self, request: Any, response: Any, *arguments: Any) -> Any:
        """Return the redirected request. Raises HTTPError where it is not encrypted any more."""
        new = super().redirect_request(request, response, *arguments)
        if new is not None and request.type == "https" and new.type != "https":
            headers = arguments[2]
            raise urllib.error.HTTPError(
                request.full_url, 403, "redirects to a URL without encryption", headers, response
            )
        return new


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return the server's identifier for this version of the file: a strong ETag, else its date."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _read(response: Any) -> bytes:
    """Read the next bytes. Raises _BrokenError."""
    try:
        chunk: bytes = response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error
    return chunk

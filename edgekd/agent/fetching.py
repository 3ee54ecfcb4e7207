"""Download of a bundle or a delta over HTTP, resumed after an interruption, and verified before it appears.

Data is flushed every few megabytes, and only then noted: after a power cut the download resumes at the noted offset.
The file appears under its name after all of it has been verified.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from edgekd.agent.apply_delta import any_head, opened_update
from edgekd.agent.http_transport import DEFAULT_LIMITS, BrokenError, Pace, TransferLimits, Transport, is_url, read_some
from edgekd.agent.state.slots import alone, require_room
from edgekd.agent.trust_state import camera_judge
from edgekd.core.atomic_files import publish, write_file, writing
from edgekd.core.bundle.archive import BundleReader
from edgekd.core.bundle.delta import is_delta
from edgekd.core.bundle.network import verify_bundle
from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.errors import DeviceError, HashError, SpecError
from edgekd.core.private_files import default_file_mode, read_private

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera

FLUSH_BYTES = 4 << 20
"""Bytes between two flushes, at most."""
FLUSH_S = 1.0
"""Seconds between two flushes while bytes arrive: what a killed process loses."""
MIN_PROGRESS_BYTES = 512
"""Bytes of a connection below which it counts as a failed attempt: else a byte a connection would go on for ever."""
MAX_CONNECTIONS = 1000
"""Connections of one call."""
MAX_WAIT_S = 30.0
"""Seconds between two attempts, at most."""
MAX_NOTE_BYTES = 1 << 16
"""Maximum size of the note of a partial file; a longer one is a damaged one."""
MAX_VALIDATOR = 256
"""Maximum length of an ETag or a date that is sent back."""
_CHUNK = 1 << 16  # bytes of a read, at most
_NUMBER = re.compile(r"[0-9]{1,15}")
_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")
_RETRY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP codes after which the same request may succeed."""


@dataclass(frozen=True)
class FetchRequest:
    """A file to fetch.

    sha256: of the file, None where its signatures are enough; max_bytes: maximum size; tries: attempts in a row without
    progress; timeout_s: seconds without a byte after which a connection counts as broken, and for which one that is
    refused is tried again.
    """

    url: str
    out: Path
    sha256: str | None = None
    max_bytes: int = 1 << 31
    tries: int = 8
    timeout_s: float = 30.0
    limits: TransferLimits = DEFAULT_LIMITS


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


def fetch(camera: Camera, request: FetchRequest, sleep: Callable[[float], object] = time.sleep) -> FetchResult:
    """Fetch a file, and resume where an earlier call ended.

    Raises SpecError, DeviceError, BundleError, HashError, SignatureError. The data so far then stays for the next call,
    unless it is wrong.
    """
    if not is_url(request.url):
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
                os.fchmod(stream.fileno(), default_file_mode())
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
    failed, refused_s = 0, 0.0
    while not download.complete:
        before = download.note.kept
        try:
            download.connect(stream)
        except BrokenError as error:
            progress = download.note.kept - before >= MIN_PROGRESS_BYTES and not error.slow
            failed = 0 if progress else failed + 1
            wait_s = min(2.0**failed, MAX_WAIT_S)
            refused_s = refused_s + wait_s if error.refused else 0.0
            hopeless = failed >= request.tries or download.connections >= MAX_CONNECTIONS
            if hopeless or refused_s > request.timeout_s or request.url.startswith("file:"):
                what = f"{request.url}: cannot be fetched"
                raise DeviceError(what, found=str(error), fix="call it again: it goes on from there") from error
            sleep(wait_s)


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
            verify_bundle(update)
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
        self._pace = Pace(request.limits)
        self._transport = Transport(self._pace, request.timeout_s)
        self._flushed_s: float | None = None

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the partial file, cut to its flushed bytes. Raises DeviceError where another call writes to it."""
        what, expected = self.part, "one download at a time"
        with alone(self.part, what, expected) as handle, os.fdopen(handle, "wb", closefd=False) as stream:
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
        """Send one request, and receive its response. Raises BrokenError, DeviceError, SpecError."""
        self.connections += 1
        try:
            with self._transport.open(self._request.url, self._headers()) as response:
                self._accept(stream, response)
                self._receive(stream, response)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and self.note.kept:
                self._begin(stream, _Note(self._request.url))
            elif error.code not in _RETRY:
                what = f"{self._request.url}: cannot be fetched"
                found = f"HTTP {error.code} {error.reason}"[:200]
                raise DeviceError(what, found=found, fix="check the address") from error
            raise BrokenError(f"HTTP {error.code} {error.reason}"[:200]) from error

    def _remove(self) -> None:
        for path in (self.part, self._noted):
            if path.exists():
                path.unlink()

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgekd"}
        if self.note.kept:
            headers["Range"] = f"bytes={self.note.kept}-"
            if self.note.validator:
                headers["If-Range"] = self.note.validator
        return headers

    def _accept(self, stream: BinaryIO, response: Any) -> None:
        """Check the headers of a response; start over where it is another file, or all of it."""
        part = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
        length = response.headers.get("Content-Length") or ""
        if getattr(response, "status", None) == 206:
            total = int(part[2]) if part else None
            expected = total is not None and total >= self.note.kept and self.note.total in (None, total)
            if not part or int(part[1]) != self.note.kept or not expected:
                self._begin(stream, _Note(self._request.url))
                raise BrokenError("the server sent another range than requested")
            self.note = replace(self.note, total=total)
        else:
            total = int(length) if _NUMBER.fullmatch(length) else None
            self._begin(stream, _Note(self._request.url, _validator(response.headers), total))
        if total is not None:
            self._require_small(total)
            require_room(self.part.absolute().parent, {"the download": total - self.note.kept})

    def _receive(self, stream: BinaryIO, response: Any) -> None:
        """Write a response up to its end, and note the flushed bytes however it ends."""
        total = self.note.total
        try:
            for chunk in iter(lambda: read_some(response, _missing(total, stream.tell())), b""):
                with writing(self.part):
                    stream.write(chunk)
                self.received += len(chunk)
                self._pace.add(len(chunk))
                self._require_small(stream.tell())
                if stream.tell() - self.note.kept >= FLUSH_BYTES or self._flush_is_due():
                    self._flush(stream)
        finally:
            self._flush(stream)
        if total is not None and self.note.kept < total:
            raise BrokenError(f"the connection ended after {self.note.kept} of {total} bytes")
        self.complete = True

    def _require_small(self, count: int) -> None:
        limit = self._request.max_bytes
        if count > limit:
            self.useless = True
            what = f"{self._request.url}: too large"
            raise DeviceError(what, expected=f"at most {limit} bytes", found=f"{count} or more", fix="--max-bytes")

    def _flush_is_due(self) -> bool:
        return self._flushed_s is None or time.monotonic() - self._flushed_s >= FLUSH_S

    def _begin(self, stream: BinaryIO, note: _Note) -> None:
        with writing(self.part):
            stream.truncate(note.kept)
            stream.seek(note.kept)
        self._write_note(note)

    def _flush(self, stream: BinaryIO) -> None:
        with writing(self.part):
            stream.flush()
            os.fsync(stream.fileno())
        self._write_note(replace(self.note, kept=stream.tell()))
        self._flushed_s = time.monotonic()

    def _write_note(self, note: _Note) -> None:
        self.note = note
        write_file(self._noted, canonical_json(asdict(note)))

    def _read_note(self) -> _Note:
        """Read the note of an earlier call for this URL; an empty one where there is none."""
        try:
            note = _Note(**json.loads(read_private(self._noted, MAX_NOTE_BYTES) or b"{}"))
        except (TypeError, ValueError, RecursionError):
            return _Note(self._request.url)
        counts = all(type(count) is int and count >= 0 for count in (note.kept, note.total or 0))
        valid = counts and note.url == self._request.url and _is_validator(note.validator)
        return note if valid else _Note(self._request.url)


def _validator(headers: Mapping[str, str]) -> str | None:
    """Return the server's identifier for this version of the file: a strong ETag, else its date."""
    tag = headers.get("ETag")
    value = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    return value if _is_validator(value) else None


def _is_validator(value: Any) -> bool:
    """Return whether a value can be sent back in a header."""
    return value is None or (
        isinstance(value, str) and len(value) <= MAX_VALIDATOR and value.isascii() and value.isprintable()
    )


def _missing(total: int | None, count: int) -> int:
    """Return the maximum number of bytes for the next read, after `count` bytes of a file."""
    return _CHUNK if total is None else min(_CHUNK, total - count)

"""HTTP requests that end, whatever the server sends: limits on time, rate, headers and redirects.

A malformed answer is an error of the tree, or a BrokenError, after which another attempt may succeed.
"""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from edgekd.core.errors import DeviceError, first_line

SCHEMES = ("https", "http", "file")
MAX_REDIRECTS = 5
"""Redirects of one request; servers of files need one or two."""
MAX_HEADER_BYTES = 1 << 16
"""Status line and headers of a response together; 2 kB are usual."""
WINDOW_S = 60.0
"""Time over which the minimum rate is taken: longer than a handover between cells or a short outage."""
MIN_BYTES_PER_S = 256
"""Minimum rate: a tenth of a slow NB-IoT link's."""
MAX_DURATION_S = 24 * 3600.0
"""Maximum duration of a call: 12 MB at the minimum rate take 13 hours."""
_REDIRECTS = (301, 302, 303, 307, 308)
_URL = re.compile(r"[!-~]{1,2000}")  # ASCII without spaces and control characters


class BrokenError(Exception):
    """The connection broke, or the server is busy: another attempt may succeed.

    refused: nobody listens there; slow: it was below the minimum rate.
    """

    def __init__(self, found: str, *, refused: bool = False, slow: bool = False) -> None:
        super().__init__(found)
        self.refused, self.slow = refused, slow


@dataclass(frozen=True)
class TransferLimits:
    """Limits on time. min_bytes_per_s: over each window of a connection; max_duration_s: of a call."""

    window_s: float = WINDOW_S
    min_bytes_per_s: float = MIN_BYTES_PER_S
    max_duration_s: float = MAX_DURATION_S


DEFAULT_LIMITS = TransferLimits()


class Pace:
    """The rate of a connection's payload, and the time that is left for all connections."""

    def __init__(self, limits: TransferLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._deadline = clock() + limits.max_duration_s
        self._began = self._count = 0.0

    def begin(self) -> None:
        """Begin a connection."""
        self._began, self._count = self._clock(), 0.0

    def add(self, count: int) -> None:
        """Count bytes of the payload."""
        self._count += count

    def check(self) -> None:
        """Raise DeviceError where the time is over, BrokenError where the connection is too slow."""
        now = self._clock()
        if now > self._deadline:
            limit = f"at most {self._limits.max_duration_s:g} s"
            raise DeviceError("the download takes too long", expected=limit, fix="call it again: it goes on from there")
        if now - self._began >= self._limits.window_s:
            if self._count < self._limits.min_bytes_per_s * self._limits.window_s:
                found = f"{self._count:.0f} bytes in {now - self._began:.0f} s"
                raise BrokenError(f"the connection is too slow: {found}", slow=True)
            self.begin()


class Transport:
    """Opens URLs. pace: of the download."""

    def __init__(self, pace: Pace, timeout_s: float) -> None:
        self._pace, self._timeout_s = pace, timeout_s
        self._opener = urllib.request.OpenerDirector()
        handlers: list[Any] = [
            urllib.request.ProxyHandler(),
            _HTTPHandler(pace),
            urllib.request.FileHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ]
        if hasattr(http.client, "HTTPSConnection"):  # there is none where Python has no ssl
            handlers.append(_https_handler(pace))
        for handler in handlers:
            self._opener.add_handler(handler)

    def open(self, url: str, headers: Mapping[str, str]) -> Any:
        """Return the response to a request, after redirects. Raises BrokenError, HTTPError, DeviceError.

        The body of a redirect is not read.
        """
        at = url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                return self._open(at, headers)
            except urllib.error.HTTPError as error:
                if error.code not in _REDIRECTS:
                    raise
                error.close()
                at = _redirected(url, at, error.headers.get("Location") or "")
        raise _refused(url, f"at most {MAX_REDIRECTS} redirects", "more")

    def _open(self, url: str, headers: Mapping[str, str]) -> Any:
        self._pace.begin()
        self._pace.check()
        request = urllib.request.Request(url, headers=dict(headers))
        try:
            return self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            refused = isinstance(error.reason, ConnectionRefusedError)
            raise BrokenError(str(error.reason)[:200], refused=refused) from error
        except (http.client.HTTPException, OSError) as error:
            raise BrokenError(first_line(error)) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # urllib and http.client raise these on some malformed answers.
            raise _refused(url, "an answer by HTTP", first_line(error)) from error


def read_some(response: Any, count: int) -> bytes:
    """Return the next bytes of a response, at most `count`; none at its end. Raises BrokenError, DeviceError."""
    try:
        chunk: bytes = response.read1(count)
    except (http.client.HTTPException, OSError) as error:
        raise BrokenError(first_line(error)) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise BrokenError(f"a malformed answer: {first_line(error)}") from error
    return chunk


def is_url(url: str) -> bool:
    """Return whether this is a complete URL of a known scheme."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in SCHEMES and (parts.scheme == "file" or bool(parts.hostname))
        return known and _URL.fullmatch(url) is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _redirected(url: str, at: str, location: str) -> str:
    """Return where a redirect leads to. Raises DeviceError where it must not be followed."""
    try:
        goal = urljoin(at, location)
    except ValueError:
        goal = ""
    scheme = urlsplit(goal).scheme if is_url(goal) else ""
    if scheme not in ("https", "http") or not location:
        raise _refused(url, "a redirect to https:// or http://", f"{location[:200]!r}")
    if scheme == "http" and at.startswith("https:"):
        raise _refused(url, "a redirect to https://", f"one to a URL without encryption, {goal[:200]}")
    return goal


def _refused(url: str, expected: str, found: str) -> DeviceError:
    return DeviceError(f"{url}: cannot be fetched", expected=expected, found=found, fix="check the address and server")


class _PacedStream(io.RawIOBase):
    """A socket's stream that checks the pace at each read, and the size of the headers while `headers` is set."""

    def __init__(self, raw: Any, pace: Pace) -> None:
        super().__init__()
        self._raw, self._pace = raw, pace
        self.headers = True
        self._header_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        self._pace.check()
        count = self._raw.readinto(buffer)
        if self.headers:
            self._header_bytes += count or 0
            if self._header_bytes > MAX_HEADER_BYTES + io.DEFAULT_BUFFER_SIZE:
                raise http.client.HTTPException(f"headers of more than {MAX_HEADER_BYTES} bytes")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *arguments: Any, pace: Pace, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        stream: Any = self.fp
        self._paced = _PacedStream(stream.detach(), pace)
        self.fp = io.BufferedReader(self._paced)

    def begin(self) -> None:
        super().begin()
        self._paced.headers = False


def _paced(connection: Any, pace: Pace, *arguments: Any, **named: Any) -> Any:
    """Return a connection of a class whose responses keep the pace."""
    made = connection(*arguments, **named)
    made.response_class = partial(_Response, pace=pace)
    return made


class _HTTPHandler(urllib.request.HTTPHandler):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def http_open(self, req: Any) -> Any:
        return self.do_open(partial(_paced, http.client.HTTPConnection, self._pace), req)  # type: ignore[arg-type]


def _https_handler(pace: Pace) -> Any:
    """Return the handler of https, which Python has only with ssl."""

    class Handler(urllib.request.HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(partial(_paced, http.client.HTTPSConnection, pace), req)  # type: ignore[arg-type]

    return Handler()

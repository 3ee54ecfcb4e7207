"""A connection to a device: uploads files and runs programs there, for as long as this process lives.

`edgekd.deploy.devices.camera_side` is the other end. Nothing keeps running on the device: when this end exits, the
stdin of the other end closes, and with it the program that it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import shlex
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from edgekd.core.canonical import file_sha256
from edgekd.core.errors import DataError, DeviceError, SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.deploy.devices.answers import MAX_STDERR_BYTES, error_text, parsed

T = TypeVar("T")
P = ParamSpec("P")

OLDEST_PYTHON = (3, 8)
"""Oldest Python that runs the agent."""
HEARTBEATS = 6
"""Heartbeats that this end sends within the silence timeout of the other end."""
_CHUNK_BYTES = 1 << 16
_ANSWER_S = 120.0  # for an answer, and for the device to take 64 KiB of a file
_WAIT_FOR_OTHERS_S = 45.0  # for the lock on a folder
_MAX_GREETINGS = 50  # lines that a login shell may print before the first answer
_MESSAGE_CHARS = 300  # of a program's error output
_PROBLEM = b'{"problem": '  # beginning of an error, as the other end writes it
_LOADER = "import functools,os,sys;exec(functools.reduce(lambda t,i:t+os.read(0,{0}-len(t)),range({0}),b''))"
"""Reads the program from stdin and leaves the rest: some cameras limit command lines to a few KB."""


class Pipes(Protocol):
    """stdin and stdout of a process on the device."""

    async def line(self) -> bytes:
        """Return the next line; empty at the end. Raises DeviceError if the connection is lost."""
        ...

    async def write(self, content: bytes) -> None:
        """Write all of it. A closed pipe is no error here: `line` reports it."""
        ...

    async def ended(self) -> tuple[int | None, str]:
        """Wait for the end; return the exit code, None if unknown, and the end of the output on stderr."""
        ...


@dataclass(frozen=True)
class Settings:
    """Settings of a connection.

    python: interpreter on the device; silence_s: time without a heartbeat after which the other end exits, None if
    only the end of stdin counts.
    """

    python: str
    silence_s: float | None = None

    @property
    def heartbeat_s(self) -> float | None:
        """Interval of heartbeats."""
        return None if self.silence_s is None else self.silence_s / HEARTBEATS

    def command(self) -> list[str]:
        """Return the command to start on the device."""
        return [self.python, "-c", _LOADER.format(len(_program())), json.dumps({"silence_s": self.silence_s})]

    def shell_command(self) -> str:
        """Return the same for a shell, which it replaces."""
        return "exec " + shlex.join(self.command())


@dataclass(frozen=True)
class Upload:
    """A file on the device: its path there, its size, and how many bytes had to be sent."""

    path: str
    bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class ProgramResult:
    """Exit code of a program (negative for a signal), and the ends of its outputs: 256 and 64 KiB."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class _Greeting:
    """First answer: version of Python."""

    python: tuple[int, int, int]


@dataclass(frozen=True)
class _Claimed:
    """Answer of `claim`."""


@dataclass(frozen=True)
class _Present:
    """First answer of `receive`: bytes of the file that are there; their SHA-256, or the path of the complete file."""

    kept: int
    sha256: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class _Received:
    """Last answer of `receive`."""

    path: str


@dataclass(frozen=True)
class _Problem:
    """An error."""

    what: str
    expected: str | None = None
    found: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class _Failed:
    """Answer in place of any other."""

    problem: _Problem


class Stop:
    """Interrupts work in other threads as Ctrl-C does in the main one."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._tasks: set[asyncio.Task[Any]] = set()

    def set(self) -> None:
        """Cancel running and later work, each at a point where it can clean up."""
        with self._lock:
            self._stopped = True
            for task in self._tasks:
                task.get_loop().call_soon_threadsafe(task.cancel)

    @contextmanager
    def watching(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Let `set` cancel a task whose loop does not run yet."""
        with self._lock:
            self._tasks.add(task)
            if self._stopped:
                task.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._tasks.discard(task)


def blocking(
    method: Callable[Concatenate[Connection, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Connection, P], T]:
    """Run a coroutine method to its end, on the event loop of its connection."""

    @functools.wraps(method)
    def call(connection: Connection, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        return _finish(connection.loop, method(connection, *arguments, **keywords), connection.stop)

    return call


class Connection:
    """A connection whose other end has started. Its methods block, and raise KeyboardInterrupt after Ctrl-C or `stop`.

    stop: interrupts the methods from another thread.
    """

    stop: Stop | None = None

    def __init__(self, device: str, pipes: Pipes, settings: Settings) -> None:
        self.python, self._heartbeat_s = settings.python, settings.heartbeat_s
        self.loop = asyncio.get_running_loop()
        self._device, self._pipes = device, pipes
        self._action = "the first answer"

    async def begin(self) -> None:
        """Start the program at the other end, and check its Python version. Raises DeviceError."""
        await self._pipes.write(_program())
        version = (await self._answer(_Greeting, _ANSWER_S, greetings=_MAX_GREETINGS)).python
        if version < OLDEST_PYTHON:
            raise DeviceError(
                f"{self._device}: {self.python} is too old",
                expected=f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer",
                found=".".join(map(str, version)),
                fix="name another with --python",
            )

    @blocking
    async def claim(self, folder: str) -> None:
        """Make a folder and lock it for as long as the connection lasts. Raises DeviceError."""
        limit_s = _WAIT_FOR_OTHERS_S + _ANSWER_S
        action = f"the claim on {folder}"
        await self._request(_Claimed, action, limit_s, do="claim", folder=folder, wait_s=_WAIT_FOR_OTHERS_S)

    @blocking
    async def heartbeat(self) -> None:
        """Send a heartbeat: for callers that wait for something else."""
        await self._pipes.write(b"\n")

    @blocking
    async def put(self, file: Path, folder: str, keep: Sequence[str], progress: Progress = SILENT) -> Upload:
        """Upload a file into a folder under its SHA-256, resuming an earlier upload; delete other files there.

        keep: hashes of files to keep. Raises DeviceError.
        """
        size, sha256 = file.stat().st_size, file_sha256(file)
        request = {"do": "receive", "folder": folder, "sha256": sha256, "count": size, "keep": list(keep)}
        present = await self._request(_Present, f"the upload of {file.name}", _ANSWER_S, **request)
        path = str(PurePosixPath(folder, sha256))
        if present.path is not None:
            self._require_path(path, present.path)
            return Upload(path, size, 0)
        begin = present.kept
        if not 0 <= begin <= size or present.sha256 != _prefix_sha256(file, begin):
            begin = 0
        await self._write(begin=begin)
        # The other end may report a full disk while this end still sends.
        sending = asyncio.ensure_future(self._send(file, begin, size, progress))
        line = asyncio.ensure_future(self._pipes.line())
        try:
            await asyncio.wait((sending, line), return_when=asyncio.FIRST_COMPLETED)
            if not line.done():
                await sending  # raises if the file cannot be read
            answer = await self._read(_Received, await asyncio.wait_for(line, _ANSWER_S))
        except asyncio.TimeoutError as error:
            raise self._timeout(_ANSWER_S) from error
        finally:
            await _cancelled(sending, line)
        self._require_path(path, answer.path)
        return Upload(path, size, size - begin)

    @blocking
    async def run(self, action: str, command: Sequence[str], limit_s: float) -> ProgramResult:
        """Run a program. Raises DeviceError, also after `limit_s`: then the connection is unusable.

        action: name of the program in errors.
        """
        return await self._request(ProgramResult, action, limit_s, do="run", command=list(command))

    def _require_path(self, expected: str, found: str) -> None:
        if found != expected:
            what = f"{self._device}: {self._action}: another file than the one that was sent"
            raise DeviceError(what, expected=expected, found=error_text(found))

    async def _request(self, kind: type[T], action: str, limit_s: float, **request: Any) -> T:
        self._action = action
        await self._write(**request)
        return await self._answer(kind, limit_s)

    async def _write(self, **request: Any) -> None:
        await self._pipes.write(json.dumps(request).encode("ascii") + b"\n")

    async def _answer(self, kind: type[T], limit_s: float, greetings: int = 0) -> T:
        """Wait for the next answer, sending heartbeats. greetings: number of leading lines of other text to skip."""
        line = asyncio.ensure_future(self._pipes.line())
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        try:
            while (left := until - loop.time()) > 0:
                if (await asyncio.wait((line,), timeout=min(self._heartbeat_s or left, left)))[0]:
                    content = line.result()
                    if not greetings or not content or content.startswith(b"{"):
                        return await self._read(kind, content)
                    greetings, line = greetings - 1, asyncio.ensure_future(self._pipes.line())
                await self._pipes.write(b"\n")
        finally:
            await _cancelled(line)
        raise self._timeout(limit_s)

    async def _read(self, kind: type[T], line: bytes) -> T:
        """Return an answer. Raises DeviceError for another one, and for an error that the other end reports."""
        if not (line.startswith(b"{") and line.endswith(b"\n")):
            raise await self._closed(line)
        where = f"{self._device}: unexpected answer to {self._action}"
        try:
            if line.startswith(_PROBLEM):
                problem = parsed(_Failed, line, where).problem
                raise DeviceError(
                    f"{self._device}: {error_text(problem.what)}",
                    expected=error_text(problem.expected),
                    found=error_text(problem.found),
                    fix=error_text(problem.fix),
                )
            return parsed(kind, line, where)
        except SpecError as error:
            raise DeviceError(error.what, expected=error.expected, found=error_text(error.found)) from error

    async def _closed(self, line: bytes) -> DeviceError:
        """Return the error for a process that ended without an answer."""
        code, stderr = await self._pipes.ended()
        lines = (stderr.strip() or line.decode("utf-8", "replace").strip()).splitlines()
        message = lines[-1][:_MESSAGE_CHARS] if lines else None
        if code in (126, 127):
            return DeviceError(
                f"{self._device}: no interpreter {self.python}",
                expected="Python 3.8 or newer with NumPy",
                found=message,
                fix="name it with --python",
            )
        return DeviceError(
            f"{self._device}: connection closed during {self._action}",
            found=message or (f"exit code {code}" if code is not None else None),
            fix="run it again: completed work is kept",
        )

    def _timeout(self, limit_s: float) -> DeviceError:
        return DeviceError(
            f"{self._device}: no answer to {self._action}",
            expected=f"one within {limit_s:g} s",
            fix="check the load of the device, or raise --timeout",
        )

    async def _send(self, file: Path, begin: int, count: int, progress: Progress) -> None:
        chunks = -(-(count - begin) // _CHUNK_BYTES)
        label = f"upload of {file.name}, chunks of 64 KiB"
        for chunk in progress.items(_chunks(file, begin, count), label, chunks):
            await asyncio.wait_for(self._pipes.write(chunk), _ANSWER_S)


@contextmanager
def connected(
    connect: Callable[[], AbstractAsyncContextManager[Connection]], stop: Stop | None = None
) -> Iterator[Connection]:
    """Yield a connection with its own event loop; it is closed at the end, also after Ctrl-C or `stop`."""
    loop = asyncio.new_event_loop()
    try:
        opening = connect()
        connection = _finish(loop, opening.__aenter__(), stop)
        connection.stop = stop
        try:
            yield connection
        finally:
            _finish(loop, opening.__aexit__(None, None, None))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _finish(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], stop: Stop | None = None) -> T:
    """Run to the end. Ctrl-C, or `stop`, cancels it where it can clean up, and raises KeyboardInterrupt."""
    task = loop.create_task(work)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        handler = signal.getsignal(signal.SIGINT)
        loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        with stop.watching(task) if stop else contextlib.nullcontext():
            return loop.run_until_complete(task)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if in_main_thread:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, handler)


def _program() -> bytes:
    return Path(__file__).with_name("camera_side.py").read_bytes()


def _prefix_sha256(file: Path, count: int) -> str:
    """Return the SHA-256 of the first `count` bytes of a file."""
    digest = hashlib.sha256()
    for chunk in _chunks(file, 0, count):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: Path, begin: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of a file from `begin` to `end`. Raises DataError if it cannot be read, or is shorter."""
    try:
        with file.open("rb") as stream:
            stream.seek(begin)
            while begin < end:
                chunk = stream.read(min(end - begin, _CHUNK_BYTES))
                if not chunk:
                    raise DataError(f"{file}: became shorter while it was read", fix="run it again")
                begin += len(chunk)
                yield chunk
    except OSError as error:
        raise DataError(f"{file}: cannot be read", found=error.strerror or str(error), fix="check the path") from error


async def read_tail(read: Callable[[int], Awaitable[bytes]], tail: bytearray) -> None:
    """Read to the end of a stream, and keep the last MAX_STDERR_BYTES in `tail`, also if this is cancelled."""
    while chunk := await read(_CHUNK_BYTES):
        tail += chunk
        del tail[:-MAX_STDERR_BYTES]


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their end, ignoring their errors."""
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

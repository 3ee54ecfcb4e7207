"""A device while something is done on it: files are put there, and programs run, for as long as this process is there.

`edgekd.deploy.devices.camera_side` is the other end. Whatever happens here, nothing goes on running there: when this
end goes, its stdin ends, and with that the program that it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shlex
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgekd.core.canonical import file_sha256
from edgekd.core.errors import DataError, DeviceError
from edgekd.core.progress import SILENT, Progress

T = TypeVar("T")

OLDEST_PYTHON = (3, 8)
"""What the agent needs."""
HEARTBEATS = 6
"""How many signs of life this end gives in the time in which the other must hear one."""
_PIECE = 1 << 16
_ANSWER_S = 120.0
_WAIT_FOR_OTHERS_S = 45.0
_GREETINGS, _MESSAGE = 50, 300
_LOADER = "import functools,os,sys;exec(functools.reduce(lambda t,i:t+os.read(0,{0}-len(t)),range({0}),b''))"
"""Reads the program from stdin, whose other bytes are left to it: command lines are short on some cameras."""


class Pipes(Protocol):
    """stdin and stdout of a process there."""

    async def line(self) -> bytes:
        """The next line, or nothing where there are no more. Raises DeviceError where the connection is lost."""
        ...

    async def write(self, content: bytes) -> None:
        """Write all of it. Where nobody reads any more nothing is said: `line` tells why."""
        ...

    async def ended(self) -> tuple[int | None, str]:
        """The exit code, where there is one, and what was said on stderr."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a device is spoken to.

    python: its interpreter; silence_s: for how long nothing may be heard of this end, None where only the end of stdin
    counts.
    """

    python: str
    silence_s: float | None = None

    @property
    def heartbeat_s(self) -> float | None:
        """How often this end gives a sign of life."""
        return None if self.silence_s is None else self.silence_s / HEARTBEATS

    def command(self) -> list[str]:
        """The process to start there."""
        return [self.python, "-c", _LOADER.format(len(_program())), json.dumps({"silence_s": self.silence_s})]

    def shell_command(self) -> str:
        """The same for a shell, which it replaces."""
        return "exec " + shlex.join(self.command())


@dataclass(frozen=True)
class Placed:
    """A file on the device: its path there; of its bytes those that were sent, the others were there already."""

    path: str
    bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class Ended:
    """Result of a program: exit code (negative for a signal), and the ends of its outputs: 256 and 64 KiB."""

    code: int
    out: str
    err: str


class Session:
    """The process there, once it has said hello."""

    def __init__(self, device: str, pipes: Pipes, settings: Settings) -> None:
        self.python, self._heartbeat_s = settings.python, settings.heartbeat_s
        self._device, self._pipes = device, pipes
        self._doing = "the first answer"

    async def begin(self) -> None:
        """Start the program, and see that Python there is not too old. Raises DeviceError."""
        await self._pipes.write(_program())
        told = await self._answer(_ANSWER_S, greetings=_GREETINGS)
        version = tuple(told["python"])
        if version < OLDEST_PYTHON:
            raise DeviceError(
                f"{self._device}: {self.python} is too old",
                expected=f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer",
                found=".".join(map(str, version)),
                fix="name another with --python",
            )

    async def claim(self, folder: str) -> None:
        """Make a folder there, and keep others out of it for as long as this session lasts. Raises DeviceError."""
        limit_s = _WAIT_FOR_OTHERS_S + _ANSWER_S
        await self._ask(f"the claim on {folder}", limit_s, do="claim", folder=folder, wait_s=_WAIT_FOR_OTHERS_S)

    async def alive(self) -> None:
        """Give a sign of life: for callers who wait for something else."""
        await self._pipes.write(b"\n")

    async def put(self, file: Path, folder: str, keep: Sequence[str], progress: Progress = SILENT) -> Placed:
        """Send a file into the folder, named by its hash: what is there of it is not sent again, what else is goes.

        keep: hashes of the files that stay. Raises DeviceError.
        """
        count, sha256 = file.stat().st_size, file_sha256(file)
        asked = {"do": "receive", "folder": folder, "sha256": sha256, "count": count, "keep": list(keep)}
        there = await self._ask(f"the upload of {file.name}", _ANSWER_S, **asked)
        if "path" in there:
            return Placed(there["path"], count, 0)
        begin = there["kept"]
        if begin > count or there["sha256"] != _prefix_sha256(file, begin):
            begin = 0
        await self._write(begin=begin)
        # A full disk there is told while this end still sends.
        sending = asyncio.ensure_future(self._send(file, begin, count, progress))
        answer = asyncio.ensure_future(self._pipes.line())
        try:
            await asyncio.wait((sending, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await sending  # nothing but the file itself can fail
            told = await self._read(await asyncio.wait_for(answer, _ANSWER_S))
        except asyncio.TimeoutError as error:
            raise self._late(_ANSWER_S) from error
        finally:
            await _cancelled(sending, answer)
        return Placed(told["path"], count, count - begin)

    async def run(self, doing: str, command: Sequence[str], limit_s: float) -> Ended:
        """Run a program there. Raises DeviceError, also where it takes longer than `limit_s`: then the session is over.

        doing: what people call it.
        """
        told = await self._ask(doing, limit_s, do="run", command=list(command))
        return Ended(told["code"], told["out"], told["err"])

    async def _ask(self, doing: str, limit_s: float, **request: Any) -> dict[str, Any]:
        self._doing = doing
        await self._write(**request)
        return await self._answer(limit_s)

    async def _write(self, **request: Any) -> None:
        await self._pipes.write(json.dumps(request).encode("ascii") + b"\n")

    async def _answer(self, limit_s: float, greetings: int = 0) -> dict[str, Any]:
        """The next answer, with a sign of life now and then while it is awaited.

        greetings: so many lines of something else, which shells may say first, are passed over.
        """
        line = asyncio.ensure_future(self._pipes.line())
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        try:
            while (left := until - loop.time()) > 0:
                if (await asyncio.wait((line,), timeout=min(self._heartbeat_s or left, left)))[0]:
                    said = line.result()
                    if not greetings or not said or said.startswith(b"{"):
                        return await self._read(said)
                    greetings, line = greetings - 1, asyncio.ensure_future(self._pipes.line())
                await self._pipes.write(b"\n")
        finally:
            await _cancelled(line)
        raise self._late(limit_s)

    async def _read(self, line: bytes) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            raise await self._gone(line) from None
        if "problem" in told:
            problem = told["problem"]
            raise DeviceError(f"{self._device}: {problem.pop('what')}", **problem)
        return told

    async def _gone(self, line: bytes) -> DeviceError:
        """Why there is no answer."""
        code, said = await self._pipes.ended()
        last = [text[:_MESSAGE] for text in (said.strip() or line.decode("utf-8", "replace").strip()).splitlines()[-1:]]
        if code in (126, 127):
            return DeviceError(
                f"{self._device}: no interpreter {self.python}",
                expected="Python 3.8 or newer with NumPy",
                found=last[0] if last else None,
                fix="name it with --python",
            )
        how = f"exit code {code}" if code is not None else None
        return DeviceError(
            f"{self._device}: gone during {self._doing}",
            found=last[0] if last else how,
            fix="run it again: what was done is kept",
        )

    def _late(self, limit_s: float) -> DeviceError:
        return DeviceError(
            f"{self._device}: no answer to {self._doing}",
            expected=f"one within {limit_s:g} s",
            fix="see what keeps the device busy, or allow more with --timeout",
        )

    async def _send(self, file: Path, begin: int, count: int, progress: Progress) -> None:
        pieces = -(-(count - begin) // _PIECE)
        label = f"upload of {file.name}, pieces of 64 KiB"
        for piece in progress.items(_pieces(file, begin, count), label, pieces):
            await self._pipes.write(piece)


class Stop:
    """Does to work in other threads what Ctrl-C does to that in the main one."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._tasks: set[asyncio.Task[Any]] = set()

    def set(self) -> None:
        """End what runs and what is begun later, each at a point where it can clean up."""
        with self._lock:
            self._stopped = True
            for task in self._tasks:
                task.get_loop().call_soon_threadsafe(task.cancel)

    @contextmanager
    def watching(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Have a task, whose loop does not run yet, cancelled by `set`."""
        with self._lock:
            self._tasks.add(task)
            if self._stopped:
                task.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._tasks.discard(task)


class Site:
    """The same for callers that are not asynchronous: a device between `opened` and its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session: Session, stop: Stop | None = None) -> None:
        self.python = session.python
        self._loop, self._session, self._stop = loop, session, stop

    def claim(self, folder: str) -> None:
        """As `Session.claim`."""
        finish(self._loop, self._session.claim(folder), self._stop)

    def alive(self) -> None:
        """As `Session.alive`."""
        finish(self._loop, self._session.alive(), self._stop)

    def put(self, file: Path, folder: str, keep: Sequence[str], progress: Progress = SILENT) -> Placed:
        """As `Session.put`."""
        return finish(self._loop, self._session.put(file, folder, keep, progress), self._stop)

    def run(self, doing: str, command: Sequence[str], limit_s: float) -> Ended:
        """As `Session.run`."""
        return finish(self._loop, self._session.run(doing, command, limit_s), self._stop)


@contextmanager
def opened(connected: Callable[[], AbstractAsyncContextManager[Session]], stop: Stop | None = None) -> Iterator[Site]:
    """A site with a loop of its own; at the end, also after Ctrl-C or `stop`, the connection is closed."""
    loop = asyncio.new_event_loop()
    try:
        connection = connected()
        session = finish(loop, connection.__aenter__(), stop)
        try:
            yield Site(loop, session, stop)
        finally:
            finish(loop, connection.__aexit__(None, None, None))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def finish(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], stop: Stop | None = None) -> T:
    """Run to the end. Ctrl-C, or `stop`, cancels it where it can clean up; KeyboardInterrupt is raised then."""
    task = loop.create_task(work)
    ours = threading.current_thread() is threading.main_thread()
    if ours:
        before = signal.getsignal(signal.SIGINT)
        loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        with stop.watching(task) if stop else contextlib.nullcontext():
            return loop.run_until_complete(task)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if ours:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)


def _program() -> bytes:
    return Path(__file__).with_name("camera_side.py").read_bytes()


def _prefix_sha256(file: Path, count: int) -> str:
    """SHA-256 of the first `count` bytes of a file."""
    found = hashlib.sha256()
    for piece in _pieces(file, 0, count):
        found.update(piece)
    return found.hexdigest()


def _pieces(file: Path, begin: int, end: int) -> Iterator[bytes]:
    """The bytes of a file from `begin` to `end`. Raises DataError where it cannot be read, or is shorter."""
    try:
        with file.open("rb") as stream:
            stream.seek(begin)
            while begin < end:
                piece = stream.read(min(end - begin, _PIECE))
                if not piece:
                    raise DataError(f"{file}: became shorter while it was read", fix="run it again")
                begin += len(piece)
                yield piece
    except OSError as error:
        raise DataError(f"{file}: cannot be read", found=error.strerror or str(error), fix="check the path") from error


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Have tasks ended, whatever became of them."""
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

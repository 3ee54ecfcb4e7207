"""A connection to a process on this machine: `local` and `null` take the same steps as `ssh`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager

from edgekd.core.errors import DeviceError
from edgekd.deploy.devices.connection import Connection, Settings, Stop, connected, read_tail

_MAX_LINE_BYTES = 1 << 24
_CLOSING_S = 5.0


def connect_local(device: str, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Connection]:
    """Connect to this machine; python: interpreter, None for the running one. Raises DeviceError."""
    return connected(lambda: _connection(device, Settings(python or sys.executable)), stop)


@asynccontextmanager
async def _connection(device: str, settings: Settings) -> AsyncIterator[Connection]:
    try:
        process = await asyncio.create_subprocess_exec(
            *settings.command(), stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=_MAX_LINE_BYTES, start_new_session=True
        )
    except OSError as error:
        what = f"{device}: no interpreter {settings.python}"
        raise DeviceError(what, found=error.strerror, fix="name it with --python") from error
    try:
        connection = Connection(device, _LocalPipes(process), settings)
        await connection.begin()
        yield connection
    finally:
        assert process.stdin
        process.stdin.close()
        # Its children hold its pipes, too, so signals go to the whole process group.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), _CLOSING_S)
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        await process.wait()


class _LocalPipes:
    """Pipes of a process on this machine."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def line(self) -> bytes:
        assert self._process.stdout
        return await self._process.stdout.readline()

    async def write(self, content: bytes) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.write(content)
            await self._process.stdin.drain()

    async def ended(self) -> tuple[int | None, str]:
        assert self._process.stderr
        stderr = bytearray()
        with contextlib.suppress(asyncio.TimeoutError):  # the process may keep running after a wrong answer
            await asyncio.wait_for(read_tail(self._process.stderr.read, stderr), _CLOSING_S)
            await asyncio.wait_for(self._process.wait(), _CLOSING_S)
        return self._process.returncode, stderr.decode("utf-8", "replace")

"""A process on this machine that stands where a camera's would: with it `local` and `null` do what `ssh` does."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager

from edgekd.core.errors import DeviceError
from edgekd.deploy.devices.session import Session, Settings, Site, Stop, opened

_LONGEST_LINE = 1 << 24
_CLOSING_S = 5.0


def local_site(device: str, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Site]:
    """This machine, open for work; `python` None is the interpreter that runs this. Raises DeviceError."""
    return opened(lambda: _started(device, Settings(python or sys.executable)), stop)


@asynccontextmanager
async def _started(device: str, settings: Settings) -> AsyncIterator[Session]:
    try:
        process = await asyncio.create_subprocess_exec(
            *settings.command(), stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=_LONGEST_LINE, start_new_session=True
        )
    except OSError as error:
        what = f"{device}: no interpreter {settings.python}"
        raise DeviceError(what, found=error.strerror, fix="name it with --python") from error
    try:
        session = Session(device, _Pipes(process), settings)
        await session.begin()
        yield session
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _CLOSING_S)
        except asyncio.TimeoutError:
            process.terminate()
            await process.wait()


class _Pipes:
    """A process here."""

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
        said = await self._process.stderr.read()
        return await self._process.wait(), said.decode("utf-8", "replace")

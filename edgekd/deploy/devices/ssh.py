"""A camera over SSH: keys only, known hosts only, and nothing goes on there when the connection is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edgekd.core.errors import DeviceError, SpecError
from edgekd.deploy.devices.session import Session, Settings, Site, Stop, opened

if TYPE_CHECKING:
    import asyncssh

SCHEME = "ssh://"
PYTHON = "python3"
_FORM = "ssh://[USER@]HOST[:PORT]"
_USUAL_PORT = 22
_CLOSING_S = 5.0


@dataclass(frozen=True)
class Address:
    """Address of a camera; user and port None where ~/.ssh/config or the default decides."""

    host: str
    user: str | None
    port: int | None

    @property
    def login(self) -> str:
        """Argument for `ssh`."""
        port = f"-p {self.port} " if self.port else ""
        return f"{port}{self.user}@{self.host}" if self.user else f"{port}{self.host}"


@dataclass(frozen=True)
class SshDevice:
    """A camera.

    silence_s: for how long the camera waits for a sign of life before it ends what runs there; keepalive_s: how often
    the connection is tried, and after four times without an answer is lost; connect_s: what reaching it and logging in
    may take.
    """

    name: str
    address: Address
    silence_s: float = 30.0
    keepalive_s: float = 10.0
    connect_s: float = 30.0
    runtime: str | None = None

    def site(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Site]:
        """The camera, open for work. Raises DeviceError."""
        settings = Settings(python or PYTHON, self.silence_s)
        return opened(lambda: _connected(self, settings), stop)


def parse(name: str) -> Address:
    """The address in `ssh://user@host:port`. Raises SpecError."""
    try:
        parts = urlsplit(name)
        port = parts.port
    except ValueError as error:
        raise SpecError(f"--device {name}", expected=_FORM, found=str(error)) from error
    if parts.password is not None:
        fix = "leave the password out, and let the camera know your key: ssh-copy-id"
        raise SpecError("--device: a password in an address can be read by everybody", expected=_FORM, fix=fix)
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise SpecError(f"--device {name}", expected=_FORM)
    # Not parts.hostname, which is in lower case: names in ~/.ssh/config are not.
    host = parts.netloc.rpartition("@")[2].removesuffix(f":{port}" if port else ":")
    return Address(host.strip("[]"), parts.username, port)


@asynccontextmanager
async def _connected(device: SshDevice, settings: Settings) -> AsyncIterator[Session]:
    with _said_as_ours(device):
        connection = await asyncio.wait_for(_connect(device), device.connect_s)
    try:
        with _said_as_ours(device):
            process = await connection.create_process(settings.shell_command(), encoding=None, request_pty=False)
        try:
            session = Session(device.name, _Pipes(device, process), settings)
            await session.begin()
            yield session
        finally:
            # The end of its stdin ends whatever runs there; that is waited for.
            with contextlib.suppress(Exception):
                process.stdin.write_eof()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait_closed(), _CLOSING_S)
    finally:
        connection.abort()
        await connection.wait_closed()


async def _connect(device: SshDevice) -> asyncssh.SSHClientConnection:
    import asyncssh

    address = device.address
    told: dict[str, Any] = {"username": address.user, "port": address.port}
    told = {name: value for name, value in told.items() if value is not None}
    options = await asyncssh.SSHClientConnectionOptions.construct(config=(), host=address.host, **told)
    if options.known_hosts is None:
        what = f"{device.name}: UserKnownHostsFile none in ~/.ssh/config would accept every host key"
        raise DeviceError(what, expected="a file", fix="name one for this host")
    refused: list[DeviceError] = []
    try:
        return await asyncssh.connect(
            address.host,
            client_factory=lambda: _host_keys(device, options.known_hosts, refused),
            password_auth=False,
            kbdint_auth=False,
            keepalive_interval=device.keepalive_s,
            keepalive_count_max=3,
            **told,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise (refused[0] if refused else error) from error


def _host_keys(device: SshDevice, known_hosts: Any, refused: list[DeviceError]) -> asyncssh.SSHClient:
    """Callbacks of a connection: an unknown host key is refused, and `refused` says why."""
    import asyncssh

    class HostKeys(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
            usual = Path("~/.ssh/known_hosts").expanduser()
            files = known_hosts or ([str(usual)] if usual.is_file() else [])
            known = asyncssh.match_known_hosts(files, host, addr, port)[0] if files else ()
            refused.append(_untrusted(device, Address(host, device.address.user, port), key, known))
            return False

    return HostKeys()


def _untrusted(device: SshDevice, address: Address, key: asyncssh.SSHKey, known: Any) -> DeviceError:
    """Why a host key is not taken; `known`: the keys that the host is known by."""
    found = f"{key.get_algorithm()} {key.get_fingerprint()}"
    if not known:
        fix = f"compare it with what the camera itself shows, then: {_trust(address)}"
        return DeviceError(f"{device.name}: unknown host key", found=found, fix=fix)
    named = address.host if address.port == _USUAL_PORT else f"[{address.host}]:{address.port}"
    return DeviceError(
        f"{device.name}: the host key has changed, or somebody is in between",
        expected=" or ".join(sorted(other.get_fingerprint() for other in known)),
        found=found,
        fix=f"if the camera was set up anew: ssh-keygen -R '{named}', and trust its new key",
    )


def _trust(address: Address) -> str:
    """The command that makes a host known."""
    port = f"-p {address.port} " if address.port else ""
    return f"ssh-keyscan {port}{address.host} >> ~/.ssh/known_hosts"


@contextmanager
def _said_as_ours(device: SshDevice) -> Iterator[None]:
    """Wrap what the library raises while it connects."""
    import asyncssh

    name, address = device.name, device.address
    try:
        yield
    except DeviceError:
        raise
    except asyncssh.PermissionDenied as error:
        fix = f"ssh-copy-id {address.login}, or IdentityFile in ~/.ssh/config"
        raise DeviceError(f"{name}: none of your keys is accepted", found=error.reason, fix=fix) from error
    except asyncssh.KeyExchangeFailed as error:
        fix = f"if only the kind of its host key has changed: {_trust(address)}"
        raise DeviceError(f"{name}: no common algorithm", found=error.reason, fix=fix) from error
    except (asyncio.TimeoutError, TimeoutError) as error:
        expected, fix = f"one within {device.connect_s:g} s", "check name, network and power"
        raise DeviceError(f"{name}: no answer", expected=expected, fix=fix) from error
    except (OSError, asyncssh.Error, ValueError) as error:
        found = str(error)
        raise DeviceError(f"{name}: cannot be reached", found=found, fix=f"try: ssh {address.login} true") from error


class _Pipes:
    """A process over SSH."""

    def __init__(self, device: SshDevice, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._device, self._process = device, process

    async def line(self) -> bytes:
        import asyncssh

        try:
            return await self._process.stdout.readline()
        except (OSError, asyncssh.Error) as error:
            what = f"{self._device.name}: the connection is lost"
            raise DeviceError(what, found=str(error), fix="run it again: what was done is kept") from error

    async def write(self, content: bytes) -> None:
        import asyncssh

        with contextlib.suppress(OSError, asyncssh.Error):
            self._process.stdin.write(content)
            await self._process.stdin.drain()

    async def ended(self) -> tuple[int | None, str]:
        import asyncssh

        said = b""
        with contextlib.suppress(OSError, asyncssh.Error, asyncio.TimeoutError):
            said = await asyncio.wait_for(self._process.stderr.read(), _CLOSING_S)
            await asyncio.wait_for(self._process.wait_closed(), _CLOSING_S)
        return self._process.returncode, said.decode("utf-8", "replace")

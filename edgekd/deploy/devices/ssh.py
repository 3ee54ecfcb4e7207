"""A camera over SSH: login by key, known hosts only. Programs on the camera end with the connection."""

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
from edgekd.deploy.devices.answers import error_text
from edgekd.deploy.devices.connection import Connection, Settings, Stop, connected, read_tail
from edgekd.deploy.signing.secrets import without_secrets

if TYPE_CHECKING:
    import asyncssh

SCHEME = "ssh://"
PYTHON = "python3"
_SYNTAX = "ssh://[USER@]HOST[:PORT]"
_DEFAULT_PORT = 22
_CLOSING_S = 5.0


@dataclass(frozen=True)
class SshAddress:
    """Address of a camera; user or port None: from ~/.ssh/config, else the default."""

    host: str
    user: str | None
    port: int | None

    @property
    def login(self) -> str:
        """Arguments of `ssh`."""
        port = f"-p {self.port} " if self.port else ""
        return f"{port}{self.user}@{self.host}" if self.user else f"{port}{self.host}"


@dataclass(frozen=True)
class SshDevice:
    """A camera.

    silence_s: time without a heartbeat after which the camera ends the running program; keepalive_s: interval of SSH
    keepalives, of which four without an answer close the connection; connect_s: limit for connecting and login.
    """

    name: str
    address: SshAddress
    silence_s: float = 30.0
    keepalive_s: float = 10.0
    connect_s: float = 30.0
    runtime: str | None = None
    remote: bool = True

    def connect(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Connection]:
        """Connect to the camera. Raises DeviceError."""
        settings = Settings(python or PYTHON, self.silence_s)
        return connected(lambda: _connection(self, settings), stop)


def parse(name: str) -> SshAddress:
    """Parse `ssh://user@host:port`. Raises SpecError."""
    try:
        parts = urlsplit(name)
        port = parts.port
    except ValueError as error:
        # Without the message of the library, which may have a part of a password.
        raise SpecError(f"--device {without_secrets(name)}", expected=_SYNTAX) from error
    if parts.password is not None:
        fix = "leave the password out, and install your key on the camera: ssh-copy-id"
        raise SpecError("--device: a password in an address is visible to every user", expected=_SYNTAX, fix=fix)
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise SpecError(f"--device {without_secrets(name)}", expected=_SYNTAX)
    # parts.hostname is in lower case; names in ~/.ssh/config are case-sensitive.
    host = parts.netloc.rpartition("@")[2].removesuffix(f":{port}" if port else ":")
    return SshAddress(host.strip("[]"), parts.username, port)


@asynccontextmanager
async def _connection(device: SshDevice, settings: Settings) -> AsyncIterator[Connection]:
    with _device_errors(device):
        client = await asyncio.wait_for(_login(device), device.connect_s)
    try:
        with _device_errors(device):
            starting = client.create_process(settings.shell_command(), encoding=None, request_pty=False)
            process = await asyncio.wait_for(starting, device.connect_s)
        try:
            connection = Connection(device.name, _SshPipes(device, process), settings)
            await connection.begin()
            yield connection
        finally:
            # The end of stdin ends the running program; wait for it.
            with contextlib.suppress(Exception):
                process.stdin.write_eof()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait_closed(), _CLOSING_S)
    finally:
        client.abort()
        await client.wait_closed()


async def _login(device: SshDevice) -> asyncssh.SSHClientConnection:
    import asyncssh

    address = device.address
    login: dict[str, Any] = {"username": address.user, "port": address.port}
    login = {name: value for name, value in login.items() if value is not None}
    options = await asyncssh.SSHClientConnectionOptions.construct(config=(), host=address.host, **login)
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
            **login,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise (refused[0] if refused else error) from error


def _host_keys(device: SshDevice, known_hosts: Any, refused: list[DeviceError]) -> asyncssh.SSHClient:
    """Return callbacks that refuse an unknown host key and append the reason to `refused`."""
    import asyncssh

    class HostKeys(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
            default = Path("~/.ssh/known_hosts").expanduser()
            files = known_hosts or ([str(default)] if default.is_file() else [])
            known = asyncssh.match_known_hosts(files, host, addr, port)[0] if files else ()
            refused.append(_untrusted(device, SshAddress(host, device.address.user, port), key, known))
            return False

    return HostKeys()


def _untrusted(device: SshDevice, address: SshAddress, key: asyncssh.SSHKey, known: Any) -> DeviceError:
    """Return the error for a refused host key; known: the known keys of the host."""
    found = f"{key.get_algorithm()} {key.get_fingerprint()}"
    if not known:
        fix = f"compare it with the fingerprint that the camera itself shows, then: {_keyscan(address)}"
        return DeviceError(f"{device.name}: unknown host key", found=found, fix=fix)
    entry = address.host if address.port == _DEFAULT_PORT else f"[{address.host}]:{address.port}"
    return DeviceError(
        f"{device.name}: the host key has changed, or the connection is intercepted",
        expected=" or ".join(sorted(other.get_fingerprint() for other in known)),
        found=found,
        fix=f"if the camera was reinstalled: ssh-keygen -R '{entry}', and trust its new key",
    )


def _keyscan(address: SshAddress) -> str:
    """Return the command that adds a host to known_hosts."""
    port = f"-p {address.port} " if address.port else ""
    return f"ssh-keyscan {port}{address.host} >> ~/.ssh/known_hosts"


@contextmanager
def _device_errors(device: SshDevice) -> Iterator[None]:
    """Convert errors of asyncssh while connecting to DeviceError."""
    import asyncssh

    name, address = device.name, device.address
    try:
        yield
    except DeviceError:
        raise
    except asyncssh.PermissionDenied as error:
        fix = f"ssh-copy-id {address.login}, or IdentityFile in ~/.ssh/config"
        raise DeviceError(f"{name}: none of your keys is accepted", found=error_text(error.reason), fix=fix) from error
    except asyncssh.KeyExchangeFailed as error:
        fix = f"if only the type of its host key has changed: {_keyscan(address)}"
        raise DeviceError(f"{name}: no common algorithm", found=error_text(error.reason), fix=fix) from error
    except (asyncio.TimeoutError, TimeoutError) as error:
        expected, fix = f"one within {device.connect_s:g} s", "check name, network and power"
        raise DeviceError(f"{name}: no answer", expected=expected, fix=fix) from error
    except (OSError, asyncssh.Error, ValueError) as error:
        found = error_text(str(error))
        raise DeviceError(f"{name}: cannot be reached", found=found, fix=f"try: ssh {address.login} true") from error


class _SshPipes:
    """Pipes of a process over SSH."""

    def __init__(self, device: SshDevice, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._device, self._process = device, process

    async def line(self) -> bytes:
        import asyncssh

        try:
            return await self._process.stdout.readline()
        except (OSError, asyncssh.Error) as error:
            what = f"{self._device.name}: the connection is lost"
            raise DeviceError(what, found=error_text(str(error)), fix="run it again: completed work is kept") from error

    async def write(self, content: bytes) -> None:
        import asyncssh

        with contextlib.suppress(OSError, asyncssh.Error):
            self._process.stdin.write(content)
            await self._process.stdin.drain()

    async def ended(self) -> tuple[int | None, str]:
        import asyncssh

        stderr = bytearray()
        with contextlib.suppress(OSError, asyncssh.Error, asyncio.TimeoutError):
            await asyncio.wait_for(read_tail(self._process.stderr.read, stderr), _CLOSING_S)
            await asyncio.wait_for(self._process.wait_closed(), _CLOSING_S)
        return self._process.returncode, stderr.decode("utf-8", "replace")

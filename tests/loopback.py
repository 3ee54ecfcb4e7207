"""A camera on this machine: an OpenSSH server on the loopback interface, with its own keys and interpreter."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
_UNPUNISHED = "PerSourcePenalties no\n"
"""Without it, clients that were refused a few times, as in some tests, are blocked for a while."""


@dataclass(frozen=True)
class Loopback:
    """A running camera. home: the client's, with keys and known hosts; mark: in the environment of its processes."""

    folder: Path
    home: Path
    port: int
    mark: str

    @property
    def host_key(self) -> str:
        """Its public host key."""
        return (self.folder / "host.pub").read_text("ascii")

    @property
    def user(self) -> str:
        """Name of the user who may log in."""
        return getpass.getuser()

    def address(self, port: int | None = None) -> str:
        """Return the value for `--device`. port: of a wire to the camera, which has the same host key."""
        known = self.home / ".ssh" / "known_hosts"
        line = f"[127.0.0.1]:{port or self.port} {self.host_key}"
        if line not in known.read_text("ascii"):
            with known.open("a", encoding="ascii") as stream:
                stream.write(line)
        return f"ssh://{self.user}@127.0.0.1:{port or self.port}"

    def processes(self) -> list[str]:
        """Return the command lines of processes that run on the camera."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except OSError:
                continue  # ended meanwhile, or another user's
        return [line for line in found if line]

    def quiet(self, seconds: float = 20.0) -> list[str]:
        """Wait until no process runs on the camera. Return those left after `seconds`.

        The default is shorter than the silence after which a camera ends a program.
        """
        until = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < until:
            time.sleep(0.02)
        return found


@contextmanager
def loopback(
    folder: Path, python: str, path: Sequence[Path], more: Mapping[str, str] | None = None
) -> Iterator[Loopback]:
    """Start a camera. python: its python3; path: PYTHONPATH of that one; more: further environment variables."""
    camera = Loopback(folder, folder / "home", _free_port(), f"edgekd-camera-{secrets.token_hex(8)}")
    for each in (folder / "bin", camera.home / ".ssh"):
        each.mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(python)
    for key in (folder / "host", camera.home / ".ssh" / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shutil.copyfile(camera.home / ".ssh" / "id_ed25519.pub", folder / "authorized_keys")
    (camera.home / ".ssh" / "known_hosts").touch()
    variables = {
        "EDGEKD_CAMERA": camera.mark,
        "HOME": str(folder),
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": ":".join(map(str, path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(_config(camera, variables) + _UNPUNISHED, "ascii")
    if subprocess.run([SSHD, "-t", "-f", str(config)], capture_output=True).returncode:
        config.write_text(_config(camera, variables), "ascii")  # OpenSSH before 9.8 does not have the penalty option
    with (folder / "log").open("wb") as log:
        command = [SSHD, "-D", "-e", "-f", str(config)]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        try:
            _wait_for(camera, server)
            yield camera
        finally:
            server.terminate()
            server.wait()


def _config(camera: Loopback, variables: Mapping[str, str]) -> str:
    lines = {
        "Port": camera.port,
        "ListenAddress": "127.0.0.1",
        "HostKey": camera.folder / "host",
        "AuthorizedKeysFile": camera.folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": "100",
        "SetEnv": " ".join(f'"{name}={value}"' for name, value in variables.items()),
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_for(camera: Loopback, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):  # at most a minute
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", camera.port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"sshd does not answer: {(camera.folder / 'log').read_text('utf-8', 'replace')}")

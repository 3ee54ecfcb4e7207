"""A camera on this machine: OpenSSH's own server on the loopback interface, with keys and an interpreter of its own."""

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
"""Else whoever is refused a few times, as tests want to be, is not heard for a while."""


@dataclass(frozen=True)
class Loopback:
    """A camera that is on. home: of who calls it, with keys and known hosts; mark: in all processes that it starts."""

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
        """Who may log in."""
        return getpass.getuser()

    def address(self, port: int | None = None) -> str:
        """What `--device` takes; another port is a wire's, which is known by the same key."""
        known = self.home / ".ssh" / "known_hosts"
        line = f"[127.0.0.1]:{port or self.port} {self.host_key}"
        if line not in known.read_text("ascii"):
            with known.open("a", encoding="ascii") as stream:
                stream.write(line)
        return f"ssh://{self.user}@127.0.0.1:{port or self.port}"

    def processes(self) -> list[str]:
        """Command lines of what runs there now."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except OSError:
                continue  # it has ended meanwhile, or is somebody else's
        return [line for line in found if line]

    def quiet(self, seconds: float = 20.0) -> list[str]:
        """What still runs there after at most so long: less than the silence after which a camera ends a program."""
        until = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < until:
            time.sleep(0.02)
        return found


@contextmanager
def loopback(
    folder: Path, python: str, path: Sequence[Path], more: Mapping[str, str] | None = None
) -> Iterator[Loopback]:
    """Turn a camera on: `python` is its python3, `path` where that finds its packages, `more` its variables."""
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
        config.write_text(_config(camera, variables), "ascii")  # an OpenSSH before 9.8, which knows no penalties
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
    for _ in range(1200):  # at most a minute: the machine may be busy
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", camera.port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"sshd does not answer: {(camera.folder / 'log').read_text('utf-8', 'replace')}")

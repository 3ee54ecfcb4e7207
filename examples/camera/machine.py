#!/usr/bin/env python3
"""A virtual camera: an ARM64 machine of QEMU with the disk that `make_image.sh` makes, driven by SSH.

    python machine.py IMAGE FOLDER [LINES]

starts one and prints what it detects: so many lines, or until Ctrl-C.

A machine writes into an overlay of the disk, in a folder of its own: any number of them share an image, and a copy of
the overlay of a machine without power is a snapshot.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HOST = "camera"
"""Name of the machine in `~/.ssh/config` of its home folder: `edgekd engine --device ssh://camera`."""
HOST_FOR_MACHINE = "10.0.2.2"
"""Address of this host as QEMU's user network shows it to a machine."""
BOOT_TIMEOUT_S = 300.0  # a boot takes 30 to 60 s on an idle core
PROBE_TIMEOUT_S = 5.0  # of one attempt to read the greeting of the SSH server
STOP_TIMEOUT_S = 300.0  # 80 s were seen on a busy host


@dataclass(frozen=True)
class Image:
    """What `make_image.sh` leaves in a folder."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The disk as it leaves the factory."""
        return self.folder / "disk.qcow2"

    @property
    def firmware(self) -> Path:
        """UEFI for QEMU's `virt` machine."""
        return self.folder / "firmware.fd"

    def key(self, name: str) -> Path:
        """Return the path of a key of the factory, such as `ssh`, `host.pub`, `release.key`."""
        return self.folder / "keys" / name


@dataclass(frozen=True)
class Options:
    """Hardware of a machine.

    Args:
        cpus: Cores. Runtimes spin while they wait for each other: more than this machine has free are slower than one.
        memory_mb: Memory.
        drive: Further settings of the disk for `-drive`, such as `cache=unsafe`.
        clock: Where the clock starts, as `-rtc base=` takes it.
        more: Further arguments of QEMU.
    """

    cpus: int = 1
    memory_mb: int = 1024
    drive: str = "cache=writeback,discard=unmap"
    clock: str = "utc"
    more: tuple[str, ...] = ()


class Machine:
    """One virtual camera, with its overlay, its console and its SSH settings in a folder."""

    def __init__(self, image: Image, folder: Path, options: Options | None = None) -> None:
        """Make the folder and its overlay, or take those of an earlier machine of this image. Raises RuntimeError."""
        self.image, self.folder, self.options = image, folder, options or Options()
        self.home = folder / "home"
        self.port = 0  # of its SSH server, on this host
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if not self.overlay.exists():
            create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk.resolve()))
            subprocess.run([*create, str(self.overlay)], check=True)
        elif self.overlay.stat().st_mtime < image.disk.stat().st_mtime:
            raise RuntimeError(f"{folder}: the machine was made from an older image; remove the folder")

    @property
    def overlay(self) -> Path:
        """The disk as this machine has changed it."""
        return self.folder / "disk.qcow2"

    @property
    def ssh_config(self) -> Path:
        """Settings of SSH by which the machine is called `camera`."""
        return self.home / ".ssh" / "config"

    @property
    def console(self) -> Path:
        """File with everything that the machine has printed, of all its starts."""
        return self.folder / "console.log"

    @property
    def is_on(self) -> bool:
        """True while QEMU runs."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Machine:
        """Start the machine."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut the power."""
        self.cut_power()

    def start(self) -> None:
        """Turn the power on. Raises RuntimeError where it is on."""
        if self.is_on:
            raise RuntimeError(f"{self.folder}: the machine is on")
        self.port = _free_port()
        write_ssh_settings(self.image, self.home, self.port)
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console)

    def command(self) -> list[str]:
        """Return the command that runs the machine, at the current port."""
        return qemu_command(self.image, self.overlay, self.port, self.options)

    def wait_for_ssh(self, timeout_s: float = BOOT_TIMEOUT_S) -> float:
        """Wait until the SSH server answers; return the seconds. Raises RuntimeError with the end of the console."""
        begin = time.monotonic()
        while self.is_on and time.monotonic() - begin < timeout_s:
            if greets(self.port):
                return time.monotonic() - begin
            time.sleep(0.5)
        end = "\n".join(self.console.read_text("utf-8", "replace").splitlines()[-20:])
        state = "does not answer" if self.is_on else "has turned itself off"
        raise RuntimeError(f"{self.folder}: the machine {state}:\n{end}")

    def run(
        self, *command: str, user: str = "root", timeout_s: float = 600.0, check: bool = True, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine. Raises RuntimeError where it fails and `check` is true, and TimeoutExpired."""
        ssh = ("ssh", "-F", str(self.ssh_config), "-l", user, HOST, shlex.join(command))
        done = subprocess.run(ssh, input=stdin, capture_output=True, timeout=timeout_s)
        out, error = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: exit code {done.returncode}: {out[-2000:]}{error[-2000:]}")
        return subprocess.CompletedProcess(command, done.returncode, out, error)

    def send(self, file: Path, path: str) -> None:
        """Copy a file to a path on the machine."""
        self.run("sh", "-c", 'cat >"$1"', "sh", path, stdin=file.read_bytes())

    def cut_power(self) -> None:
        """Kill QEMU at once: what the machine has not flushed may be lost, by the settings of its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def shut_down(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Have the system shut down. Raises TimeoutExpired."""
        self.run("systemctl", "poweroff", check=False)
        if self._process is not None:
            self._process.wait(timeout_s)


def qemu_command(image: Image, disk: Path, port: int, options: Options) -> list[str]:
    """Return the command of a machine whose SSH server is at a port of this host. It needs no KVM, and no root."""
    return [
        "qemu-system-aarch64",
        *("-machine", "virt", "-cpu", "cortex-a76", "-accel", "tcg,thread=multi"),
        *("-smp", str(options.cpus), "-m", str(options.memory_mb)),
        *("-bios", str(image.firmware), "-boot", "menu=on,splash-time=0"),  # without it UEFI waits 5 s for a key
        *("-drive", f"if=none,id=disk,format=qcow2,file={disk},{options.drive}"),
        *("-device", "virtio-blk-pci,drive=disk,bootindex=0"),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
        *("-rtc", f"base={options.clock}"),
        *("-nodefaults", "-display", "none", "-serial", "stdio"),
        *options.more,
    ]


def write_ssh_settings(image: Image, home: Path, port: int) -> None:
    """Write `~/.ssh` of a home folder that knows the machine at a port of this host as `camera`."""
    folder = home / ".ssh"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(image.key("ssh"), folder / "id_ed25519")
    (folder / "id_ed25519").chmod(0o600)
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {image.key('host.pub').read_text('ascii')}", "ascii")
    lines = {
        "HostName": "127.0.0.1",
        "Port": port,
        "User": "edgekd",
        "IdentityFile": f'"{folder}/id_ed25519"',  # quoted: a path may have spaces
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{folder}/known_hosts"',
        "ConnectTimeout": 60,
        "ServerAliveInterval": 5,
    }
    text = "".join(f"    {name} {value}\n" for name, value in lines.items())
    (folder / "config").write_text(f"Host {HOST}\n{text}", "utf-8")


def greets(port: int) -> bool:
    """Return whether an SSH server greets at a port of this host. QEMU accepts connections long before."""
    try:
        with socket.create_connection(("127.0.0.1", port), PROBE_TIMEOUT_S) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def main() -> None:
    """Start a machine, print so many detections, shut it down; without a number go on until Ctrl-C."""
    machine = Machine(Image(Path(sys.argv[1])), Path(sys.argv[2]))
    follow = "tail -n +1 -F /run/edgekd/detections.jsonl"
    with machine:
        print(f"booted after {machine.wait_for_ssh():.0f} s: ssh -F {machine.ssh_config} {HOST}", flush=True)
        print(f"HOME={machine.home} edgekd engine BUNDLE --device ssh://{HOST}", flush=True)
        if sys.argv[3:]:
            print(machine.run("sh", "-c", f"{follow} 2>/dev/null | head -n {int(sys.argv[3])}").stdout, end="")
            machine.shut_down()
        else:
            subprocess.run(["ssh", "-F", str(machine.ssh_config), HOST, follow])


if __name__ == "__main__":
    main()

"""A virtual camera that resumes from a snapshot of memory and disk, logs its disk writes, and can lose power.

A snapshot is a folder: the disk as an overlay of the previous snapshot's, and the memory as QEMU's migration writes it.
"""

import json
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HERE
from disk_log import Survivors, count_writes, survivors, write_runs

sys.path.insert(0, str(HERE.parent / "examples" / "camera"))
from machine import HOST, Image, Machine

MONITOR_TIMEOUT_S = 120.0
POLL_S = 0.002  # between reads of the log: a write of the emulated disk takes longer
CUT_TIMEOUT_S = 900.0
NO_CONNECTION = 255  # exit code of ssh: retry, the machine may be booting
RESTART_TIMEOUT_S = 600.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"  # changes with each boot
SETTLED_S = 8.0  # wait after an operation: ext4 commits its journal every 5 s


@dataclass(frozen=True)
class Snapshot:
    """Paths of a disk and of the machine's memory; memory: None if the machine was off."""

    disk: Path
    memory: Path | None = None


class CutCamera(Machine):
    """A virtual camera whose disk is an overlay of a snapshot's.

    Args:
        image: Keys and boot firmware.
        folder: Folder for its disk and log.
        start: Snapshot to start from.
        logged: True to log disk writes, as `cut_at` requires.
        resumed: True to resume with the snapshot's memory, False to boot.
    """

    def __init__(self, image: Image, folder: Path, start: Snapshot, *, logged: bool, resumed: bool) -> None:
        self.log = folder / "writes.log" if logged else None
        self._past_cpu_s = 0.0  # CPU seconds of QEMU processes that were killed
        self._start, self._monitor = start, folder / "monitor"
        self._memory = start.memory if resumed else None
        folder.mkdir(parents=True)
        new_disk(start.disk, folder / "disk.qcow2")
        super().__init__(image, folder)

    def command(self) -> list[str]:
        """Return QEMU's command line, with a monitor socket and the write log as a filter of the disk."""
        command = super().command()
        drive = command.index("-drive")
        disk = f"driver=qcow2,file.driver=file,file.filename={self.overlay},cache.no-flush=on"
        if self.log is not None:
            self.log.touch()
            log = f"log.driver=file,log.filename={self.log},log-super-update-interval=1"
            disk = f"driver=blklogwrites,{log}," + ",".join(f"file.{setting}" for setting in disk.split(","))
        command[drive : drive + 2] = ["-blockdev", f"node-name=disk,{disk}"]
        command += ["-qmp", f"unix:{self._monitor},server=on,wait=off"]
        return [*command, "-incoming", f"file:{self._memory}"] if self._memory else command

    def __enter__(self) -> "CutCamera":
        """Boot or resume the camera."""
        try:
            self.start()
            if self._memory:
                self._until("query-status", "paused", "postmigrate")
                self._ask("cont")
        except BaseException:
            self.cut_power()
            raise
        return self

    def start(self) -> None:
        """Turn the power on. SSH commands share one connection: an emulated key exchange takes seconds."""
        super().start()
        with self.ssh_config.open("a", encoding="utf-8") as config:
            config.write(f'    ControlMaster auto\n    ControlPath "{self.folder}/ssh"\n    ControlPersist yes\n')

    @property
    def cpu_s(self) -> float:
        """CPU seconds of QEMU so far."""
        if self._process is None or not self.is_on:
            return self._past_cpu_s
        return self._past_cpu_s + processor_s(self._process.pid)

    def cut_power(self) -> None:
        """Kill QEMU, and add its CPU time to the total."""
        self._past_cpu_s = self.cpu_s
        super().cut_power()

    def restart(self) -> None:
        """Reboot the system. Raises RuntimeError if it does not come back."""
        before, deadline = self.run("cat", BOOT_ID).stdout, time.monotonic() + RESTART_TIMEOUT_S
        self.run("systemctl", "reboot", check=False)
        while self.run("cat", BOOT_ID, check=False).stdout in ("", before):
            if time.monotonic() > deadline or not self.is_on:
                raise RuntimeError(f"{self.folder}: the system was restarted, and does not come back")
            time.sleep(1.0)

    def save(self, folder: Path, *, is_on: bool) -> None:
        """End the machine, and save its disk in a new folder. is_on: save its memory, too; else shut it down first."""
        folder.mkdir(parents=True)
        if is_on:
            self._ask("stop")
            self._ask("migrate", uri=f"file:{folder / 'memory'}")
            self._until("query-migrate", "completed")
            self.cut_power()
        else:
            self.shut_down()
        self.overlay.rename(folder / "disk.qcow2")

    def cut_at(self, count: int, script: str, timeout_s: float = CUT_TIMEOUT_S) -> bool:
        """Run a script on the camera and kill QEMU after `count` log entries. Return True if the script had not ended.

        QEMU is also killed SETTLED_S after the end of the script, and after `timeout_s`.
        """
        assert self.log is not None
        ssh = ("ssh", "-F", str(self.ssh_config), "-l", "root", HOST, script)
        command = ("sh", "-c", f'while "$@"; [ $? = {NO_CONNECTION} ]; do sleep 1; done', "sh", *ssh)
        null = subprocess.DEVNULL
        work = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
        deadline, is_over = time.monotonic() + timeout_s, False
        while count_writes(self.log) < count and time.monotonic() < deadline:
            if not is_over and work.poll() is not None:
                deadline, is_over = time.monotonic() + SETTLED_S, True
            time.sleep(POLL_S)
        self.cut_power()
        work.kill()
        work.wait()
        return not is_over

    def remains(self, disk: Path, lost_share: float, chance: random.Random) -> Survivors:
        """Write the disk that remains after the cut to a new image; see `disk_log.survivors`."""
        assert self.log is not None
        left = survivors(self.log, lost_share, chance)
        new_disk(self._start.disk, disk)
        write_runs(left.runs, disk)
        return left

    def _ask(self, command: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(MONITOR_TIMEOUT_S)
            connection.connect(str(self._monitor))
            with connection.makefile("rw", encoding="utf-8") as stream:
                stream.readline()  # QMP greeting
                for words in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    stream.write(json.dumps(words) + "\n")
                    stream.flush()
                    answer = next(found for line in stream if "event" not in (found := json.loads(line)))
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def _until(self, command: str, *states: str) -> None:
        deadline = time.monotonic() + MONITOR_TIMEOUT_S
        state = None
        while state not in states:
            if time.monotonic() > deadline or not self.is_on:
                raise RuntimeError(f"{command}: {state}")
            time.sleep(0.1)
            if self._monitor.exists():
                state = self._ask(command).get("status")


def processor_s(process: int) -> float:
    """Return the CPU seconds of a process with all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # utime, stime


def new_disk(backing: Path, disk: Path) -> None:
    """Create a qcow2 overlay of another disk. Raises CalledProcessError."""
    create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing.resolve()), str(disk))
    subprocess.run(create, check=True)

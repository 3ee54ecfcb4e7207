"""Program around the agent on a camera: receives files, and runs programs while the host is connected.

It is sent to the camera's own Python as text. Its stdin and stdout lead to `edgekd.deploy.devices.connection`: one line
of JSON per request and per answer, empty lines as heartbeats. When stdin ends, or nothing arrives for `silence_s`
seconds because the network or the host died, the running program is killed with all its children; received bytes are
kept, and a later upload resumes there.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 16
MAX_OUT_BYTES = 1 << 18  # of a program's stdout that are reported; with stderr less than 2 MB, the limit of an SSH line
MAX_ERR_BYTES = 1 << 16
LOCK, PART = "lock", ".part"


class Disconnected(Exception):  # noqa: N818 a normal end, not an error
    """The host has closed the connection."""


class ProblemError(Exception):
    """Error for the host to raise: the arguments of an EdgeKDError."""

    def __init__(self, what: str, **more: str) -> None:
        super().__init__(what)
        self.arguments = dict(more, what=what)


class Link:
    """stdin and stdout. silence_s: timeout without input; None: only the end of stdin disconnects."""

    def __init__(self, silence_s: Any) -> None:
        self.silence_s = silence_s
        self._buffer = b""

    def read(self, limit: int) -> bytes:
        """Return 1 to `limit` bytes. Raises Disconnected."""
        if not self._buffer:
            self._buffer = self._more()
        chunk, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return chunk

    def request(self) -> Any:
        """Return the next line that is no heartbeat, parsed. Raises Disconnected."""
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if not end:
                self._buffer += self._more()
                continue
            self._buffer = rest
            if line:
                return json.loads(line.decode("utf-8"))

    def send(self, **answer: Any) -> None:
        """Write one line. Raises Disconnected."""
        line = json.dumps(answer).encode("ascii") + b"\n"
        try:
            while line:
                line = line[os.write(1, line) :]
        except OSError as error:
            raise Disconnected() from error

    def wait(self, handles: Any, seconds: float) -> Any:
        """Return which of stdin and `handles` become readable within some time. Raises Disconnected."""
        ready = select.select([0, *handles], [], [], seconds)[0]
        if 0 in ready and not os.read(0, CHUNK_BYTES):
            raise Disconnected()
        return ready

    def _more(self) -> bytes:
        if not select.select([0], [], [], self.silence_s)[0]:
            raise Disconnected()
        chunk = os.read(0, CHUNK_BYTES)
        if not chunk:
            raise Disconnected()
        return chunk


def claim(link: Link, folder: str, wait_s: float) -> None:
    """Make a folder and lock it until this process ends; wait for another process that is about to end."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(str(Path(folder, LOCK)), os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > deadline:
            raise ProblemError(f"{folder}: in use by another edgekd", fix="wait for it to end")
        link.wait((), 0.2)
    link.send()


def receive(link: Link, folder: str, sha256: str, count: int, keep: Any) -> None:
    """Receive a file of `count` bytes into a folder, named by its hash, resuming an earlier attempt.

    Files that are not in `keep` are deleted first.
    """
    path, part = Path(folder, sha256), Path(folder, sha256 + PART)
    for each in list(path.parent.iterdir()):
        if each.name != LOCK and each.stem not in keep:
            each.unlink()
    if path.is_file():
        if digest(path) == sha256:
            return link.send(path=str(path), kept=count)
        path.unlink()
    kept = part.stat().st_size if part.is_file() else 0
    require_room(path.parent, count - kept)
    link.send(kept=kept, sha256=digest(part) if kept else None)
    begin = link.request()["begin"]
    with part.open("r+b" if kept else "wb", buffering=0) as stream:
        stream.truncate(begin)
        stream.seek(begin)
        while begin < count:
            begin += write_all(stream, link.read(min(count - begin, CHUNK_BYTES)))
        os.fsync(stream.fileno())
    found = digest(part)
    if found != sha256:
        part.unlink()
        raise ProblemError(
            f"{path}: changed during transfer", expected=f"SHA-256 {sha256}", found=found, fix="run it again"
        )
    part.rename(path)
    flush(path.parent)
    return link.send(path=str(path))


def require_room(folder: Path, count: int) -> None:
    """Raise ProblemError if fewer than `count` bytes are free on the disk of a folder."""
    disk = os.statvfs(str(folder))
    free = disk.f_bavail * disk.f_frsize
    if free < count:
        raise ProblemError(
            f"{folder}: no room",
            expected=f"{count} bytes",
            found=f"{free} bytes free",
            fix="free some space there",
        )


def write_all(stream: Any, chunk: bytes) -> int:
    """Write to an unbuffered stream, which may accept fewer bytes per call."""
    left = chunk
    while left:
        left = left[stream.write(left) :]
    return len(chunk)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            sha256.update(chunk)
    return sha256.hexdigest()


def flush(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def run(link: Link, command: Any) -> None:
    """Run a program in its own process group, and kill the group when the program or the connection has ended."""
    none, pipe = subprocess.DEVNULL, subprocess.PIPE
    child = subprocess.Popen(command, stdin=none, stdout=pipe, stderr=pipe, start_new_session=True)
    assert child.stdout
    assert child.stderr
    outputs = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    try:
        collect(link, child, dict(outputs))
    finally:
        with contextlib.suppress(OSError):  # the group has ended already
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    out, err = (bytes(each).decode("utf-8", "replace") for each in outputs.values())
    link.send(code=code, out=out, err=err)


def collect(link: Link, child: Any, outputs: Any) -> None:
    """Collect the outputs of a program until it ends. Raises Disconnected."""
    heartbeat = time.monotonic()
    while outputs:
        ready = link.wait(outputs, 0.2)
        now = time.monotonic()
        if 0 in ready:
            heartbeat = now
        elif link.silence_s is not None and now - heartbeat > link.silence_s:
            raise Disconnected()
        for handle in [each for each in ready if each]:
            chunk = os.read(handle, CHUNK_BYTES)
            outputs[handle].extend(chunk)
            del outputs[handle][: -(MAX_OUT_BYTES if handle == child.stdout.fileno() else MAX_ERR_BYTES)]
            if not chunk:
                del outputs[handle]
        # Children may keep the pipes open: they are killed with the group.
        if not ready and child.poll() is not None:
            return


def disconnect(number: int, frame: Any) -> None:
    """Handle a termination signal as the end of the connection."""
    raise Disconnected()


def main(settings: Any) -> None:
    """Serve requests one after the other until the host disconnects."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, disconnect)
    link = Link(settings["silence_s"])
    tasks: Any = {"claim": claim, "receive": receive, "run": run}
    try:
        link.send(python=list(sys.version_info[:3]))
        while True:
            request = link.request()
            tasks[request.pop("do")](link, **request)
    except Disconnected:
        pass
    except ProblemError as problem:
        report(link, problem.arguments)
    except OSError as error:
        fix = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a writable folder"
        what = f"{error.filename or 'the disk'}: cannot be used"
        report(link, {"what": what, "found": error.strerror or str(error), "fix": fix})


def report(link: Link, problem: Any) -> None:
    """Send an error as the last answer, if the host is still connected."""
    with contextlib.suppress(Disconnected):
        link.send(problem=problem)


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))

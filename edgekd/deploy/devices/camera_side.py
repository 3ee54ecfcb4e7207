"""Program around the agent on a camera: receives files, and runs programs while the host is connected.

It is sent to the camera's own Python as text, and `edgekd.deploy.devices.session` is the other end of its stdin and
stdout: a line of JSON for each request and for each answer, empty lines as a sign of life. Where stdin ends, or nothing
comes for `silence_s` seconds because the network or the host died without a word, the program that runs is ended with
everything that it started; what was received is kept, and the next one goes on from there.
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

PIECE = 1 << 16
KEPT_OUT, KEPT_ERR = 1 << 18, 1 << 16  # together they stay below the 2 MB that a line over SSH may have
LOCK, PART = "lock", ".part"


class Gone(Exception):  # noqa: N818 nobody's mistake
    """Nobody listens any more."""


class ProblemError(Exception):
    """Error for the host to raise: the arguments of an EdgeKDError, and its kind."""

    def __init__(self, what: str, **more: str) -> None:
        super().__init__(what)
        self.told = dict(more, what=what)


class Link:
    """stdin and stdout. `silence_s` None: only an end of stdin is an end."""

    def __init__(self, silence_s: Any) -> None:
        self.silence_s = silence_s
        self._buffer = b""

    def take(self, most: int) -> bytes:
        """At least one byte, at most `most`. Raises Gone."""
        if not self._buffer:
            self._buffer = self._more()
        piece, self._buffer = self._buffer[:most], self._buffer[most:]
        return piece

    def request(self) -> Any:
        """The next line that says something. Raises Gone."""
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if not end:
                self._buffer += self._more()
                continue
            self._buffer = rest
            if line:
                return json.loads(line.decode("utf-8"))

    def say(self, **answer: Any) -> None:
        """One line. Raises Gone."""
        line = json.dumps(answer).encode("ascii") + b"\n"
        try:
            while line:
                line = line[os.write(1, line) :]
        except OSError as error:
            raise Gone() from error

    def listen(self, others: Any, seconds: float) -> Any:
        """Which of `others` can be read within some time. Raises Gone where stdin ended."""
        ready = select.select([0, *others], [], [], seconds)[0]
        if 0 in ready and not os.read(0, PIECE):
            raise Gone()
        return ready

    def _more(self) -> bytes:
        if not select.select([0], [], [], self.silence_s)[0]:
            raise Gone()
        piece = os.read(0, PIECE)
        if not piece:
            raise Gone()
        return piece


def claim(link: Link, folder: str, wait_s: float) -> None:
    """Make a folder, and keep others out of it until this process ends: they may still be on their way out."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(str(Path(folder, LOCK)), os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() > until:
            raise ProblemError(f"{folder}: in use by another edgekd", fix="wait for it to end")
        link.listen((), 0.2)
    link.say()


def receive(link: Link, folder: str, sha256: str, count: int, keep: Any) -> None:
    """Take a file of `count` bytes into a folder, named by its hash, from where an earlier attempt ended.

    All that is not in `keep` goes first.
    """
    path, part = Path(folder, sha256), Path(folder, sha256 + PART)
    for each in list(path.parent.iterdir()):
        if each.name != LOCK and each.stem not in keep:
            each.unlink()
    if path.is_file():
        if digest(path) == sha256:
            return link.say(path=str(path), kept=count)
        path.unlink()
    kept = part.stat().st_size if part.is_file() else 0
    require_room(path.parent, count - kept)
    link.say(kept=kept, sha256=digest(part) if kept else None)
    begin = link.request()["begin"]
    with part.open("r+b" if kept else "wb", buffering=0) as stream:
        stream.truncate(begin)
        stream.seek(begin)
        while begin < count:
            begin += put(stream, link.take(min(count - begin, PIECE)))
        os.fsync(stream.fileno())
    found = digest(part)
    if found != sha256:
        part.unlink()
        raise ProblemError(f"{path}: changed on its way", expected=f"SHA-256 {sha256}", found=found, fix="run it again")
    part.rename(path)
    flush(path.parent)
    return link.say(path=str(path))


def require_room(folder: Path, count: int) -> None:
    """A problem where fewer than `count` bytes are free where a folder lies."""
    disk = os.statvfs(str(folder))
    free = disk.f_bavail * disk.f_frsize
    if free < count:
        told = {"expected": f"{count} bytes", "found": f"{free} bytes free", "fix": "free some space there"}
        raise ProblemError(f"{folder}: no room", **told)


def put(stream: Any, piece: bytes) -> int:
    """Write all of a piece, whatever the system takes at a time."""
    left = piece
    while left:
        left = left[stream.write(left) :]
    return len(piece)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            found.update(piece)
    return found.hexdigest()


def flush(folder: Path) -> None:
    """Have what was renamed in a folder survive a power cut."""
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def run(link: Link, command: Any) -> None:
    """Run a program in a group of its own, and end the group where the program, or whoever listens, is gone."""
    none, pipe = subprocess.DEVNULL, subprocess.PIPE
    child = subprocess.Popen(command, stdin=none, stdout=pipe, stderr=pipe, start_new_session=True)
    assert child.stdout
    assert child.stderr
    said = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    try:
        follow(link, child, dict(said))
    finally:
        with contextlib.suppress(OSError):  # nothing of it is left
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    out, err = (bytes(each).decode("utf-8", "replace") for each in said.values())
    link.say(code=code, out=out, err=err)


def follow(link: Link, child: Any, said: Any) -> None:
    """Collect what a program says until it ends. Raises Gone."""
    heard = time.monotonic()
    while said:
        ready = link.listen(said, 0.2)
        now = time.monotonic()
        if 0 in ready:
            heard = now
        elif link.silence_s is not None and now - heard > link.silence_s:
            raise Gone()
        for handle in [each for each in ready if each]:
            piece = os.read(handle, PIECE)
            said[handle].extend(piece)
            del said[handle][: -(KEPT_OUT if handle == child.stdout.fileno() else KEPT_ERR)]
            if not piece:
                del said[handle]
        # What it started may keep the pipes open: it ends with its group.
        if not ready and child.poll() is not None:
            return


def leave(number: int, frame: Any) -> None:
    """A signal to end ends what runs, too."""
    raise Gone()


def main(settings: Any) -> None:
    """Do what is asked, one thing after the other, until nobody asks."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    link = Link(settings["silence_s"])
    tasks: Any = {"claim": claim, "receive": receive, "run": run}
    try:
        link.say(python=list(sys.version_info[:3]))
        while True:
            request = link.request()
            tasks[request.pop("do")](link, **request)
    except Gone:
        pass
    except ProblemError as problem:
        answer(link, problem.told)
    except OSError as error:
        fix = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a place to write to"
        what = f"{error.filename or 'the disk'}: cannot be used"
        answer(link, {"what": what, "found": error.strerror or str(error), "fix": fix})


def answer(link: Link, problem: Any) -> None:
    """Say what went wrong, if somebody is still there: it is the last thing said."""
    with contextlib.suppress(Gone):
        link.say(problem=problem)


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))

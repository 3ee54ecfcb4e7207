"""Folders, files and locks that no other user of the machine can open, replace or hold.

A lock on a file belongs to whoever can open the file, if only for reading. So lock files have mode 0600, belong to this
user, are never opened through a link, and are never waited for without a limit that the caller sets.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Collection
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.core.procfs import text_of

PRIVATE_FOLDER_MODE = 0o700
PRIVATE_FILE_MODE = 0o600
_OTHERS = 0o077  # permission bits of the group and of all others
_POLL_S = 0.05  # between two attempts to lock: a blocking flock could be held for ever
_LOCKS = Path("/proc/locks")


def private_folder(path: Path, known: Collection[str] = ()) -> None:
    """Create a folder of mode 0700, or tighten the mode of one that exists.

    An existing folder is tightened only where it is empty or has an entry of a name in `known`: `--state /var/lib` must
    not close that folder to the system. Raises SpecError where it belongs to another user; OSError.
    """
    path.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    _require_own(path, os.lstat(path), root_too=path.is_symlink())
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        facts = os.fstat(handle)
        _require_own(path, facts)
        if facts.st_mode & _OTHERS:
            entries = os.listdir(handle)  # noqa: PTH208 of what is open, not of what the path leads to by now
            if facts.st_mode & stat.S_ISVTX or (entries and not set(entries) & set(known)):
                raise SpecError(
                    f"{path}: open to other users, and has files of others",
                    expected="a folder for edgekd alone",
                    fix="name a new folder, or an empty one",
                )
            os.fchmod(handle, PRIVATE_FOLDER_MODE)
    finally:
        os.close(handle)


def private_file(path: Path) -> int:
    """Open a file of this user for reading and writing, created with mode 0600; return its descriptor.

    Raises SpecError for a link, for a file of another user or with a second name, and for what is no file; OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, PRIVATE_FILE_MODE)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _refused(path, "a symbolic link") from error
    try:
        facts = os.fstat(handle)
        _require_own(path, facts)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise _refused(path, "a file with several names" if stat.S_ISREG(facts.st_mode) else "no regular file")
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_private(path: Path, max_bytes: int) -> bytes | None:
    """Return the content of a file of this user; None where there is none, or one of another user or larger."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as stream:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_size > max_bytes:
            return None
        return stream.read(max_bytes)


def default_file_mode() -> int:
    """Return the mode of a new file for everybody, by the umask of this process."""
    mask = os.umask(_OTHERS)  # there is no other way to read it
    os.umask(mask)
    return 0o666 & ~mask


def lock_file(path: Path, wait_s: float | None = 0.0) -> int | None:
    """Lock a file until the returned descriptor is closed; None where another process still has it after `wait_s`.

    wait_s: None for no limit, which is right only for work that this user's other processes do. A lock file that other
    users could open, by an older edgekd, is replaced: they may hold it. Raises SpecError as `private_file`; OSError.
    """
    deadline = float("inf") if wait_s is None else time.monotonic() + wait_s
    replaced = False
    while True:
        handle = private_file(path)
        try:
            loose = not replaced and bool(os.fstat(handle).st_mode & _OTHERS)
            free = _locked(handle)
            if _is_at(path, handle):
                if free and not loose:
                    result, handle = handle, -1
                    return result
                if loose and (free or _held_by_others(handle)):
                    path.unlink()
                    replaced = True  # once: some file systems have no modes
                    continue
            if not free and time.monotonic() >= deadline:
                return None
        finally:
            if handle >= 0:
                os.close(handle)
        time.sleep(_POLL_S)


def lock_holder(path: Path) -> str | None:
    """Describe the process that holds the lock on a file; None where that is unknown."""
    try:
        holders = _holders(os.lstat(path).st_ino)
    except OSError:
        return None
    return next((f"process {pid} of user {user}" for pid, user in holders), None)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Return whether the open file still has its name: another process may have replaced it."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _held_by_others(handle: int) -> bool:
    """Return whether all holders of a lock are known, and none of them is this user or root."""
    users = {user for _, user in _holders(os.fstat(handle).st_ino)}
    return bool(users) and not users & {0, os.geteuid()}


def _holders(inode: int) -> list[tuple[int, int]]:
    """Return the id and the user of each process that holds a lock on a file with this inode, by the kernel's list.

    The device is not compared: of an overlay file system the list has another one.
    """
    holders = []
    for line in (text_of(_LOCKS) or "").splitlines():
        words = line.split()  # 1: FLOCK ADVISORY WRITE pid major:minor:inode start end; of one that waits, 1: -> FLOCK
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            try:
                holders.append((int(words[4]), Path("/proc", words[4]).stat().st_uid))
            except OSError:
                continue  # it has ended, or belongs to another container
    return holders


def _require_own(path: Path, facts: os.stat_result, *, root_too: bool = False) -> None:
    """Raise SpecError where a file belongs to another user. root_too: accept a link that root has made."""
    user = os.geteuid()
    if facts.st_uid != user and not (root_too and facts.st_uid == 0):
        raise SpecError(
            f"{path}: belongs to another user",
            expected=f"user {user}",
            found=f"user {facts.st_uid}",
            fix="run this as that user, or choose another place",
        )


def _refused(path: Path, found: str) -> SpecError:
    return SpecError(f"{path}: cannot be used", expected="a file of this user alone", found=found, fix="remove it")

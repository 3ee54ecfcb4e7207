"""Files and folders that appear complete or not at all, whenever the process or the machine stops.

New content is written under a temporary name beside its final one, flushed to the disk, and renamed. The writer holds
a lock on the temporary name, which distinguishes it from the leftovers of a killed process.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from edgekd.core.errors import DiskFullError, SpecError

_READ_OWN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
"""To open a name that another user may have replaced by a link or a pipe."""
_CLAIMS = 16
"""Attempts to lock a new temporary file before another process does."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: OSError) -> bool:
    """Return whether the cause of an OSError is a full disk, a quota or the maximum size of a file."""
    return error.errno in _NO_ROOM


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Wrap an OSError in the block as SpecError: the place to write to is an argument of the user.

    A full disk is a DiskFullError, which is a SpecError too.
    """
    try:
        yield
    except OSError as error:
        what, found = f"{path}: cannot write", error.strerror or str(error)
        if no_room(error):
            raise DiskFullError(what, found=found, fix="free some space there, or write elsewhere") from error
        raise SpecError(what, found=found, fix="choose a place that you may write to") from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content replaces `path` once the block ends without an error. Raises SpecError."""
    with _temporary(path) as temporary, writing(path):
        with temporary.open("wb") as stream:
            yield stream
        publish(temporary, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` once the block ends without an error.

    `path` must not exist by then, or be an empty folder. Raises SpecError; errors of the block pass unchanged.
    """
    with _temporary(path, folder=True) as temporary:
        yield temporary
        with writing(path):
            publish(temporary, path)


def unnamed_file(folder: Path) -> BinaryIO:
    """Return an empty file without a name, whose space in `folder` is freed when it is closed. Raises SpecError."""
    with writing(folder):
        # Where the file system needs a name for a moment, it is one that `remove_leftovers` knows.
        return cast(BinaryIO, tempfile.TemporaryFile(dir=folder, prefix=".unnamed.", suffix=".edgekd-tmp"))


def write_file(path: Path, content: bytes) -> None:
    """Replace the content of a file. Raises SpecError."""
    with new_file(path) as stream:
        stream.write(content)


def copy_file(source: Path, path: Path) -> None:
    """Replace a file with a copy of another, in bounded memory. Raises SpecError."""
    with source.open("rb") as stream, new_file(path) as copy:
        shutil.copyfileobj(stream, copy)


def switch_link(path: Path, goal: str) -> None:
    """Make `path` a symbolic link to `goal`, in one step. Raises SpecError."""
    with _temporary(path, folder=True) as temporary, writing(path):
        link = temporary / path.name
        link.symlink_to(goal)
        link.rename(path)
        flush(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder in one step, then free its space. Raises SpecError."""
    with _temporary(path, folder=True) as temporary, writing(path):
        path.rename(temporary)
        flush(path.parent)  # else a power cut could bring it back, with some of its files gone already


def contents(folder: Path) -> list[Path]:
    """Return all files and folders below a folder, sorted. Raises OSError, which Path.rglob hides since Python 3.12."""

    def refuse(error: OSError) -> None:
        raise error

    walked = os.walk(folder, onerror=refuse)
    return sorted(Path(parent, name) for parent, folders, files in walked for name in (*folders, *files))


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the unfinished files of killed processes in a folder: those for `name`, or for every name.

    One that cannot be removed stays. Raises OSError when the folder cannot be listed.
    """
    for path in folder.glob(_temporary_name(glob.escape(name) if name else "*", "?" * 8)):
        try:
            handle = os.open(path, _READ_OWN)
        except OSError:
            continue
        try:
            if os.fstat(handle).st_uid != os.geteuid():
                continue  # in a folder such as /tmp another user can put anything there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except OSError:
            continue
        finally:
            os.close(handle)


def _temporary_name(name: str, mark: str) -> str:
    return f".{name}.{mark}.edgekd-tmp"


@contextmanager
def _temporary(path: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a locked temporary path beside `path`, for the block to rename; else it is removed."""
    with writing(path):
        remove_leftovers(path.parent, path.name)
        temporary, handle = _claim(path.absolute(), folder)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _claim(path: Path, folder: bool) -> tuple[Path, int]:
    """Create an empty temporary file or folder beside `path`, and lock it; return its path and the lock to close.

    Raises OSError where each was locked or removed by another process.
    """
    for _ in range(_CLAIMS):
        temporary = path.with_name(_temporary_name(path.name, secrets.token_hex(4)))
        if folder:
            temporary.mkdir()
        else:
            temporary.touch(exist_ok=False)
        with suppress(FileNotFoundError):
            handle = os.open(temporary, _READ_OWN)
            # Another process may remove it as a leftover before it is locked. Never wait for the lock: whoever can
            # open the file may hold it for ever.
            with suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if temporary.exists():
                    return temporary, handle
            os.close(handle)
            _remove(temporary)
    raise OSError(errno.EBUSY, "temporary files are locked by another process")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def publish(temporary: Path, path: Path) -> None:
    """Flush a file, or a folder with its content, then rename it: all of it survives a power cut."""
    for item in (temporary, *(contents(temporary) if temporary.is_dir() else ())):
        flush(item)
    temporary.rename(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files and folders that appear whole or not at all, whenever the process or the machine stops.

New content is written under a temporary name beside its final one, flushed to the disk, and renamed. The writer holds
a lock on the temporary name, so that whoever comes next can tell a live writer's from a killed one's.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgekd.core.errors import SpecError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: OSError) -> bool:
    """Return whether an OSError says that the disk, the quota or the largest file size is exhausted."""
    return error.errno in _NO_ROOM


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside into a SpecError that names `path` and the fix.

    A SpecError, because where to write is an argument of the user's: nothing helps but another place, or more room in
    this one.
    """
    try:
        yield
    except OSError as error:
        fix = "free some space there, or write elsewhere" if no_room(error) else "choose a place that you may write to"
        raise SpecError(f"{path}: cannot write", found=error.strerror or str(error), fix=fix) from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes `path`, replacing what is there, once the block ends without an error.

    Raises SpecError when the place cannot be written; so does the block when a write in it fails.
    """
    with _temporary(path) as temporary, writing(path):
        with temporary.open("wb") as stream:
            yield stream
        publish(temporary, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes `path` once the block ends without an error.

    `path` must not exist by then, or be an empty folder. Raises SpecError when the place cannot be written; errors
    of the block itself pass unchanged.
    """
    with _temporary(path, folder=True) as temporary:
        yield temporary
        with writing(path):
            publish(temporary, path)


def write_file(path: Path, content: bytes) -> None:
    """Replace the content of a file. Raises SpecError when the place cannot be written."""
    with new_file(path) as stream:
        stream.write(content)


def copy_file(source: Path, path: Path) -> None:
    """Replace a file with a copy of another, piece by piece. Raises SpecError when the place cannot be written."""
    with source.open("rb") as stream, new_file(path) as copy:
        shutil.copyfileobj(stream, copy)


def switch_link(path: Path, goal: str) -> None:
    """Make `path` a symbolic link to `goal`, at once, whatever it led to before. Raises SpecError."""
    with _temporary(path, folder=True) as temporary, writing(path):
        link = temporary / path.name
        link.symlink_to(goal)
        link.rename(path)
        _flush(path.parent)


def remove_folder(path: Path) -> None:
    """Make a folder vanish at once, then free its space. Raises SpecError when that is not allowed."""
    with _temporary(path, folder=True) as temporary, writing(path):
        path.rename(temporary)
        _flush(path.parent)  # else a power cut could bring it back, with some of its files gone already


def contents(folder: Path) -> list[Path]:
    """All files and folders below a folder, sorted. Raises OSError, which Path.rglob hides since Python 3.12."""

    def refuse(error: OSError) -> None:
        raise error

    walked = os.walk(folder, onerror=refuse)
    return sorted(Path(parent, name) for parent, folders, files in walked for name in (*folders, *files))


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in a folder: for `name`, or for every name.

    What cannot be removed stays: it hurts nobody. Raises OSError when the folder cannot be listed.
    """
    for path in folder.glob(_temporary_name(glob.escape(name) if name else "*", "?" * 8)):
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
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
    """A locked temporary name beside `path`. The block renames it; what still has that name at the end goes."""
    with writing(path):
        remove_leftovers(path.parent, path.name)
        temporary, handle = _claim(path.absolute(), folder)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _claim(path: Path, folder: bool) -> tuple[Path, int]:
    """Make an empty temporary file or folder beside `path`, and lock it. Returns its name and the lock to close."""
    while True:
        temporary = path.with_name(_temporary_name(path.name, secrets.token_hex(4)))
        if folder:
            temporary.mkdir()
        else:
            temporary.touch(exist_ok=False)
        with suppress(FileNotFoundError):
            handle = os.open(temporary, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, handle
            os.close(handle)
        # Not locked yet, it was taken for a leftover and removed.


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def publish(temporary: Path, path: Path) -> None:
    """Flush a file, or a folder and all in it, then give it its final name: all of it survives a power cut."""
    for item in (temporary, *(contents(temporary) if temporary.is_dir() else ())):
        _flush(item)
    temporary.rename(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

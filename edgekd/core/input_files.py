"""Files that others wrote, read with limits: regular files of at most so many bytes, and never what blocks.

A name may be a pipe that nobody writes to, a device without an end, a link to one of them, or longer than the file
system allows; each is an error that names it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgekd.core.errors import DataError, EdgeKDError

SHOWN_PATH = 200
"""Characters of a path in an error."""


def shown_path(path: Path | str) -> str:
    """Return a path for an error: printable, and shortened in the middle."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(path))
    half = SHOWN_PATH // 2
    return text if len(text) <= SHOWN_PATH else f"{text[:half]}...{text[-half:]}"


def is_file(path: Path) -> bool:
    """Return whether a path leads to a regular file; False, too, for one that is no path, such as a longer one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder; False, too, for one that is no path."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def regular_file(path: Path, limit: int, error: type[EdgeKDError] = DataError) -> int:
    """Return the bytes of a regular file, which a link may lead to. Raises `error` for anything else, or a longer one.

    limit: in bytes.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the name
        raise _unreadable(path, problem, error) from problem
    return _checked(path, status, limit, error)


def read_input(path: Path, limit: int, error: type[EdgeKDError] = DataError) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raises `error`."""
    regular_file(path, limit, error)
    try:
        # Without O_NONBLOCK a pipe that has taken the file's place since would block.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            # Not `limit` bytes at once, for which Python would allocate gigabytes.
            content = stream.read(_checked(path, os.fstat(handle), limit, error))
            if stream.peek(1):  # it has grown since
                content += stream.read(limit + 1 - len(content))
    except OSError as problem:
        raise _unreadable(path, problem, error) from problem
    if len(content) > limit:
        raise _too_long(path, len(content), limit, error)
    return content


def _checked(path: Path, status: os.stat_result, limit: int, error: type[EdgeKDError]) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise error(f"cannot read {shown_path(path)}", expected="a regular file", found=kind)
    if status.st_size > limit:
        raise _too_long(path, status.st_size, limit, error)
    return status.st_size


def _too_long(path: Path, length: int, limit: int, error: type[EdgeKDError]) -> EdgeKDError:
    return error(f"{shown_path(path)} is too large", expected=f"at most {limit} bytes", found=f"{length} bytes")


def _unreadable(path: Path, problem: Exception, error: type[EdgeKDError]) -> EdgeKDError:
    reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return error(f"cannot read {shown_path(path)}: {reason}", fix="check the path")

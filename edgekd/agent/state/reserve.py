"""Replacement of a small file, and of a link, on a full disk, without a new block.

A reserve file has a block of its own ahead of time. Its content is overwritten in place and flushed; then the file and
the one that it replaces exchange their names, so that the replaced one is the next reserve. Nobody else can take
the block meanwhile, and whenever the power goes, the replaced name leads to one complete file.

For callers that hold the lock of the state.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edgekd.core.atomic_files import flush, write_file, writing
from edgekd.core.errors import SpecError
from edgekd.core.private_files import private_file

RESERVE_BYTES = 4096
"""Size of a new reserve: a block of the usual file systems; a record of an activation has some 400 bytes."""


def keep_reserve(reserve: Path) -> None:
    """Create the reserve file where it is missing; without room for it there is none."""
    _recover(reserve)
    if not reserve.exists():
        with suppress(SpecError):
            write_file(reserve, b" " * RESERVE_BYTES)


def replace_by_reserve(reserve: Path, path: Path, content: bytes) -> None:
    """Replace the content of a file by means of the reserve. Raises SpecError, also where there is no reserve."""
    _recover(reserve)
    old = _old(reserve)
    with writing(path):
        reserve.stat()  # else it would be created, as an empty file
        handle = private_file(reserve)
        try:
            os.pwrite(handle, content, 0)
            os.ftruncate(handle, len(content))  # after the write: an empty file would lose its block
            os.fsync(handle)
        finally:
            os.close(handle)
        if path.exists():
            os.link(path, old)
        reserve.rename(path)
        if old.exists():
            old.rename(reserve)
        flush(path.parent)
        flush(reserve.parent)


def switch_link_in_place(path: Path, goal: str) -> None:
    """Make `path` a symbolic link to `goal` in one step. Raises SpecError.

    A short link is part of its inode: it needs no block, unlike the folder in which `switch_link` makes one.
    """
    new = path.with_name(f".{path.name}.new")
    with writing(path):
        if os.path.lexists(new):
            new.unlink()
        new.symlink_to(goal)
        new.rename(path)
        flush(path.parent)


def _recover(reserve: Path) -> None:
    """End an exchange that a power cut has interrupted."""
    old = _old(reserve)
    with suppress(OSError):
        if old.stat().st_nlink > 1 or reserve.exists():
            old.unlink()  # before the exchange: still the second name of the file in use
        else:
            old.rename(reserve)


def _old(reserve: Path) -> Path:
    return reserve.with_name(f".{reserve.name}.old")

"""Leases of resources that one process of a machine uses at a time: a board, the cores of a trial.

A lease is a file lock, so the kernel releases it when the process ends, even if it is killed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgekd.core.atomic_files import writing
from edgekd.core.canonical import json_sha256
from edgekd.core.private_files import lock_file, private_folder

_LOOK_S = 0.05
"""Seconds between two attempts to get a lease."""


def lease_folder() -> Path:
    """Return the folder of this user's locks on this machine."""
    return Path(tempfile.gettempdir()) / f"edgekd-leases-{os.getuid()}"


@contextmanager
def leased(kind: str, names: Sequence[str], folder: Path | None = None) -> Iterator[str]:
    """Lease the first free one of these resources for the duration of the block, and yield its name.

    Waits until one is free. Raises SpecError if locks cannot be written.
    """
    with ExitStack() as held:
        while (found := _first_free(kind, names, folder or lease_folder(), held)) is None:
            time.sleep(_LOOK_S)
        yield found


@contextmanager
def on_cores(count: int, folder: Path | None = None) -> Iterator[None]:
    """Pin this process to `count` cores without a lease: to fewer if fewer are free, to all if none is."""
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as held:
        free: list[int] = []
        while len(free) < min(count, len(cores)):
            left = [str(core) for core in cores if core not in free]
            if (found := _first_free("core", left, folder or lease_folder(), held)) is None:
                break
            free.append(int(found))
        os.sched_setaffinity(0, free or cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, cores)


def _first_free(kind: str, names: Sequence[str], folder: Path, held: ExitStack) -> str | None:
    """Lease and return the first free name, None if there is none; `held` releases it. Raises SpecError."""
    with writing(folder):
        private_folder(folder)
        for name in names:
            lock = lock_file(folder / f"{kind}-{json_sha256(name)[:16]}.lock")
            if lock is not None:
                held.callback(os.close, lock)
                return name
    return None

"""Simulate a power cut at any file-system operation: the work runs in its own process, which exits there.

There are two kinds of disk. On the first all earlier operations survive, and half of the last write. On the forgetful
disk only flushed data survive: a file that was not flushed since it was opened for writing is empty, and a rename is
undone if its folder was not flushed since.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

DARK = 99
"""Exit code of the process at the power cut."""
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate")


def cut_at(count: int, work: Callable[[], object], *, forgetful: bool) -> bool:
    """Run `work` up to operation number `count`, counted from 0, which is not executed. Return whether it got there.

    An exception in `work` is an error of the test.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            _Disk(count, forgetful).watch()
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.WEXITSTATUS(os.waitpid(child, 0)[1])
    assert status in (0, DARK), "the work failed"
    return status == DARK


class _Disk:
    """Tracks which changes of a process have reached the disk."""

    def __init__(self, left: int, forgetful: bool) -> None:
        self._left, self._forgetful = left, forgetful
        self._unflushed: list[Path] = []
        self._renames: list[tuple[Path, Path, Callable[[], object]]] = []
        self._dark = False

    def watch(self) -> None:
        """Start counting the operations of this process that change or flush files."""
        sys.addaudithook(self._event)
        os.fsync = self._fsync
        opened, disk = io.open, self

        def open_torn(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            """Replacement for the `open` that `Path` uses. Temporary files have an opener, and are not tracked."""
            if "opener" not in named and "b" in mode and set(mode) & set("wxa"):
                return io.BufferedWriter(_TornFile(disk, file, mode.replace("b", "")))
            return opened(file, mode, *more, **named)

        io.open = open_torn  # type: ignore[assignment]

    def write(self, half: Callable[[], object]) -> None:
        """Count a write. If the power cut is there, only its first half is done."""
        self._step(half)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._dark:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, Path)) and flags & (os.O_WRONLY | os.O_RDWR) and path != os.devnull:
                self._step()
                if flags & os.O_TMPFILE != os.O_TMPFILE:
                    self._unflushed.append(Path(path).absolute())
        elif event in _CHANGES:
            self._step()
            if event == "os.rename":
                self._renamed(*(Path(path).absolute() for path in arguments[:2]))

    def _fsync(self, handle: int) -> None:
        self._step()
        flushed = _link(Path(f"/proc/self/fd/{handle}"))
        self._unflushed = [path for path in self._unflushed if path != flushed]
        self._renames = [rename for rename in self._renames if rename[1].parent != flushed]

    def _step(self, before: Callable[[], object] = lambda: None) -> None:
        if self._dark:
            return
        if self._left == 0:
            self._dark = True
            before()
            if self._forgetful:
                self._forget()
            os._exit(DARK)
        self._left -= 1

    def _renamed(self, source: Path, goal: Path) -> None:
        """Record how to undo a rename. An unflushed file stays unflushed under its new name."""
        self._renames.append((source, goal, _restorer(goal)))
        self._unflushed = [
            goal / path.relative_to(source) if path == source or source in path.parents else path
            for path in self._unflushed
        ]

    def _forget(self) -> None:
        for path in self._unflushed:
            if path.is_file():
                path.write_bytes(b"")
        for source, goal, restore in reversed(self._renames):
            if os.path.lexists(goal) and source.parent.is_dir():
                goal.rename(source)
            restore()


class _TornFile(io.FileIO):
    """A file whose writes are counted."""

    def __init__(self, disk: _Disk, file: Any, mode: str) -> None:
        super().__init__(file, mode)
        self._disk = disk

    def write(self, content: Any) -> int:
        write = super().write
        self._disk.write(lambda: write(bytes(content)[: len(content) // 2]))
        return write(content)


def _restorer(path: Path) -> Callable[[], object]:
    """Return a function that restores the present link or file at a path."""
    if path.is_symlink():
        goal = _link(path)
        return lambda: os.path.lexists(path) or path.symlink_to(goal)
    if path.is_file():
        content = path.read_bytes()
        return lambda: path.write_bytes(content)
    return lambda: None


def _link(path: Path) -> Path:
    return Path(os.readlink(path))  # noqa: PTH115 Path.readlink is Python 3.9


def listing(folder: Path) -> list[str]:
    """Return the paths below a folder, links with their targets."""
    names = ((path, str(path.relative_to(folder))) for path in sorted(folder.rglob("*")))
    return [f"{name} -> {_link(path)}" if path.is_symlink() else name for path, name in names]


def fresh(source: Path, folder: Path) -> Path:
    """Make `folder` a new copy of a state folder, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, symlinks=True)
    return folder

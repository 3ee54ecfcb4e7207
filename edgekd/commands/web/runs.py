"""Result folders below a folder, and the content of their files. No HTML.

Files are untrusted: a broken one becomes a line with the reason, and nothing outside the folder is opened, even if
links or names in files refer to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from edgekd.builds.ledger import LEDGER, Ledger
from edgekd.builds.run import SEARCH
from edgekd.builds.run_progress import PROGRESS, RunProgress, State, read_progress
from edgekd.builds.stage_store import unfinished_stages
from edgekd.commands.compare import Finished, finished
from edgekd.core.bundle.archive import read_manifest
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.errors import EdgeKDError, SpecError, first_line, printable
from edgekd.core.input_files import read_input
from edgekd.core.json_files import read_document
from edgekd.deploy.fleet import BOARDS, RESULT, BoardReport, FleetReport
from edgekd.evaluation.search_result import SearchResult

T = TypeVar("T")
REPORT = "report.html"
_MARKS = (LEDGER, PROGRESS, SEARCH, RESULT)
"""Files of which each result folder has at least one."""
_INSIDE = frozenset({"stages", "search", BOARDS})
"""Folders in result folders that are not searched: they have thousands of files, and no result folders."""
MAX_DEPTH = 4
"""Maximum levels of folders below the given one."""
MAX_RUNS = 2000
"""Maximum number of result folders on a page."""
MAX_TEXT_BYTES = 1 << 20
"""Maximum bytes of a text such as a plan; that of a network with 300 layers has 30 kB."""
_CACHED = 4096
"""Number of documents, and of manifests, that are cached: enough for MAX_RUNS folders."""


@dataclass(frozen=True)
class Run:
    """A result folder.

    Args:
        root: The folder that is shown; resolved.
        name: Path below it, with forward slashes; empty for the folder itself.
    """

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Path of the folder."""
        return self.root / self.name

    @property
    def title(self) -> str:
        """Name of the folder, printable."""
        return printable(self.name or self.root.name)

    def inner(self, name: str) -> Run:
        """Return a folder in it as a result folder. Raises SpecError if the name or a link leads out of the root."""
        self.file(name)
        return Run(self.root, f"{self.name}/{name}".lstrip("/"))

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of that name that no link leads out of the root."""
        try:
            return self.file(name).is_file()
        except (OSError, SpecError):
            return False

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder. Raises SpecError if the name or a link leads out of the root."""
        path = self.folder / name
        try:
            inside = Path(name).name == name != ".." and path.resolve().is_relative_to(self.root)
        except (OSError, ValueError, RuntimeError):  # a null byte; a circle of links
            inside = False
        if not inside:
            raise SpecError(f"{self.title}: {name!r} is not shown", expected=f"a file below {self.root}")
        return path


@dataclass(frozen=True)
class RunRecord:
    """The content of the files of a result folder; None for missing files.

    Args:
        changed_at: Time of the last change of a file, in seconds since 1970.
        progress: Progress of the last command.
        build: The finished build.
        search: The search for its recipe.
        boards: The boards of a fleet, from the result of the fleet or, while it runs, from the results of the boards.
        fleet: The result of a fleet.
        unfinished: Names of the stages that are running, or were when the command was stopped.
        problems: Files that cannot be read, with the reasons.
    """

    run: Run
    changed_at: float
    progress: RunProgress | None
    build: Finished | None
    search: SearchResult | None
    fleet: FleetReport | None
    boards: tuple[BoardReport, ...]
    unfinished: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def state(self) -> State:
        """The state of the last command; `done` without a record, as in folders of an older edgekd."""
        return self.progress.state if self.progress else "done"

    @property
    def is_fleet(self) -> bool:
        """True for a fleet; False for a build or another command."""
        if self.progress:
            return self.progress.command == "fleet"
        return self.fleet is not None


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Return the result folders in a folder, including itself, sorted by name, and problems found on the way."""
    root = root.resolve()
    runs: list[Run] = []
    problems: list[str] = []
    for folder, files in _folders(root, problems):
        if not any(name in files for name in _MARKS):
            continue
        name = folder.relative_to(root).as_posix()
        if not _is_utf8(name):
            problems.append(f"{printable(name)}: not shown, because its name is not UTF-8")
        elif len(runs) == MAX_RUNS:
            problems.append(f"only {MAX_RUNS} result folders are shown")
            break
        else:
            runs.append(Run(root, "" if name == "." else name))
    return runs, problems


def _folders(root: Path, problems: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders down to MAX_DEPTH and the names of their files, without the folders _INSIDE result folders."""

    def refuse(error: OSError) -> None:
        problems.append(printable(f"{error.filename}: cannot be listed: {error.strerror}"))

    for place, folders, files in os.walk(root, onerror=refuse):
        folder = Path(place)
        deep = len(folder.relative_to(root).parts) >= MAX_DEPTH
        inside = _INSIDE if any(name in files for name in _MARKS) else frozenset()
        folders[:] = [] if deep else sorted(name for name in folders if name[0] != "." and name not in inside)
        yield folder, files


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_run(run: Run) -> RunRecord:
    """Read a result folder; the record lists files that cannot be read as problems."""
    problems: list[str] = []

    def read(name: str, reader: Callable[[Path], T]) -> T | None:
        return _read(run, name, reader, problems)

    progress = read(PROGRESS, lambda path: read_progress(path.parent))  # not cached: its state depends on a lock
    search = read(SEARCH, lambda path: _document(SearchResult, *_version(path)))
    fleet = read(RESULT, lambda path: _document(FleetReport, *_version(path)))
    build = read(LEDGER, lambda path: _finished(run, path))
    ended = progress is None or progress.state == "done"
    boards = fleet.boards if fleet and ended else _boards(run, problems)
    unfinished = None if ended else read("stages", unfinished_stages)
    times = [run.file(name).stat().st_mtime for name in _MARKS if run.has(name)]
    return RunRecord(
        run=run,
        changed_at=max(times, default=0.0),
        progress=progress,
        build=build,
        search=search,
        fleet=fleet,
        boards=boards,
        unfinished=tuple(unfinished or ()),
        problems=tuple(problems),
    )


def read_text(run: Run, name: str) -> str:
    """Return the text of a file. Raises SpecError if it cannot be read or is too large."""
    content = read_input(run.file(name), MAX_TEXT_BYTES, SpecError)
    return content.decode("utf-8", "replace")


def _finished(run: Run, ledger_path: Path) -> Finished:
    ledger = _document(Ledger, *_version(ledger_path))
    return finished(run.folder, ledger, _manifest(*_version(run.file(ledger.bundle))))


def _boards(run: Run, problems: list[str]) -> tuple[BoardReport, ...]:
    """Return the last result of each board of a fleet so far, sorted by the name of the board."""
    try:
        boards = run.inner(BOARDS)
        names = sorted(entry.name for entry in os.scandir(boards.folder))[:MAX_RUNS]
    except (OSError, SpecError):
        return ()
    found = [_read(boards, name, lambda path: _document(BoardReport, *_version(path)), problems) for name in names]
    reports = sorted(filter(None, found), key=lambda board: board.measured_at)
    last = {board.name: board for board in reports}
    return tuple(last[name] for name in sorted(last))


def _read(run: Run, name: str, reader: Callable[[Path], T], problems: list[str]) -> T | None:
    """Return the result of a reader for a file; None without the file, or with an entry in `problems` if it fails."""
    if not os.path.lexists(run.folder / name):
        return None
    try:
        return reader(run.file(name))
    except EdgeKDError as error:
        problems.append(str(error))
    except Exception as error:  # any error that a hostile file causes in a reader
        problems.append(printable(f"{run.title}/{name}: cannot be read: {first_line(error)}"))
    return None


def _version(path: Path) -> tuple[Path, tuple[int, int, int]]:
    """Return a path, and inode, modification time (ns) and size of its file. Raises OSError."""
    status = path.stat()
    return path, (status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(_CACHED)
def _document(kind: type[T], path: Path, version: tuple[int, int, int]) -> T:
    """Return the document in this version of a file, cached."""
    return read_document(kind, path)


@lru_cache(_CACHED)
def _manifest(path: Path, version: tuple[int, int, int]) -> Manifest:
    """Return the manifest of this version of a bundle, cached."""
    return read_manifest(path)

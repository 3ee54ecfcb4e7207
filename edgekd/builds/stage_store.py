"""The store: every stage of a build kept under the hash of what went into it, so that nothing is done twice.

ROOT/
  NAME-KEY/              a complete stage: its files, and stage.json
  .NAME-KEY.lock         held by the process that is doing or checking the stage
  .NAME-KEY.*.edgekd-tmp a stage being done; of a killed process, until the store is opened next
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import contents, new_folder, no_room, remove_folder, remove_leftovers, write_file, writing
from edgekd.core.canonical import canonical_json, file_sha256, json_sha256
from edgekd.core.errors import DataError
from edgekd.core.progress import SILENT, Progress

Run = Callable[[Path], Mapping[str, Any]]

_RECORD = "stage.json"


@dataclass(frozen=True)
class StageFile:
    """A file that a stage wrote: length in bytes, and SHA-256 as 64 hexadecimal digits."""

    length: int
    sha256: str


@dataclass(frozen=True)
class Stage:
    """A complete stage.

    key: SHA-256 of name, version and inputs, in hexadecimal.
    path: the folder with its files.
    results: what it returned, as JSON gives it back (tuples are lists).
    seconds: what it took when it was done, whether that was now or in an earlier build (`cached`).
    files: by path relative to `path`, with forward slashes.
    """

    name: str
    version: int
    key: str
    path: Path
    results: Mapping[str, Any]
    seconds: float
    cached: bool
    files: Mapping[str, StageFile]

    @property
    def sha256(self) -> str:
        """The identity of what came out: of files and results, not of how long they took."""
        files = {name: asdict(file) for name, file in self.files.items()}
        return json_sha256({"files": files, "results": self.results})

    @property
    def bytes(self) -> int:
        """The length of all its files together."""
        return sum(file.length for file in self.files.values())


class Store:
    """Stages on disk. Several processes may share them: when two want one stage, one does it and the other waits."""

    def __init__(self, root: Path, fresh: bool = False, progress: Progress = SILENT) -> None:
        """Open or make a store. `fresh`: do every stage once more, even where a complete one is found.

        Raises SpecError when `root` cannot be written.
        """
        self.root = root
        self._progress = progress
        self.fresh = fresh
        self._done: set[str] = set()
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(root)

    def stage(self, name: str, version: int, inputs: Mapping[str, Any], run: Run) -> Stage:
        """The stage with these inputs: found complete and undamaged, or else done by `run`.

        `run` writes files into the empty folder it is given (`stage.json` is taken) and returns results that JSON can
        hold. `version` counts changes of the code that `run` stands for. Raises SpecError when the store cannot be
        written or its disk is full, and what `run` raises; nothing of the stage is left then.
        """
        key = json_sha256({"name": name, "version": version, "inputs": inputs})
        path = self.root / f"{name}-{key[:16]}"
        with self._lock(path, name):
            stage = None if self.fresh and key not in self._done else self._found(path, name, version, key)
            if stage is None:
                stage = _do(path, name, version, key, inputs, run)
        self._done.add(key)
        return stage

    @contextmanager
    def _lock(self, path: Path, name: str) -> Iterator[None]:
        with writing(path):
            handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with writing(path):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._progress.note(f"{name}: another build is doing this; waiting for it")
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _found(self, path: Path, name: str, version: int, key: str) -> Stage | None:
        """The complete stage in a folder; None when there is none or it is not as it was written."""
        if not path.exists():
            return None
        stage = read_stage(path)
        if stage is not None and (stage.name, stage.version, stage.key) == (name, version, key):
            return stage
        self._progress.note(f"{name}: {path} is damaged; doing this stage again")
        return None


def read_stage(path: Path) -> Stage | None:
    """The complete stage in a folder; None where there is none, or it is not as it was written."""
    try:
        record = json.loads((path / _RECORD).read_bytes())
        names = (record["name"], record["version"], record["key"])
        stage = Stage(*names, path, record["results"], float(record["seconds"]), True, _files(path))
        return stage if stage.sha256 == record["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # as damaged as a wrong hash


def inputs_of(stage: Stage) -> Mapping[str, Any]:
    """What went into a stage, by name."""
    found: Mapping[str, Any] = json.loads((stage.path / _RECORD).read_bytes())["inputs"]
    return found


def _do(path: Path, name: str, version: int, key: str, inputs: Mapping[str, Any], run: Run) -> Stage:
    """Run a stage in a folder that takes the place of `path` when it is complete."""
    with new_folder(path) as folder:
        began = time.perf_counter()
        try:
            returned = run(folder)
        except OSError as error:
            if not no_room(error):
                raise
            with writing(path):
                raise
        seconds = time.perf_counter() - began
        results = json.loads(canonical_json(returned))
        with writing(path):
            stage = Stage(name, version, key, path, results, seconds, False, _files(folder))
            record = {
                "name": name,
                "version": version,
                "key": key,
                "inputs": inputs,
                "results": results,
                "seconds": round(seconds, 3),
                "files": {name: asdict(file) for name, file in stage.files.items()},
                "sha256": stage.sha256,
            }
            (folder / _RECORD).write_bytes(readable_json(record))
        if path.exists():
            remove_folder(path)
    return stage


def _files(folder: Path) -> dict[str, StageFile]:
    """What is in a stage's folder, but for its record. Raises OSError."""
    names = {file.relative_to(folder).as_posix(): file for file in contents(folder) if not file.is_dir()}
    return {name: StageFile(file.stat().st_size, file_sha256(file)) for name, file in names.items() if name != _RECORD}


def ledger_row(stage: Stage) -> dict[str, Any]:
    """One stage as the ledger has it. `map50_95` and `map50` come from its results, None where it scored nothing."""
    return {
        "name": stage.name,
        "version": stage.version,
        "key": stage.key,
        "seconds": round(stage.seconds, 3),
        "bytes": stage.bytes,
        "map50_95": stage.results.get("map50_95"),
        "map50": stage.results.get("map50"),
        "sha256": stage.sha256,
        "files": {name: file.sha256 for name, file in stage.files.items()},
        "cached": stage.cached,
    }


def write_ledger(path: Path, stages: Sequence[Stage], extra: Mapping[str, Any]) -> None:
    """Write what every stage took and gave, in order, and the fields in `extra`. Raises SpecError."""
    write_file(path, readable_json({**extra, "stages": [ledger_row(stage) for stage in stages]}))


def readable_json(value: Any) -> bytes:
    """A JSON document as people read it, in UTF-8. Raises ValueError for NaN and infinity."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


class FileHashes:
    """SHA-256 of many files, remembered between runs by path, size and times: what did not change is not read again.

    The time of the last change of the inode counts too, because a copy can carry another file's modification time.
    """

    _SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system: FAT's two seconds

    def __init__(self, path: Path) -> None:
        """Open the cache in file `path`. One that is missing or damaged is an empty one."""
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            known = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(known, dict):
            self._known = {name: entry for name, entry in known.items() if _is_hash_entry(entry)}

    def sha256(self, file: Path) -> str:
        """SHA-256 of a file's content. Raises DataError when it cannot be read."""
        name = str(file.absolute())
        try:
            now = file.stat()
            facts = [now.st_size, now.st_mtime_ns, now.st_ctime_ns]
            known = self._known.get(name)
            if known and known[:3] == facts:
                return str(known[3])
            digest = file_sha256(file)
        except OSError as error:
            what = f"{file}: cannot read"
            raise DataError(what, found=error.strerror or str(error), fix="check the path and its rights") from error
        # A file that changed a moment ago may change again within one tick of the clock: not to be trusted yet.
        if time.time_ns() - now.st_ctime_ns > self._SETTLED_NS:
            self._known[name] = [*facts, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write the cache, if it learnt anything. Raises SpecError when it cannot be written."""
        if self._changed:
            write_file(self._path, canonical_json(self._known))
            self._changed = False


def _is_hash_entry(entry: Any) -> bool:
    return isinstance(entry, list) and [type(item) for item in entry] == [int, int, int, str] and len(entry[3]) == 64

"""The store: stages of builds, cached by the hash of their inputs, so that no stage runs twice.

ROOT/
  NAME-KEY/              a complete stage: its files, and stage.json
  .NAME-KEY.lock         held by the process that runs or checks the stage
  .NAME-KEY.*.edgekd-tmp a running stage; that of a killed process is removed when the store is opened next
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar

from edgekd.core.atomic_files import (
    contents,
    copy_file,
    new_folder,
    no_room,
    remove_folder,
    remove_leftovers,
    write_file,
    writing,
)
from edgekd.core.canonical import canonical_json, file_sha256, json_sha256
from edgekd.core.documents import to_plain
from edgekd.core.errors import DataError, SpecError
from edgekd.core.private_files import lock_file
from edgekd.core.progress import SILENT, Progress
from edgekd.core.typed_values import from_plain

R = TypeVar("R", bound="StageResult")
R_co = TypeVar("R_co", bound="StageResult", covariant=True)

RECORD = "stage.json"
_UNFINISHED = re.compile(r"\.(?P<name>.+)-[0-9a-f]{16}\.[0-9a-f]{8}\.edgekd-tmp")
"""Name of the folder of a running stage, from `atomic_files.new_folder`."""


@dataclass(frozen=True)
class StageResult:
    """The result of a stage besides its files: base of a frozen dataclass for each kind of stage."""

    @property
    def summary(self) -> str:
        """Text for the stage's row in the report."""
        return ""


@dataclass(frozen=True)
class StageKind(Generic[R]):
    """The declaration of a stage.

    Args:
        name: Name of the stage.
        version: Number that rises with each change of code that changes the output.
        result: The dataclass that it returns, or a union of dataclasses with different fields.
        tools: Libraries whose versions may change its output.
    """

    name: str
    version: int
    result: type[R] | UnionType
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageFile:
    """A file that a stage wrote: length in bytes, and SHA-256 as 64 hexadecimal digits."""

    length: int
    sha256: str


@dataclass(frozen=True)
class Stage(Generic[R_co]):
    """A complete stage.

    Args:
        name: Name of its kind, with a label such as `score-int8` where one build has several.
        version: Version of its code.
        key: SHA-256 of name, version and inputs, in hexadecimal.
        path: The folder with its files.
        tools: Versions of the libraries that it used.
        sha256: SHA-256 of its files, result and tools, without times.
        seconds: Wall time of the run that made it, in this build or in an earlier one (`cached`).
        cpu_seconds: CPU time of all threads and child processes; None if an older edgekd made it.
        files: Files by path relative to `path`, with forward slashes.
    """

    name: str
    version: int
    key: str
    path: Path
    result: R_co
    tools: Mapping[str, str]
    sha256: str
    seconds: float
    cached: bool
    files: Mapping[str, StageFile]
    cpu_seconds: float | None = None

    @property
    def bytes(self) -> int:
        """Total length of its files."""
        return sum(file.length for file in self.files.values())

    @property
    def results(self) -> dict[str, Any]:
        """Result and tools as in `stage.json`."""
        return _results(self.result, self.tools)


AnyStage = Stage[StageResult]


class Store:
    """Stages on disk. Processes may share them: if two need the same stage, one runs it and the other waits."""

    def __init__(self, root: Path, fresh: bool = False, progress: Progress = SILENT) -> None:
        """Open or create a store. fresh: run every stage again, even if the store has it.

        Raises SpecError if `root` cannot be written.
        """
        self.root = root
        self._progress = progress
        self.fresh = fresh
        self._done: set[str] = set()
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(root)

    def stage(
        self,
        kind: StageKind[R],
        inputs: Mapping[str, Any],
        work: Callable[[Path], R],
        *,
        label: str = "",
        tools: Mapping[str, str] | None = None,
        fits: Callable[[Path], bool] | None = None,
    ) -> Stage[R]:
        """Return the stage with these inputs, from the store if it is complete and undamaged, else made by `work`.

        `work` is called with an empty folder, writes files into it (except `stage.json`), and returns the result.
        fits: Called with the folder of a stage that was found; returns whether its files are still usable.
        Raises SpecError if the store cannot be written or its disk is full, and what `work` raises; in both cases no
        part of the stage is left.
        """
        name = f"{kind.name}-{label}" if label else kind.name
        key = json_sha256({"name": name, "version": kind.version, "inputs": inputs})
        path = self.root / f"{name}-{key[:16]}"
        with self._lock(path, name):
            stage = None if self.fresh and key not in self._done else self._found(path, kind, name, key)
            if stage is None or not (fits is None or fits(path)):
                stage = _make(path, kind, name, key, inputs, work, tools or {})
        self._done.add(key)
        return stage

    @contextmanager
    def _lock(self, path: Path, name: str) -> Iterator[None]:
        lock = path.with_name(f".{path.name}.lock")
        with writing(path):
            handle = lock_file(lock)
            if handle is None:
                self._progress.note(f"{name}: another build is doing this; waiting for it")
                handle = lock_file(lock, wait_s=None)
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    def _found(self, path: Path, kind: StageKind[R], name: str, key: str) -> Stage[R] | None:
        """Return the complete stage in a folder; None if there is none, it is damaged, or has another key."""
        if not path.exists():
            return None
        stage = read_stage(path, kind)
        if stage is not None and (stage.name, stage.version, stage.key) == (name, kind.version, key):
            return stage
        self._progress.note(f"{name}: {path} is damaged, or of another user; doing this stage again")
        return None


def read_stage(path: Path, kind: StageKind[R]) -> Stage[R] | None:
    """Return the complete stage in a folder; None if there is none, it is damaged, or belongs to another user.

    The owner of a stage can write files and record alike, so only those of this user and of root are trusted.
    """
    try:
        if not _trusted(path):
            return None
        record = json.loads((path / RECORD).read_bytes())
        identity = (record["name"], record["version"], record["key"])
        times = (float(record["seconds"]), record.get("cpu_seconds"))
        stage = _stage(kind, identity, path, record["results"], _files(path), times, cached=True)
        return stage if stage.sha256 == record["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, SpecError):
        return None  # as damaged as a wrong hash


def _trusted(path: Path) -> bool:
    """Return whether this user or root owns a path and everything in it. Raises OSError."""
    paths = (path, *contents(path)) if path.is_dir() else (path,)
    return {each.lstat().st_uid for each in paths} <= {os.geteuid(), 0}


def inputs_of(stage: AnyStage) -> Mapping[str, Any]:
    """Return the inputs of a stage by name, from its record. Raises OSError."""
    found: Mapping[str, Any] = json.loads((stage.path / RECORD).read_bytes())["inputs"]
    return found


def unfinished_stages(root: Path) -> list[str]:
    """Return the names of stages in a store that are running, or were when their process was killed."""
    try:
        found = [_UNFINISHED.fullmatch(entry.name) for entry in os.scandir(root)]
    except OSError:
        return []
    return sorted(match["name"] for match in found if match)


def _make(
    path: Path,
    kind: StageKind[R],
    name: str,
    key: str,
    inputs: Mapping[str, Any],
    work: Callable[[Path], R],
    tools: Mapping[str, str],
) -> Stage[R]:
    """Run a stage in a temporary folder, which replaces `path` when it is complete."""
    with new_folder(path) as folder:
        began, cpu_began = time.perf_counter(), sum(os.times()[:4])
        try:
            result = work(folder)
        except OSError as error:
            if not no_room(error):
                raise
            with writing(path):
                raise
        times = (time.perf_counter() - began, sum(os.times()[:4]) - cpu_began)
        results = _results(result, tools)
        with writing(path):
            identity = (name, kind.version, key)
            stage = _stage(kind, identity, path, results, _files(folder), times, cached=False)
            record = {
                "name": name,
                "version": kind.version,
                "key": key,
                "inputs": inputs,
                "results": results,
                "seconds": round(times[0], 3),
                "cpu_seconds": round(times[1], 2),
                "files": {name: asdict(file) for name, file in stage.files.items()},
                "sha256": stage.sha256,
            }
            (folder / RECORD).write_bytes(readable_json(record))
        if path.exists():
            remove_folder(path)
    return stage


def _results(result: StageResult, tools: Mapping[str, str]) -> dict[str, Any]:
    """Return the results of a record: plain JSON types, keys sorted.

    Raises TypeError or ValueError for values that JSON does not have.
    """
    results: dict[str, Any] = json.loads(canonical_json({**to_plain(result), "tools": tools}))
    return results


def _stage(
    kind: StageKind[R],
    identity: tuple[str, int, str],
    path: Path,
    results: Mapping[str, Any],
    files: Mapping[str, StageFile],
    times: tuple[float, float | None],
    *,
    cached: bool,
) -> Stage[R]:
    """Return the stage whose record has these results. Raises SpecError if they do not fit the kind.

    identity: name, version and key; times: wall and CPU seconds.
    """
    own = {name: value for name, value in results.items() if name != "tools"}
    result: R = from_plain(kind.result, own, identity[0])
    sha256 = json_sha256({"files": {name: asdict(file) for name, file in files.items()}, "results": results})
    return Stage(*identity, path, result, results["tools"], sha256, times[0], cached, files, times[1])


def _files(folder: Path) -> dict[str, StageFile]:
    """Return the files in a stage's folder, except its record. Raises OSError."""
    names = {file.relative_to(folder).as_posix(): file for file in contents(folder) if not file.is_dir()}
    return {name: StageFile(file.stat().st_size, file_sha256(file)) for name, file in names.items() if name != RECORD}


@dataclass(frozen=True)
class StageSummary:
    """A stage of a build.

    Args:
        name: Name; `score-fp32` is stage `score` on the float32 graph.
        seconds: Wall time when the stage ran, now or in an earlier build.
        bytes: Size of the graph, packed graph, checkpoint or bundle that it made; for other stages, of all its files.
        map50_95, map50: COCO's mAP of the graph; null where the stage scores nothing.
        cached: True if it was found in the store and did not run again.
    """

    name: str
    seconds: float
    bytes: int
    map50_95: float | None
    map50: float | None
    cached: bool


def summaries(stages: Sequence[AnyStage]) -> tuple[StageSummary, ...]:
    """Return the summaries of stages that commands report."""
    return tuple(
        StageSummary(
            name=stage.name,
            seconds=round(stage.seconds, 3),
            bytes=number_of(stage, "bytes", stage.bytes),
            map50_95=number_of(stage, "map50_95"),
            map50=number_of(stage, "map50"),
            cached=stage.cached,
        )
        for stage in stages
    )


def put_result(source: Path | None, place: Path) -> None:
    """Copy a stage's file into a result folder; without a source, remove the file of an earlier run there.

    Raises SpecError if it cannot be written.
    """
    if source is not None:
        copy_file(source, place)
        return
    with writing(place):
        place.unlink(missing_ok=True)


def number_of(stage: Stage[StageResult], name: str, default: Any = None) -> Any:
    """Return a field of a stage's result by name; the default if its kind of result has no such field."""
    return getattr(stage.result, name, default)


def readable_json(value: Any) -> bytes:
    """Return an indented JSON document in UTF-8. Raises ValueError for NaN and infinity."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


class FileHashes:
    """SHA-256 of files, cached between runs by path, size and times: an unchanged file is not read again.

    The times are those of modification and of inode change, because a copy can have its source's modification time.
    """

    _SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system: FAT's two seconds

    def __init__(self, path: Path) -> None:
        """Open the cache in the file `path`; it is empty if the file is missing, damaged, or of another user."""
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            known = json.loads(path.read_bytes()) if _trusted(path) else None
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(known, dict):
            self._known = {name: entry for name, entry in known.items() if _is_hash_entry(entry)}

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file's content. Raises DataError if it cannot be read."""
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
        # A file that has just changed may change again within one tick of the clock, so its hash is not cached yet.
        if time.time_ns() - now.st_ctime_ns > self._SETTLED_NS:
            self._known[name] = [*facts, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write the cache if it has changed. Raises SpecError if it cannot be written."""
        if self._changed:
            write_file(self._path, canonical_json(self._known))
            self._changed = False


def _is_hash_entry(entry: Any) -> bool:
    return isinstance(entry, list) and [type(item) for item in entry] == [int, int, int, str] and len(entry[3]) == 64

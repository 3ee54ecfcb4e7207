"""A bundle's engine built, tested and timed on many boards at once, independently of each other.

A board that fails or is slow does not affect the others. The result of a board is kept in a file of its own at once,
and is not measured again for the same bundle, board and settings.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import write_file, writing
from edgekd.core.canonical import file_sha256, json_sha256
from edgekd.core.documents import to_plain
from edgekd.core.errors import EdgeKDError, SpecError
from edgekd.core.progress import SILENT, Progress, SilentProgress
from edgekd.core.toml import parse_table, read_toml
from edgekd.core.typed_values import from_plain
from edgekd.core.version import __version__
from edgekd.deploy.devices import Device
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.devices.session import Stop
from edgekd.deploy.engine import Contents, EngineJob, SharedLimits, contents, install
from edgekd.deploy.engine_result import BoardError, BoardMeasurement, EngineResult, FleetBoard, FleetResult

RESULT, BOARDS = "fleet.json", "boards"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NULL = "null"
JETPACKS = {
    "32.6": "4.6",
    "32.7": "4.6.1 or later",
    "35.1": "5.0",
    **{f"35.{minor}": "5.1" for minor in range(2, 7)},
    "36.3": "6.0",
    "36.4": "6.1 or 6.2",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
"""Releases of Jetson Linux, without their last number, and the JetPack that they came with."""


@dataclass(frozen=True)
class Board:
    """One board; None stands for the setting of the fleet's usual job."""

    name: str
    device: str
    runtime: str | None = None
    state: str | None = None
    python: str | None = None
    agent: str | None = None


@dataclass(frozen=True)
class Fleet:
    """Boards. uploads: bundles sent at the same time; at_once: boards worked on at the same time."""

    boards: tuple[Board, ...]
    uploads: int = 4
    at_once: int = 64


@dataclass(frozen=True)
class FleetJob:
    """Boards, and the job to run on each.

    usual: the bundle, how it is timed, and the defaults of boards; its device does not matter. out: the folder of
    results; fresh: ignore earlier results in it.
    """

    fleet: Fleet
    usual: EngineJob
    out: Path
    fresh: bool = False

    def on(self, board: Board) -> EngineJob:
        """Return the job of one board. Raises SpecError where it names no device."""
        own = {name: getattr(board, name) for name in ("runtime", "state", "python", "agent")}
        given = {name: value for name, value in own.items() if value is not None}
        return replace(self.usual, device=device_of(board), **given)

    def kept(self, board: Board) -> Path:
        """Return the file for the result of a board; its name is a hash of all that the measurement depends on."""
        job = self.on(board)
        asked = {name: getattr(job, name) for name in ("runtime", "state", "python", "agent", "iterations", "seconds")}
        if job.tune:
            asked |= {"tune": job.builds, "data": str(job.data) if job.data else None}
        key = json_sha256({**asked, "device": board.device, "bundle": self.bundle_sha256, "edgekd": __version__})
        return self.out / BOARDS / f"{board.name}-{key[:16]}.json"

    @cached_property
    def bundle_sha256(self) -> str:
        """Return the SHA-256 of the bundle. Raises OSError."""
        return file_sha256(self.usual.bundle)


def load_fleet(path: Path) -> Fleet:
    """Read boards from a TOML file. Raises SpecError for none, duplicates, and invalid ones."""
    fleet = parse_table(Fleet, read_toml(path), str(path))
    if not fleet.boards:
        raise SpecError(f"{path}: no boards", expected="[[boards]] with name and device")
    for limit in ("uploads", "at_once"):
        if getattr(fleet, limit) < 1:
            raise SpecError(f"{path}: {limit}", expected="1 or more", found=str(getattr(fleet, limit)))
    for board in fleet.boards:
        if not _NAME.fullmatch(board.name):
            expected = "up to 64 letters, digits and any of . _ - after the first"
            raise SpecError(f"{path}: a board's name", expected=expected, found=repr(board.name))
        device_of(board)
    _require_once(path, "name", [board.name for board in fleet.boards])
    _require_once(path, "device", [board.device for board in fleet.boards if board.device != _NULL])
    return fleet


def _require_once(path: Path, what: str, values: Sequence[str]) -> None:
    value, count = Counter(values).most_common(1)[0] if values else ("", 0)
    if count > 1:
        fix = "give each a name of its own" if what == "name" else "measured at the same time they slow each other down"
        raise SpecError(f"{path}: {count} boards with {what} {value!r}", expected="one", fix=fix)


def device_of(board: Board) -> Device:
    """Return the device of a board. Raises SpecError where it names none."""
    try:
        return device_named(board.device)
    except SpecError as error:
        what = f"board {board.name}: {error.what.removeprefix('--device').lstrip(' :')}"
        raise SpecError(what, expected=error.expected, found=error.found, fix=error.fix) from error


def run(job: FleetJob, progress: Progress = SILENT) -> FleetResult:
    """Measure all boards; return the documented result, also in OUT/fleet.json. Raises BundleError, SpecError."""
    with contents(job.usual.bundle) as parts:
        with writing(job.out):
            (job.out / BOARDS).mkdir(parents=True, exist_ok=True)
        kept = {} if job.fresh else {board.name: old for board in job.fleet.boards if (old := _read(job, board))}
        left = [board for board in job.fleet.boards if board.name not in kept]
        if kept:
            progress.note(f"kept from before: {', '.join(kept)}")
        found = {**kept, **_measured(job, left, parts, progress)}
    result = FleetResult(
        bundle=job.usual.bundle,
        name=parts.manifest.name,
        target=parts.manifest.target.name,
        out=job.out,
        passed=all(each.error is None for each in found.values()),
        boards=tuple(
            FleetBoard(board.name, board.device, found[board.name], kept=board.name in kept)
            for board in job.fleet.boards
        ),
    )
    write_file(job.out / RESULT, _text(result.document))
    return result


def _measured(
    job: FleetJob, boards: Sequence[Board], parts: Contents, progress: Progress
) -> dict[str, BoardMeasurement]:
    """Return the results of boards by name. Ctrl-C ends the work on all of them before it is raised.

    A fault of edgekd itself is raised when all are done.
    """
    shared = SharedLimits(Stop(), threading.Semaphore(job.fleet.uploads))
    with _crew(shared, job.fleet.at_once) as crew:
        futures = {board.name: crew.submit(_measure, job, board, parts, shared, progress) for board in boards}
        wait(futures.values())
    return {name: future.result() for name, future in futures.items()}


@contextmanager
def _crew(shared: SharedLimits, size: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads, which are stopped where the block is interrupted."""
    with ThreadPoolExecutor(size) as crew:
        try:
            yield crew
        except BaseException:
            shared.stop.set()
            crew.shutdown(cancel_futures=True)
            raise


def _measure(
    job: FleetJob, board: Board, parts: Contents, shared: SharedLimits, progress: Progress
) -> BoardMeasurement:
    """Return the result of one board, and keep it, or its error."""
    began, when = time.perf_counter(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    result, error = None, None
    try:
        result = install(job.on(board), parts, _Lines(board.name, progress), shared)
    except EdgeKDError as problem:
        parts_of = (problem.what, problem.expected, problem.found, problem.fix)
        error = BoardError(type(problem).__name__, str(problem), *parts_of)
    seconds = round(time.perf_counter() - began, 3)
    progress.note(f"{board.name}: {'failed' if error else 'done'} after {seconds:.1f} s")
    measurement = BoardMeasurement(when, seconds, _jetpack(result), error, result)
    if result:
        write_file(job.kept(board), _text(to_plain(measurement)))
    return measurement


def _read(job: FleetJob, board: Board) -> BoardMeasurement | None:
    """Return the kept result of a board, where there is one that can be read."""
    with suppress(OSError, ValueError, SpecError):
        return from_plain(BoardMeasurement, json.loads(job.kept(board).read_text("utf-8")), board.name, extra=True)
    return None


def _jetpack(result: EngineResult | None) -> str | None:
    """Return the JetPack of a board, by its release of Jetson Linux; None where that is unknown, or it is no Jetson."""
    l4t = result.device.l4t if result else None
    return JETPACKS.get(".".join(l4t.split(".")[:2])) if l4t else None


def _text(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


@dataclass(frozen=True)
class _Lines(SilentProgress):
    """Progress of one board among many: lines, with its name."""

    name: str
    progress: Progress

    def note(self, text: str) -> None:
        self.progress.note(f"{self.name}: {text}")

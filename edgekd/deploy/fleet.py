"""Build, test and time a bundle's engine on many boards in parallel.

Boards are independent: failures and stragglers do not affect the others. The result of each board is written to its own
file at once, and is not measured again for the same bundle, board and settings.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from edgekd.core.atomic_files import write_file, writing
from edgekd.core.canonical import file_sha256, json_sha256
from edgekd.core.documents import Result, to_plain
from edgekd.core.errors import EdgeKDError, SpecError, first_line, printable
from edgekd.core.progress import SILENT, Progress, SilentProgress
from edgekd.core.toml import parse_table, read_toml
from edgekd.core.typed_values import from_plain
from edgekd.core.version import __version__
from edgekd.deploy.devices import AgentDevice
from edgekd.deploy.devices.connection import Stop
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.engine import Contents, EngineJob, SharedLimits, contents, install
from edgekd.deploy.engine_report import InstallReport

RESULT, BOARDS = "fleet.json", "boards"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NULL = "null"
_POLL_S = 0.5
"""Interval at which the main thread wakes up: a signal to another thread does not interrupt a wait without timeout."""
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
"""JetPack by the release of Jetson Linux, without its patch number."""


@dataclass(frozen=True)
class Board:
    """One board; None for the setting of the fleet's default job."""

    name: str
    device: str
    runtime: str | None = None
    state: str | None = None
    python: str | None = None
    agent: str | None = None


@dataclass(frozen=True)
class Fleet:
    """Boards. uploads: simultaneous uploads; at_once: boards measured in parallel."""

    boards: tuple[Board, ...]
    uploads: int = 4
    at_once: int = 64


@dataclass(frozen=True)
class FleetJob:
    """Boards, and the job to run on each.

    usual: bundle, timing, and defaults of boards; its device is ignored. out: folder of results; fresh: ignore earlier
    results in it.
    """

    fleet: Fleet
    usual: EngineJob
    out: Path
    fresh: bool = False

    def on(self, board: Board) -> EngineJob:
        """Return the job of one board. Raises SpecError for an invalid device."""
        own = {name: getattr(board, name) for name in ("runtime", "state", "python", "agent")}
        given = {name: value for name, value in own.items() if value is not None}
        return replace(self.usual, device=device_of(board), **given)

    def kept(self, board: Board) -> Path:
        """Return the file for the result of a board; its name has a hash of all that the measurement depends on."""
        job = self.on(board)
        settings = {
            name: getattr(job, name) for name in ("runtime", "state", "python", "agent", "iterations", "seconds")
        }
        if job.tune:
            settings |= {"tune": job.builds, "data": str(job.data) if job.data else None}
        if job.uses_bundle_agent:
            settings["agent"] = "that of the bundle"
        key = json_sha256({**settings, "device": board.device, "bundle": self.bundle_sha256, "edgekd": __version__})
        return self.out / BOARDS / f"{board.name}-{key[:16]}.json"

    @cached_property
    def bundle_sha256(self) -> str:
        """Return the SHA-256 of the bundle. Raises OSError."""
        return file_sha256(self.usual.bundle)


@dataclass(frozen=True)
class BoardError:
    """Error of a board.

    Args:
        kind: Class of the error, such as DeviceError.
        text: The whole error on one line.
        what: Problem.
        expected: Expected value.
        found: Value found.
        fix: Remedy.
    """

    kind: str
    text: str
    what: str
    expected: str | None
    found: str | None
    fix: str | None


@dataclass(frozen=True)
class BoardReport:
    """Result of a board; either `error` or `result` is null.

    Args:
        name: Name of the board in the fleet's file.
        device: Address of the board.
        measured_at: Start of the measurement, UTC, ISO 8601.
        seconds: Wall time on this host.
        jetpack: JetPack of its release of Jetson Linux; null if unknown.
        error: Error of the board.
        result: Result of `edgekd engine --device`.
        kept: Whether it was measured by an earlier call.
    """

    name: str
    device: str
    measured_at: str
    seconds: float
    jetpack: str | None
    error: BoardError | None
    result: InstallReport | None
    kept: bool


@dataclass(frozen=True)
class FleetReport(Result):
    """A bundle's engine, built, tested and timed on the boards of a fleet.

    Args:
        bundle: Path of the bundle on this host.
        name: Name of the model.
        target: Name of the target that it was built for.
        out: Folder of the results: this document, and one file per board in `boards`.
        passed: Whether no board has an error.
        boards: Results in the order of the fleet's file.
    """

    bundle: str
    name: str
    target: str
    out: str
    passed: bool
    boards: tuple[BoardReport, ...]

    @property
    def exit_status(self) -> int:
        """1 if a board has an error."""
        return 0 if self.passed else 1


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
        fix = "give each its own name" if what == "name" else "parallel measurements on one device slow each other down"
        raise SpecError(f"{path}: {count} boards with {what} {value!r}", expected="one", fix=fix)


def device_of(board: Board) -> AgentDevice:
    """Return the device of a board. Raises SpecError for an invalid name."""
    try:
        return device_named(board.device)
    except SpecError as error:
        what = f"board {board.name}: {error.what.removeprefix('--device').lstrip(' :')}"
        raise SpecError(what, expected=error.expected, found=error.found, fix=error.fix) from error


def run(job: FleetJob, progress: Progress = SILENT) -> FleetReport:
    """Measure all boards, and write OUT/fleet.json. Raises BundleError, SpecError."""
    with contents(job.usual.bundle, job.usual.required) as parts:
        with writing(job.out):
            (job.out / BOARDS).mkdir(parents=True, exist_ok=True)
        reports = {} if job.fresh else {board.name: kept for board in job.fleet.boards if (kept := _read(job, board))}
        if reports:
            progress.note(f"kept from earlier runs: {', '.join(reports)}")
        reports.update(
            _measure_all(job, [each for each in job.fleet.boards if each.name not in reports], parts, progress)
        )
    report = FleetReport(
        bundle=str(job.usual.bundle),
        name=parts.manifest.name,
        target=parts.manifest.target.name,
        out=str(job.out),
        passed=all(each.error is None for each in reports.values()),
        boards=tuple(reports[board.name] for board in job.fleet.boards),
    )
    write_file(job.out / RESULT, _json(report))
    return report


def _measure_all(job: FleetJob, boards: Sequence[Board], parts: Contents, progress: Progress) -> dict[str, BoardReport]:
    """Return the reports of boards by name. Ctrl-C interrupts all of them before it is raised."""
    shared = SharedLimits(Stop(), threading.Semaphore(job.fleet.uploads))
    with ThreadPoolExecutor(job.fleet.at_once) as threads:
        try:
            futures = {board.name: threads.submit(_measure, job, board, parts, shared, progress) for board in boards}
            while wait(futures.values(), _POLL_S).not_done:
                pass
        except BaseException:
            shared.stop.set()
            threads.shutdown(cancel_futures=True)
            raise
    return {name: future.result() for name, future in futures.items()}


def _measure(job: FleetJob, board: Board, parts: Contents, shared: SharedLimits, progress: Progress) -> BoardReport:
    """Measure one board, and keep its result if there is no error."""
    began, when = time.perf_counter(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    result, error = None, None
    try:
        result = install(job.on(board), parts, _BoardProgress(board.name, progress), shared)
    except EdgeKDError as caught:
        error = BoardError(type(caught).__name__, str(caught), caught.what, caught.expected, caught.found, caught.fix)
    except Exception as fault:  # of edgekd itself: the results of the other boards are kept all the same
        what, found = f"{board.device}: a fault of edgekd", first_line(fault)
        error = BoardError(type(fault).__name__, printable(f"{what}: {found}"), what, None, found, "report it")
    seconds = round(time.perf_counter() - began, 3)
    progress.note(f"{board.name}: {'failed' if error else 'done'} after {seconds:.1f} s")
    jetpack = _jetpack(result.device.l4t) if result else None
    report = BoardReport(board.name, board.device, when, seconds, jetpack, error, result, kept=False)
    if result:
        write_file(job.kept(board), _json(report))
    return report


def _read(job: FleetJob, board: Board) -> BoardReport | None:
    """Return the kept result of a board; None if there is none or it cannot be read."""
    with suppress(OSError, ValueError, SpecError):
        report = from_plain(BoardReport, json.loads(job.kept(board).read_text("utf-8")), board.name)
        return replace(report, kept=True)
    return None


def _jetpack(l4t: str | None) -> str | None:
    """Return the JetPack of a release of Jetson Linux; None if either is unknown."""
    return JETPACKS.get(".".join(l4t.split(".")[:2])) if l4t else None


def _json(report: FleetReport | BoardReport) -> bytes:
    return (json.dumps(to_plain(report), indent=2, ensure_ascii=False) + "\n").encode("utf-8")


@dataclass(frozen=True)
class _BoardProgress(SilentProgress):
    """Progress of one board among many: lines with its name."""

    name: str
    progress: Progress

    def note(self, text: str) -> None:
        self.progress.note(f"{self.name}: {text}")

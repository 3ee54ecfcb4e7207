"""The file `progress.json` in a result folder: progress of a long command.

OUT/
  progress.json     replaced at most once a second, when something changed, and at the end
  .progress.lock    held while the command runs; if it is free and the state is still `running`, the command was killed

Nothing is written before the first stage, loop or line, so a refused request writes no file.
"""

from __future__ import annotations

import fcntl
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgekd.builds.stage_store import readable_json
from edgekd.builds.stages.train import Epochs
from edgekd.core.atomic_files import write_file, writing
from edgekd.core.documents import to_plain
from edgekd.core.errors import EdgeKDError, SpecError, first_line, printable
from edgekd.core.json_files import read_document
from edgekd.core.private_files import lock_file
from edgekd.core.progress import Listener, Progress, total_of

T = TypeVar("T")
PROGRESS = "progress.json"
_LOCK = ".progress.lock"
INTERVAL_S = 1.0
"""Seconds between two writes; pages poll every two seconds."""
MAX_LINES = 40
"""Number of last lines that are kept; a build has one for each stage."""
MAX_STAGES = 200
"""Number of last stages that are kept; a build has about 15, a search as many for each trial."""
LOCK_WAIT_S = 1.0
"""Seconds to wait for the lock; a reader that tests it holds it for some microseconds."""

Command = Literal["build", "quantize", "prune", "factorize", "distill", "fleet"]
State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class LoopProgress:
    """A loop that is running.

    Args:
        label: Name of the loop.
        done: Number of items done.
        total: Number of all items; null if it is unknown.
    """

    label: str
    done: int
    total: int | None


@dataclass(frozen=True)
class StageProgress:
    """A finished stage.

    Args:
        name: Name of the stage.
        seconds: Wall time when it ran, now or in an earlier build.
        map50_95: COCO's mAP of the graph; null where the stage scores nothing.
    """

    name: str
    seconds: float
    map50_95: float | None


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """A running or ended command.

    Args:
        command: The command; `build` also with a search, `fleet` for `edgekd engine --fleet`.
        model: File name of the detector, of the student, or of the bundle.
        target: Name of the target; null where there is none, as for a fleet.
        began_at: Start, UTC, ISO 8601.
        changed_at: Last change, UTC, ISO 8601.
        state: `running`, `done`, `failed` by an error, or `stopped` by Ctrl-C. A killed command stays `running`, but
            no process holds the lock beside the file.
        error: The error on one line; null without one.
        loop: The loop that runs; null between loops.
        stages: The stages so far, in the order in which they ended.
        epochs: Mean of each loss in each epoch, by the name of the training.
        lines: The last lines of text that the command reported.
    """

    command: Command
    model: str
    target: str | None
    began_at: str
    changed_at: str
    state: State = "running"
    error: str | None = None
    loop: LoopProgress | None = None
    stages: tuple[StageProgress, ...] = ()
    epochs: Mapping[str, Epochs] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


class RecordedProgress:
    """A progress that is also written into a result folder. If that fails, a note says so and the command continues."""

    def __init__(self, folder: Path, start: RunProgress, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._now = start
        self._changes = threading.Lock()  # each board of a fleet reports from its own thread
        self._ended = threading.Event()
        self._writer: threading.Thread | None = None

    def items(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield items, and record how many are done."""
        total = total_of(iterable, total)
        self._change(partial(replace, loop=LoopProgress(label, 0, total)))
        for done, item in enumerate(self._progress.items(iterable, label, total), start=1):
            yield item
            self._change(partial(replace, loop=LoopProgress(label, done, total)))
        self._change(partial(replace, loop=None))

    def note(self, text: str) -> None:
        """Record a text, and pass it on."""
        lines = tuple(map(printable, text.splitlines()))
        self._change(lambda now: replace(now, lines=(*now.lines, *lines)[-MAX_LINES:]))
        self._progress.note(text)

    def epoch(self, name: str, epoch: int, values: Mapping[str, float]) -> None:
        """Record the losses of an epoch, and pass them on."""
        row = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        self._change(lambda now: replace(now, epochs={**now.epochs, name: (*now.epochs.get(name, ())[:epoch], row)}))
        if isinstance(self._progress, Listener):
            self._progress.epoch(name, epoch, values)

    def stage(self, name: str, results: Mapping[str, Any], seconds: float) -> None:
        """Record a stage, and pass it on."""
        stage = StageProgress(name, round(seconds, 3), results.get("map50_95"))
        losses = {name: tuple(results["losses"])} if results.get("losses") else {}  # with those of an interrupted run
        self._change(
            lambda now: replace(
                now, stages=(*now.stages, stage)[-MAX_STAGES:], epochs={**now.epochs, **losses}, loop=None
            )
        )
        if isinstance(self._progress, Listener):
            self._progress.stage(name, results, seconds)

    def end(self, state: State, error: str | None = None) -> None:
        """Record the end, if anything was recorded before."""
        if self._writer is not None:
            self._change(partial(replace, state=state, error=error, loop=None))
            self._ended.set()
            self._writer.join()

    def _change(self, change: Callable[[RunProgress], RunProgress]) -> None:
        with self._changes:
            self._now = change(self._now)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_changes, daemon=True)
                self._writer.start()

    def _write_changes(self) -> None:
        """Write changes until the end, unless another command records its progress in the folder."""
        try:
            with writing(self._folder):
                lock = lock_file(self._folder / _LOCK, LOCK_WAIT_S)
            if lock is None:
                return
            try:
                self._write_until_end()
            finally:
                os.close(lock)
        except SpecError as error:
            self._progress.note(f"{PROGRESS}: no more progress is kept: {error}")

    def _write_until_end(self) -> None:
        written, ended = None, False
        while not ended:
            ended = self._ended.wait(INTERVAL_S if written else 0)
            if self._now is not written:
                written = self._now
                write_file(self._folder / PROGRESS, readable_json(to_plain(replace(written, changed_at=_utc_now()))))


@contextmanager
def recorded(
    folder: Path, command: Command, model: str, target: str | None, progress: Progress
) -> Iterator[RecordedProgress]:
    """Yield a progress that is also written into a result folder; the end of the block sets the final state."""
    start = RunProgress(command=command, model=model, target=target, began_at=_utc_now(), changed_at=_utc_now())
    recording = RecordedProgress(folder, start, progress)
    try:
        yield recording
    except BaseException as error:
        stopped = not isinstance(error, Exception)
        text = str(error) if isinstance(error, EdgeKDError) else first_line(error)
        recording.end("stopped" if stopped else "failed", None if stopped else text)
        raise
    recording.end("done")


def read_progress(folder: Path) -> RunProgress:
    """Read the progress in a result folder; the state of a killed command is `stopped`. Raises SpecError."""
    found = read_document(RunProgress, folder / PROGRESS)
    if found.state != "running" or _is_locked(folder / _LOCK):
        return found
    return replace(found, state="stopped")


def _is_locked(path: Path) -> bool:
    """Return whether a process holds a lock file; False if it is missing."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

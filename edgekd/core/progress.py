"""Progress of long work: a live line on a terminal, plain lines elsewhere, silence in a library call.

Everything goes to stderr, so that stdout carries results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol, TextIO, TypeVar, runtime_checkable

T = TypeVar("T")


class Progress(Protocol):
    """Receiver of the progress of long-running functions."""

    def items(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items of `iterable`, showing how many are done and the time left."""
        ...

    def note(self, text: str) -> None:
        """Print a line."""
        ...


@runtime_checkable
class Listener(Protocol):
    """Progress that also receives the numbers of trainings and stages."""

    def epoch(self, name: str, epoch: int, values: Mapping[str, float]) -> None:
        """Receive the numbers of one epoch of a training, counted from 0."""
        ...

    def stage(self, name: str, results: Mapping[str, Any], seconds: float) -> None:
        """Receive the result of a stage, done or found in the store, and the time it took when it was done."""
        ...


def tell_stage(progress: Progress, name: str, results: Mapping[str, Any], seconds: float) -> None:
    """Pass the results of a stage to a progress that listens for them."""
    if isinstance(progress, Listener):
        progress.stage(name, results, seconds)


class SilentProgress:
    """Reports nothing: the default of every library function."""

    def items(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        yield from iterable

    def note(self, text: str) -> None:
        pass


SILENT = SilentProgress()


class PlainProgress:
    """One line when a loop begins and one every `interval_s` seconds: for logs and CI."""

    def __init__(self, stream: TextIO | None = None, interval_s: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._interval_s = interval_s

    def items(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        total = total_of(iterable, total)
        began = reported_at = time.monotonic()
        done = 0
        for done, item in enumerate(iterable, start=1):
            yield item
            now = time.monotonic()
            if now - reported_at >= self._interval_s:
                reported_at = now
                self.note(f"{label}: {_count(done, total)}{_left(done, total, now - began)}")
        self.note(f"{label}: {_count(done, total)} in {time.monotonic() - began:.1f} s")

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class RichProgress:
    """A live bar with item count and time left: for people at a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    def items(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        from rich import progress as rich

        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
        )
        with rich.Progress(*columns, console=self._console, transient=True) as bar:
            yield from bar.track(iterable, total=total_of(iterable, total), description=label)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)


def for_stderr() -> Progress:
    """Return a live bar for a terminal on stderr, else plain lines."""
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


def total_of(iterable: Iterable[object], total: int | None) -> int | None:
    """Return the number of items, where it is given or known."""
    if total is None and isinstance(iterable, Sized):
        return len(iterable)
    return total


def _count(done: int, total: int | None) -> str:
    return f"{done}" if total is None else f"{done}/{total}"


def _left(done: int, total: int | None, seconds: float) -> str:
    if total is None or not done:
        return ""
    return f", {seconds / done * (total - done):.0f} s left"

"""Runtimes: an `Engine` says whether it can be used here and opens a `Session` on a graph.

Every engine wraps the errors of its library once, as `DeviceError`; nothing above this folder sees them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.input_files import is_file
from edgekd.graph.model_file import require_safe

if TYPE_CHECKING:
    import numpy as np


S = TypeVar("S", bound="ClosedByWith")


@dataclass(frozen=True)
class Availability:
    """Usability of an engine on this host, the reason, and the one command that adds what is missing."""

    usable: bool
    why: str
    install: str | None = None


class Session(Protocol):
    """A graph with one input and one output, loaded and ready to run. A context manager: leaving it closes it."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        ...

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for `batch` float32 [1, 3, h, w]. Raises DeviceError."""
        ...

    def close(self) -> None:
        """Free what the session holds; running it afterwards is a DeviceError."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ClosedByWith(ABC):
    """The part that all sessions share: leaving the `with` block closes them."""

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Engine(Protocol):
    """One runtime on one kind of processor."""

    @property
    def name(self) -> str:
        """The name users write, such as `onnxruntime-cpu`."""
        ...

    def version(self) -> str | None:
        """The version of the installed library, None when it is not installed."""
        ...

    def available(self) -> Availability:
        """Return whether this engine can be used on this host."""
        ...

    def load(self, graph: Path, *, threads: int | None = None) -> Session:
        """Open the ONNX file `graph`; `threads` None means every usable core. Raises DeviceError."""
        ...

    def load_streams(self, graph: Path, streams: int, *, threads: int | None = None) -> tuple[Session, ...]:
        """Open `graph` for as many frames at once: a session for each, and `threads` for all. Raises DeviceError."""
        ...


class LoadedApart(ABC):
    """The part that most engines share: for several frames at once they open the graph several times."""

    @abstractmethod
    def load(self, graph: Path, *, threads: int | None = None) -> Session:
        """As `Engine.load`."""

    def load_streams(self, graph: Path, streams: int, *, threads: int | None = None) -> tuple[Session, ...]:
        """A session for each stream, with its share of the threads. Raises DeviceError."""
        share = max((threads or usable_cores()) // streams, 1)
        return tuple(self.load(graph, threads=share) for _ in range(streams))


def library_version(*distributions: str) -> str | None:
    """The version of the first of `distributions` that is installed, without importing it; None when none is."""
    from importlib import metadata

    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def import_problem(module: str) -> str | None:
    """Why `module` cannot be imported, on one line; None when it can."""
    import importlib

    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that the package loads by itself
        return " ".join(str(error).split())
    return None


def require(engine: Engine) -> None:
    """Raises DeviceError, with the command that helps, unless `engine` can be used on this host."""
    found = engine.available()
    if not found.usable:
        raise DeviceError(f"{engine.name} cannot be used here: {found.why}", fix=found.install)


def one_of_each(graph: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Refuse a graph that has not exactly one input and one output. Raises DeviceError."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise DeviceError(
            f"{graph.name} cannot be run as a detector",
            expected="one input and one output",
            found=f"inputs {', '.join(inputs) or 'none'} and outputs {', '.join(outputs) or 'none'}",
            fix="export the detector with its head's outputs concatenated into one",
        )


def readable(graph: Path) -> None:
    """Raises DeviceError unless `graph` is a file; of an ONNX file also where no library may read it."""
    if not is_file(graph):
        raise DeviceError(f"{graph} is not there", expected="an ONNX file", fix="check the path")
    if graph.suffix == ".onnx":
        try:
            require_safe(graph)
        except SpecError as error:
            raise DeviceError(error.what, found=error.found, fix=error.fix) from error


def closed(engine: str) -> DeviceError:
    """The error of running a session of `engine` after it was closed."""
    return DeviceError(f"the {engine} session is closed", fix="load the graph again")

"""Runtimes: a `HostRuntime` opens a `Session` on a graph, if its library is installed on this host.

Errors of libraries are wrapped here, once, as `DeviceError`; nothing above this folder sees them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.input_files import is_file
from edgekd.graph.model_file import require_safe

if TYPE_CHECKING:
    import numpy as np

S = TypeVar("S", bound="Session")


@dataclass(frozen=True)
class Availability:
    """State of a runtime on this host: usable or not, the reason, and the command that installs it, if any."""

    usable: bool
    why: str
    install: str | None = None


class Session(ABC):
    """A graph with one input and one output, loaded and ready to run. A context manager: leaving it closes it.

    title: the runtime's name in messages; outputs: names of the graph's outputs; closed: True once it is.
    """

    title: ClassVar[str]
    outputs: tuple[str, ...]
    closed = False

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output for an input as `Preprocess` describes it. Raises DeviceError."""
        if self.closed:
            raise DeviceError(f"the {self.title} session is closed", fix="load the graph again")
        try:
            return self._infer(batch)
        except Exception as error:  # runtimes raise RuntimeError and exceptions of their own side by side
            raise DeviceError(f"{self.title} cannot run the graph on {batch.dtype} {batch.shape}: {error}") from error

    @abstractmethod
    def _infer(self, batch: np.ndarray) -> np.ndarray:
        """Return the output for a batch. May raise any exception, which `run` converts."""

    def close(self) -> None:
        """Free the graph. Afterwards `run` raises DeviceError."""
        self.closed = True

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class HostRuntime(ABC):
    """One runtime on one kind of processor.

    name: as users write it, such as `onnxruntime-cpu`; module: the Python module; distributions: packages with the
    module, of which the first installed one gives the version; install: the command that installs it.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    install: str

    def version(self) -> str | None:
        """Return the version of the installed library, without importing it; None where it is not installed."""
        return library_version(*self.distributions)

    def available(self) -> Availability:
        """Return whether this runtime can be used on this host."""
        problem = import_problem(self.module)
        return Availability(False, problem, self.install) if problem else self._available_once_imported()

    @abstractmethod
    def _available_once_imported(self) -> Availability:
        """Return the availability on a host where the module can be imported."""

    @abstractmethod
    def load(self, graph: Path, *, threads: int | None = None) -> Session:
        """Open the file `graph`; `threads` None means every usable core. Raises DeviceError."""

    def load_streams(self, graph: Path, streams: int, *, threads: int | None = None) -> tuple[Session, ...]:
        """Open a session of `graph` for each parallel stream; `threads` is their total. Raises DeviceError."""
        share = max((threads or usable_cores()) // streams, 1)
        return tuple(self.load(graph, threads=share) for _ in range(streams))


def library_version(*distributions: str) -> str | None:
    """Return the version of the first of `distributions` that is installed, without importing it; None without any."""
    from importlib import metadata

    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def import_problem(module: str) -> str | None:
    """Return why a module cannot be imported, on one line; None where it can."""
    import importlib

    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that the package loads by itself
        return " ".join(str(error).split())
    return None


def require(engine: HostRuntime) -> None:
    """Raise DeviceError, with the installation command, unless a runtime can be used on this host."""
    availability = engine.available()
    if not availability.usable:
        raise DeviceError(f"{engine.name} cannot be used here: {availability.why}", fix=availability.install)


def require_single(graph: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Raise DeviceError for a graph that has not exactly one input and one output."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise DeviceError(
            f"{graph.name} cannot be run as a detector",
            expected="one input and one output",
            found=f"inputs {', '.join(inputs) or 'none'} and outputs {', '.join(outputs) or 'none'}",
            fix="export the detector with its head's outputs concatenated into one",
        )


def require_file(graph: Path) -> None:
    """Raise DeviceError unless `graph` is a file, and if ONNX, one that is safe to read."""
    if not is_file(graph):
        raise DeviceError(f"{graph} is not there", expected="an ONNX file", fix="check the path")
    if graph.suffix == ".onnx":
        try:
            require_safe(graph)
        except SpecError as error:
            raise DeviceError(error.what, found=error.found, fix=error.fix) from error

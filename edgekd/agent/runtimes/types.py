"""Interface to libraries that run networks on the device: a `Runtime` builds an engine, and opens an `EngineSession`.

A runtime wraps the errors of its library once, as `DeviceError`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.state.slots import Slot
    from edgekd.core.detection.types import Preprocess

    Outputs = Mapping[str, np.ndarray]

Source = Literal["graph", "float"]
"""Source of an engine: the graph as it is, with its quantized layers, or the same network without Q/DQ."""
GRAPH: Source = "graph"
FLOAT: Source = "float"

ON_CPU = ("onnxruntime", "openvino")
"""Names of the runtimes that compute on the processor, whatever else the device has."""


class UnsuitedError(DeviceError):
    """The device, or the version of a library, lacks a feature that the runtime needs."""


class BuildFailedError(DeviceError):
    """A builder made no engine. log: its warnings and errors, `W message` or `E message`."""

    def __init__(self, what: str, *, log: Sequence[str] = (), **parts: Any) -> None:
        super().__init__(what, **parts)
        self.log = tuple(log)


class UnimplementedLayerError(BuildFailedError):
    """A builder has no kernel for a layer. node: the builder's name of it, perhaps of several fused nodes."""

    def __init__(self, what: str, *, node: str, **parts: Any) -> None:
        super().__init__(what, **parts)
        self.node = node


@dataclass(frozen=True)
class Layer:
    """One layer of an engine as its runtime reports it.

    precision: such as `int8`, or an activity such as `reformat`; weight_bytes, activation_bytes: of its weights and of
    its outputs; ms: duration, None without a profile.
    """

    name: str
    kind: str
    precision: str
    weight_bytes: int = 0
    activation_bytes: int = 0
    ms: float | None = None


@dataclass(frozen=True)
class Inspection:
    """Raw data on an engine. layers: the inspector's JSON; times_ms: milliseconds of a profiled run, by layer."""

    layers: str
    times_ms: Mapping[str, float]


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    source: GRAPH or FLOAT; memory_bytes: of the device, None where unknown; cache: file with the builder's timings,
    None to keep none; float_layers: names of layers of the graph whose Q/DQ is left out; int8_constants: whether
    weights are passed in INT8, None for the builder's default.
    """

    source: Source = GRAPH
    memory_bytes: int | None = None
    cache: Path | None = None
    float_layers: tuple[str, ...] = ()
    int8_constants: bool | None = None


@dataclass(frozen=True)
class RuntimeDetails:
    """Entries of a runtime's own in the record of an engine: none, or those of a subclass."""


@dataclass(frozen=True)
class TensorRtDetails(RuntimeDetails):
    """Settings of TensorRT's builder. timing_cache: whether it used earlier timings; log: warnings and errors."""

    workspace_bytes: int
    optimization_level: int | None = None
    timing_cache: bool = False
    log: Sequence[str] = ()


@dataclass(frozen=True)
class DlaDetails(TensorRtDetails):
    """The same for a DLA that takes no Q/DQ: layers held in float, and activations without an INT8 scale."""

    held_in_float: Sequence[str] = ()
    missing_scales: Sequence[str] = ()


@dataclass(frozen=True)
class TrtexecDetails(RuntimeDetails):
    """The command that built an engine, the name of the network's input, and the builder's warnings and errors."""

    command: str
    input: str
    workspace_bytes: int
    log: Sequence[str] = ()


@dataclass(frozen=True)
class EngineDescription:
    """A runtime's description of an engine that it has built, for the record beside it.

    precision: `graph` where each layer was requested as in the graph, else `fp16` or `fp32` for all of them; allowed:
    precisions that the builder could choose from, empty where it had no choice. Neither is what it uses. fallbacks:
    layers that an accelerator did not take.
    """

    precision: str
    allowed: Sequence[str] = ()
    fallbacks: Sequence[str] = ()
    details: RuntimeDetails = RuntimeDetails()


class EngineSession(Protocol):
    """An engine, loaded and ready to run."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output for `batch`, an input as `Preprocess` describes it. Raises DeviceError."""
        ...

    def close(self) -> None:
        """Release the resources of the session."""
        ...

    def scratch_bytes(self) -> int | None:
        """Return the memory for inner tensors; None where the runtime does not report it."""
        ...


class FrameSession(EngineSession, Protocol):
    """A session whose device prepares frames, too."""

    def run_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return the output for frames as `letterbox` takes them, of the network's input format. Raises DeviceError."""
        ...


def noise(shape: Sequence[int], kind: Any) -> np.ndarray:
    """Return an input of noise, the same each time: floats from 0 to 1, or bytes."""
    import numpy as np

    values = np.random.RandomState(0).random_sample(tuple(shape))
    return (values * 255).astype(kind) if np.dtype(kind) == np.uint8 else values.astype(kind)


class LibrarySession:
    """A graph with one input and one output, run by a function of a library. title: of the library, for errors."""

    def __init__(self, title: str, infer: Callable[[np.ndarray], np.ndarray]) -> None:
        self._title = title
        self._infer: Callable[[np.ndarray], np.ndarray] | None = infer

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._infer is None:
            raise DeviceError(f"the {self._title} session is closed", fix="load the engine again")
        try:
            return self._infer(batch)
        except Exception as error:  # the exceptions of these libraries have no common base class
            what = f"{self._title} cannot run the engine on {batch.dtype} {batch.shape}: {error}"
            raise DeviceError(what) from error

    def scratch_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self._infer = None


class Runtime(ABC):
    """One library that runs networks, in one generation of its interface.

    name: for `--runtime`; batches: whether its engines take several frames at once, where the network does.
    """

    name: str
    batches = True

    @abstractmethod
    def version(self) -> str:
        """Return the version of the library, which an engine depends on. Raises DeviceError."""

    @abstractmethod
    def problem(self) -> str | None:
        """Return why it cannot be used here, None where it can, without importing the library."""

    @abstractmethod
    def build(self, slot: Slot, engine: Path, options: BuildOptions) -> EngineDescription:
        """Write an engine for the slot's graph to `engine`. Raises DeviceError."""

    @abstractmethod
    def load(self, engine: Path) -> EngineSession:
        """Open an engine that `build` wrote on this device. Raises DeviceError."""

    def frame_session(self, session: EngineSession, preprocess: Preprocess) -> FrameSession | None:
        """Return a session of this runtime with the letterbox on its device; None where the host prepares frames.

        Raises DeviceError once it is closed.
        """
        return None

    @abstractmethod
    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """Return the layers that an engine computes; None where the runtime reports none. Raises DeviceError."""

    def inspect(self, engine: Path) -> Inspection | None:
        """Return the raw data behind `layers`; None where the runtime has no engine inspector. Raises DeviceError."""
        return None

    def times(self, engine: Path, iterations: int, seconds: float) -> Sequence[float] | None:
        """Return seconds of each run, by the runtime's own clock, for at least so many runs and so long.

        None where it has none: its sessions are timed instead. Raises DeviceError.
        """
        return None

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """Return all outputs of a network for each batch, from an engine made for this alone, with less fusion.

        quantized: whether it has Q/DQ. None where the runtime cannot. Raises DeviceError.
        """
        return None

    def clock(self) -> float:
        """Return seconds since a fixed time: the clock for timing sessions."""
        return time.perf_counter()

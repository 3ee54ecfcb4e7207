"""The seam to whatever runs a network on the device: a `Runtime` builds an engine, and opens a `Session` on it.

A runtime wraps the errors of its library once, as `DeviceError`; nothing above this folder sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.slots import Slot

    Outputs = Mapping[str, np.ndarray]

GRAPH, FLOAT = "graph", "float"
"""What an engine is built from: the graph as it is, quantized layers and all, or the same network without Q/DQ."""

ON_CPU = ("onnxruntime", "openvino")
"""Names of the runtimes that compute on the processor, whatever else the device has."""


class UnsuitedError(DeviceError):
    """This device, or this version of a library, does not have what a runtime needs."""


class BuildFailedError(DeviceError):
    """A builder made no engine. log: its warnings and errors, `W message` or `E message`."""

    def __init__(self, what: str, *, log: Sequence[str] = (), **parts: Any) -> None:
        super().__init__(what, **parts)
        self.log = tuple(log)


class UnimplementedLayerError(BuildFailedError):
    """A builder has no kernel for a layer. node: its name of it, which may be that of several nodes fused into one."""

    def __init__(self, what: str, *, node: str, **parts: Any) -> None:
        super().__init__(what, **parts)
        self.node = node


@dataclass(frozen=True)
class Layer:
    """One layer of an engine as its runtime reports it.

    precision: what it computes in, such as `int8`, or what it does instead, such as `reformat`; weight_bytes,
    activation_bytes: of its weights, and of what it writes; ms: what it takes, None where that was not looked at.
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
class Wish:
    """How an engine is to be built.

    source: GRAPH or FLOAT; memory_bytes: of the device, None where it is not known; cache: a file in which a builder
    keeps what makes it faster the next time, None where nothing may be kept; float_layers: names of layers of the graph
    whose Q/DQ is to be left out; int8_constants: whether weights are given in INT8, None for what the builder takes.
    """

    source: str = GRAPH
    memory_bytes: int | None = None
    cache: Path | None = None
    float_layers: tuple[str, ...] = ()
    int8_constants: bool | None = None


AS_THE_GRAPH = Wish()


@dataclass(frozen=True)
class Made:
    """What a runtime says of an engine that it has built, for the record beside it.

    precision: `graph` where each layer was asked for as the graph has it, else `fp16` or `fp32`, asked for all of them;
    allowed: the precisions that the builder could choose from, empty where it had no choice. Neither says what it used.
    fallbacks: layers that an accelerator did not take; more: whatever else, as plain JSON types.
    """

    precision: str
    allowed: Sequence[str] = ()
    fallbacks: Sequence[str] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """An engine, loaded and ready to run."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for `batch` float32 [1, 3, h, w]. Raises DeviceError."""
        ...

    def close(self) -> None:
        """Free what the session holds."""
        ...

    def scratch_bytes(self) -> int | None:
        """Memory for inner tensors; None where the runtime does not say."""
        ...


class Runtime(Protocol):
    """One library that runs networks, in one generation of its interface."""

    @property
    def name(self) -> str:
        """What `--runtime` calls it."""
        ...

    def version(self) -> str:
        """The version of the library: an engine belongs to it."""
        ...

    def problem(self) -> str | None:
        """Why it cannot be used here; None where it can. Asking is cheap: it does not import the library."""
        ...

    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        """Write an engine for the slot's graph to `engine`. Raises DeviceError."""
        ...

    def load(self, engine: Path) -> Session:
        """Open an engine that `build` wrote here. Raises DeviceError."""
        ...

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """What the engine really computes, layer by layer; None where the runtime does not say. Raises DeviceError."""
        ...

    def inspect(self, engine: Path) -> Inspection | None:
        """Return the raw data that `layers` reads; None where the runtime has none. Raises DeviceError."""
        ...

    def times(self, engine: Path, iterations: int, seconds: float) -> Sequence[float] | None:
        """Seconds of each run, at least so many and so long, by the runtime's own watch. Raises DeviceError.

        None where it has none, and sessions are timed instead.
        """
        ...

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> list[Outputs] | None:
        """All that a network of several outputs gives for each batch, from an engine made for this alone.

        quantized: whether it has Q/DQ. None where the runtime has no way to. Raises DeviceError.
        """
        ...

    def clock(self) -> float:
        """Seconds, from any fixed beginning: what its sessions are timed with."""
        ...

"""The seam to whatever runs a network on the device: a `Runtime` builds an engine, and opens a `Session` on it.

A runtime wraps the errors of its library once, as `DeviceError`; nothing above this folder sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.slots import Slot


@dataclass(frozen=True)
class Layer:
    """One layer of an engine as its runtime reports it: precision is what it computes in, such as `int8`."""

    name: str
    kind: str
    precision: str


class Session(Protocol):
    """An engine, loaded and ready to run."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for `batch` float32 [1, 3, h, w]. Raises DeviceError."""
        ...

    def close(self) -> None:
        """Free what the session holds."""
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

    def build(self, slot: Slot, engine: Path) -> None:
        """Write an engine for the slot's graph to `engine`. Raises DeviceError."""
        ...

    def load(self, engine: Path) -> Session:
        """Open an engine that `build` wrote here. Raises DeviceError."""
        ...

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """What the engine really computes, layer by layer; None where the runtime does not say. Raises DeviceError."""
        ...

    def clock(self) -> float:
        """Seconds, from any fixed beginning: what its sessions are timed with."""
        ...

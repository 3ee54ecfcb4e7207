"""Measurements of a device itself, of whole networks and of layers, in a TOML file.

```toml
target = "xavier"
precision = "int8"
measured = "trtexec 8.5.2, MAXN, clocks locked, median of the GPU compute time"

[[networks]]
graph = "yolo11n.int8.onnx"   # beside this file
latency_ms = 4.1

[[layers]]                    # the work of a layer, for one frame, and its time
kind = "conv"
positions = 6400
inputs = 64
outputs = 64
kernel = 9
weights = 36864
read = 409600
written = 409600
us = 31.5
```
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.core.toml import non_default, parse_table, read_toml, toml_text
from edgekd.hardware.predict.device import PredictedPrecision
from edgekd.hardware.predict.work import Work
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class MeasuredNetwork:
    """An ONNX graph and its milliseconds for one frame."""

    graph: str
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class MeasuredLayer(Work):
    """The work of a layer, and its microseconds for one frame."""

    name: str = ""
    us: float

    @property
    def work(self) -> Work:
        """The work alone, without a name."""
        return Work("", *(getattr(self, entry.name) for entry in fields(Work)[1:]))


@dataclass(frozen=True)
class MeasuredTable:
    """Measurements of one device in one precision. measured: How they were taken."""

    target: str
    precision: PredictedPrecision
    measured: str
    networks: tuple[MeasuredNetwork, ...] = ()
    layers: tuple[MeasuredLayer, ...] = ()


@dataclass(frozen=True)
class TableFile:
    """A table and the path of its file; the graphs of its networks are in the same folder."""

    path: Path
    table: MeasuredTable


def table_toml(table: MeasuredTable) -> str:
    """Return the table as `load_table` reads it."""
    return toml_text(non_default(table))


def load_table(path: Path, target: Target) -> MeasuredTable:
    """Return the table in a file. Raises SpecError for an invalid table, no measurements, or another target."""
    table: MeasuredTable = parse_table(MeasuredTable, read_toml(path), str(path))
    if table.target != target.name:
        raise SpecError(f"{path}: measured on another target", expected=target.name, found=table.target)
    times = [network.latency_ms for network in table.networks] + [layer.us for layer in table.layers]
    if not times or min(times) <= 0:
        found = "none" if not times else f"{min(times):g}"
        raise SpecError(f"{path}: no measurements", expected="networks or layers, with times above 0", found=found)
    return table

"""What was measured on a device itself: times of whole networks, and of layers, in a TOML file.

```toml
target = "xavier"
precision = "int8"
measured = "trtexec 8.5.2, MAXN, clocks locked, median of the GPU compute time"

[[networks]]
graph = "yolo11n.int8.onnx"   # beside this file
latency_ms = 4.1

[[layers]]                    # what a layer does, for one frame, and how long it took
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

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from edgekd.core.errors import SpecError
from edgekd.core.toml import parse_table, read_toml
from edgekd.hardware.predict.device import Precision
from edgekd.hardware.predict.work import Kind, Work
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class MeasuredNetwork:
    """An ONNX graph and the milliseconds that it took for one frame."""

    graph: str
    latency_ms: float


@dataclass(frozen=True)
class MeasuredLayer:
    """What a layer does, as in `Work`, and the microseconds that it took for one frame."""

    us: float
    kind: Kind
    positions: int = 0
    inputs: int = 0
    outputs: int = 0
    kernel: int = 1
    groups: int = 1
    weights: int = 0
    read: int = 0
    written: int = 0
    plugin: bool = False

    @property
    def work(self) -> Work:
        """The work, without a name."""
        values = {field.name: getattr(self, field.name) for field in fields(Work) if field.name != "name"}
        return Work("", **values)


@dataclass(frozen=True)
class MeasuredTable:
    """Measurements of one device in one precision; `measured` says how they were taken."""

    target: str
    precision: Precision
    measured: str
    networks: tuple[MeasuredNetwork, ...] = ()
    layers: tuple[MeasuredLayer, ...] = ()


@dataclass(frozen=True)
class TableFile:
    """A table with the path of its file, beside which the graphs of its networks lie."""

    path: Path
    table: MeasuredTable


def table_toml(table: MeasuredTable) -> str:
    """The table as `load_table` reads it."""
    lines = [f"{key} = {_value(getattr(table, key))}" for key in ("target", "precision", "measured")]
    for key in ("networks", "layers"):
        for entry in getattr(table, key):
            lines += ["", f"[[{key}]]", *_entries(entry)]
    return "\n".join(lines) + "\n"


def _entries(entry: MeasuredNetwork | MeasuredLayer) -> Iterator[str]:
    """A line for each value that is not the usual one."""
    for field in fields(entry):
        value = getattr(entry, field.name)
        if field.default is MISSING or value != field.default:
            yield f"{field.name} = {_value(value)}"


def _value(value: str | float | bool) -> str:
    """A value in TOML, which writes strings, numbers and booleans as JSON does but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def load_table(path: Path, target: Target) -> MeasuredTable:
    """The table in a file. Raises SpecError: no such table, nothing in it, or one of another target."""
    table: MeasuredTable = parse_table(MeasuredTable, read_toml(path), str(path))
    if table.target != target.name:
        raise SpecError(f"{path}: measured on another target", expected=target.name, found=table.target)
    times = [network.latency_ms for network in table.networks] + [layer.us for layer in table.layers]
    if not times or min(times) <= 0:
        found = "none" if not times else f"{min(times):g}"
        raise SpecError(f"{path}: no measurements", expected="networks or layers, with times above 0", found=found)
    return table

"""The forms of a slot's network that builders want: as it is, in float, or in float with its scales beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.errors import DeviceError
from edgekd.formats.onnx_bytes import FLOAT16, initializers, inputs

if TYPE_CHECKING:
    from edgekd.agent.slots import Slot
    from edgekd.formats.plain_graph import PlainGraph

CACHE = "calibration-cache"  # the role of the file with the scales of tensors


@dataclass(frozen=True)
class Scaled:
    """A network without Q/DQ, the scales of its tensors by name, and the names of the layers that are to stay float."""

    onnx: bytes
    scales: Mapping[str, float]
    float_layers: tuple[str, ...]


def quantized(graph: Path) -> bool:
    """Whether a graph has INT8 layers: whether Q/DQ is in it. Raises DeviceError where it cannot be read."""
    return bool(taken_apart(graph).scales)


def float_graph(graph: Path) -> bytes:
    """The same network without Q/DQ. Raises DeviceError."""
    return taken_apart(graph).onnx


def input_name(graph: Path) -> str:
    """What the network calls its input. Raises DeviceError."""
    try:
        return inputs(graph.read_bytes())[0]
    except (OSError, IndexError, ValueError) as error:
        raise DeviceError(f"{graph}: no input", found=str(error), fix="unpack the bundle again") from error


def float_kind(onnx: bytes) -> str:
    """`fp16` where the weights of a float network are of 16 bits, else `fp32`. Raises ValueError."""
    return "fp16" if any(each.data_type == FLOAT16 for each in initializers(onnx)) else "fp32"


def scaled(slot: Slot) -> Scaled:
    """The network without Q/DQ and its scales: the bundle's, which has more of them, over the graph's own.

    Raises DeviceError where the network is not quantized, or the bundle's scales cannot be read.
    """
    from edgekd.formats.calibration_cache import from_text

    plain = taken_apart(slot.graph)
    if not plain.scales:
        raise DeviceError(f"slot {slot.name}: the network is not quantized", fix="build the bundle with INT8 layers")
    file = slot.file(CACHE)
    try:
        more = from_text(file.read_text("utf-8")) if file else {}
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"{file}: cannot be read as scales", found=str(error), fix="unpack the bundle again"
        ) from error
    return Scaled(plain.onnx, {**plain.scales, **more}, plain.float_layers)


def taken_apart(graph: Path) -> PlainGraph:
    """The network in float, its scales and its float layers. Raises DeviceError."""
    from edgekd.formats.plain_graph import plain_graph

    try:
        return plain_graph(graph.read_bytes())
    except (OSError, ValueError) as error:
        raise DeviceError(f"{graph}: cannot be taken apart", found=str(error), fix="unpack the bundle again") from error

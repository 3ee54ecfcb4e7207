"""ONNX files of a slot's network for builders: as shipped, with FP32 weights, in float, or for the DLA.

A form other than the slot's own file is written beside the engine, one weight at a time, and removed after the build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import PROT_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from edgekd.agent.runtimes.types import FLOAT, BuildOptions
from edgekd.agent.state.slots import Slot, require_room
from edgekd.core.atomic_files import writing
from edgekd.core.errors import DeviceError
from edgekd.core.formats.activations import missing_scales
from edgekd.core.formats.calibration_cache import from_text
from edgekd.core.formats.onnx_bytes import FLOAT16, float32_nodes, initializers, inputs

if TYPE_CHECKING:
    from edgekd.core.formats.plain_graph import PlainGraph
    from edgekd.core.formats.qdq_graph import QdqGraph, StreamedFile

CACHE = "calibration-cache"  # role of the bundle's file with scales of tensors


@dataclass(frozen=True)
class Network:
    """An ONNX file for a builder.

    quantized: whether it has Q/DQ; float_type: `fp16` where it has float weights of 16 bits, else `fp32`.
    """

    path: Path
    quantized: bool
    float_type: str


@dataclass(frozen=True)
class CalibratedNetwork:
    """A network without Q/DQ for the DLA.

    path: its ONNX file; scales: of its activations by name; missing_scales: names of activations without one, whose
    layers run in FP16; float_outputs: names of the tensors whose layers stay float.
    """

    path: Path
    scales: Mapping[str, float]
    missing_scales: tuple[str, ...]
    float_outputs: tuple[str, ...]


@contextmanager
def scratch_folder(engine: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the engine, on the disk that has the room for it."""
    with TemporaryDirectory(prefix="edgekd-", dir=engine.parent) as folder:
        yield Path(folder)


def network(slot: Slot, options: BuildOptions, folder: Path, *, int8_constants: bool) -> Network:
    """Write the network in the requested form into `folder`, unless that is the slot's own file.

    int8_constants: whether the builder takes weights in INT8; the options override it. Raises DeviceError where the
    graph cannot be read, or there is no room.
    """
    keep = int8_constants if options.int8_constants is None else options.int8_constants
    plain = options.source == FLOAT
    with opened(slot.graph) as graph:
        has_pairs = bool(graph.scales())
        if not has_pairs or (not plain and not options.float_layers and keep):
            return Network(slot.graph, has_pairs, float_type(slot.graph))
        file = graph.without_qdq() if plain else graph.form(options.float_layers, int8_constants=keep)
        path = _written(file, folder)
    return Network(path, file.quantized, float_type(path))


def calibrated_network(slot: Slot, options: BuildOptions, folder: Path) -> CalibratedNetwork:
    """Write the network without Q/DQ into `folder`. Scales of the bundle's cache take precedence over the graph's.

    Raises DeviceError where the bundle's scales cannot be read, or there is no room.
    """
    from edgekd.core.formats.plain_graph import remove_qdq

    cache = slot.file(CACHE)
    try:
        cached = from_text(cache.read_text("utf-8")) if cache else {}
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"{cache}: cannot be read as scales", found=str(error), fix="unpack the bundle again"
        ) from error
    with opened(slot.graph) as graph:
        plain = remove_qdq(graph)
        path, scales = _written(plain.file, folder), {**plain.scales, **cached}
        requested = (node.outputs for node in graph.nodes if node.name in options.float_layers)
        float_outputs = (*plain.float_outputs, *(name for outputs in requested for name in outputs))
    with _mapped(path) as onnx, _as_device_error(path):
        return CalibratedNetwork(path, scales, missing_scales(onnx, scales), float_outputs)


def float32_layers(graph: Path) -> dict[str, tuple[str, ...]]:
    """Return the nodes of a graph that must compute in float32, with their outputs. Raises DeviceError."""
    with opened(graph) as content:
        names = float32_nodes(content.onnx)
        return {node.name: node.outputs for node in content.nodes if node.name in names}


def inner_network(onnx: bytes, folder: Path, *, int8_constants: bool) -> Path:
    """Write a network in memory into `folder`, with its weights in the form for the builder. Raises DeviceError."""
    from edgekd.core.formats.qdq_graph import QdqGraph

    with _as_device_error(Path("the network with its inner tensors")):
        return _written(QdqGraph(onnx).form(int8_constants=int8_constants), folder)


def quantized(graph: Path) -> bool:
    """Return whether a graph has Q/DQ. Raises DeviceError where it cannot be read."""
    with opened(graph) as content:
        return bool(content.scales())


def input_name(graph: Path) -> str:
    """Return the name of the network's input. Raises DeviceError."""
    try:
        return inputs(graph.read_bytes())[0]
    except (OSError, IndexError, ValueError) as error:
        raise DeviceError(f"{graph}: no input", found=str(error), fix="unpack the bundle again") from error


def float_type(graph: Path) -> str:
    """Return `fp16` where a network has float weights of 16 bits, else `fp32`. Raises DeviceError."""
    with _mapped(graph) as onnx, _as_device_error(graph):
        return "fp16" if any(each.data_type == FLOAT16 for each in initializers(onnx)) else "fp32"


def float_network(graph: Path) -> PlainGraph:
    """Return the network in float, its scales and its float layers. Raises DeviceError."""
    from edgekd.core.formats.plain_graph import plain_graph

    with _as_device_error(graph):
        return plain_graph(graph.read_bytes())


@contextmanager
def opened(graph: Path) -> Iterator[QdqGraph]:
    """Open the graph in a file, without reading all of it into memory. Raises DeviceError."""
    from edgekd.core.formats.qdq_graph import QdqGraph

    with _mapped(graph) as onnx, _as_device_error(graph):
        yield QdqGraph(onnx)


@contextmanager
def _mapped(path: Path) -> Iterator[bytes]:
    """Map a file into memory. Raises DeviceError."""
    with _as_device_error(path), path.open("rb") as stream:
        content = mmap(stream.fileno(), 0, prot=PROT_READ)  # outlives the stream
    with content:
        yield cast("bytes", content)  # its readers only index and slice


def _written(file: StreamedFile, folder: Path) -> Path:
    """Write the file into `folder`. Raises DeviceError where there is no room, SpecError, ValueError."""
    require_room(folder, {"the network in the form that the builder takes": file.length})
    path = folder / "graph.onnx"
    with writing(path), path.open("wb") as stream:
        file.write(stream)
    return path


@contextmanager
def _as_device_error(graph: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DeviceError(f"{graph}: cannot be taken apart", found=str(error), fix="unpack the bundle again") from error
    except OSError as error:
        raise DeviceError(f"{graph}: cannot be read", found=error.strerror, fix="unpack the bundle again") from error

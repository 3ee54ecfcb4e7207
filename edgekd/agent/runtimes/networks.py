"""The forms of a slot's network that builders take, each as a file: as it is, with FP32 weights, in float, for the DLA.

A form that is not the slot's own file is written beside the engine that is being built, one weight at a time, and
removed when the builder is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekd.agent.runtimes.types import FLOAT, Wish
from edgekd.core.atomic_files import writing
from edgekd.core.errors import DeviceError
from edgekd.core.formats.onnx_bytes import FLOAT16, initializers, inputs

if TYPE_CHECKING:
    from edgekd.agent.slots import Slot
    from edgekd.core.formats.plain_graph import PlainGraph
    from edgekd.core.formats.qdq_graph import QdqGraph, StreamedFile

CACHE = "calibration-cache"  # the role of the file with the scales of tensors


@dataclass(frozen=True)
class Network:
    """An ONNX file for a builder.

    quantized: whether Q/DQ is in it; float_type: `fp16` where it has float weights of 16 bits, else `fp32`.
    """

    path: Path
    quantized: bool
    float_type: str


@dataclass(frozen=True)
class CalibratedNetwork:
    """A network without Q/DQ for the DLA.

    path: its ONNX file; scales: of its activations by name; missing_scales: names of activations without one, next to
    which layers run in FP16; float_outputs: names of the tensors whose layers are to stay float.
    """

    path: Path
    scales: Mapping[str, float]
    missing_scales: tuple[str, ...]
    float_outputs: tuple[str, ...]


@contextmanager
def scratch_folder(engine: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the engine that is being built: on its disk, which has the room for it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="edgekd-", dir=engine.parent) as folder:
        yield Path(folder)


def network(slot: Slot, wish: Wish, folder: Path, *, int8_constants: bool) -> Network:
    """Write the network in the form that is asked for into `folder`, unless that is the slot's own file.

    int8_constants: whether the builder takes weights in INT8, unless the request says it. Raises DeviceError where the
    graph cannot be read, or there is no room.
    """
    keep = int8_constants if wish.int8_constants is None else wish.int8_constants
    with opened(slot.graph) as graph:
        has_pairs = bool(graph.scales())
        if not has_pairs or (wish.source != FLOAT and not wish.float_layers and keep):
            return Network(slot.graph, has_pairs, float_type(slot.graph))
        plain = wish.source == FLOAT
        file = graph.without_qdq() if plain else graph.form(wish.float_layers, int8_constants=keep)
        path = _written(file, folder)
    return Network(path, file.quantized, float_type(path))


def calibrated_network(slot: Slot, wish: Wish, folder: Path) -> CalibratedNetwork:
    """Write the network without Q/DQ into `folder`; its scales are the bundle's, which has more, over the graph's own.

    Raises DeviceError where the bundle's scales cannot be read, or there is no room.
    """
    from edgekd.core.formats.activations import missing_scales
    from edgekd.core.formats.calibration_cache import from_text
    from edgekd.core.formats.plain_graph import plain_graph
    from edgekd.core.formats.qdq_graph import QdqGraph

    cache = slot.file(CACHE)
    try:
        more = from_text(cache.read_text("utf-8")) if cache else {}
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"{cache}: cannot be read as scales", found=str(error), fix="unpack the bundle again"
        ) from error
    with _mapped(slot.graph) as onnx, _as_device_error(slot.graph):
        plain = plain_graph(onnx)
        path, scales = _written(plain.file, folder), {**plain.scales, **more}
        asked = (node.outputs for node in QdqGraph(onnx).nodes if node.name in wish.float_layers)
        float_outputs = (*plain.float_outputs, *(name for outputs in asked for name in outputs))
    with _mapped(path) as onnx, _as_device_error(path):
        return CalibratedNetwork(path, scales, missing_scales(onnx, scales), float_outputs)


def inner_network(onnx: bytes, folder: Path, *, int8_constants: bool) -> Path:
    """Write a network that is in memory into `folder`, with its weights in the form that the builder takes.

    Raises DeviceError.
    """
    from edgekd.core.formats.qdq_graph import QdqGraph

    with _as_device_error(Path("the network with its inner tensors")):
        return _written(QdqGraph(onnx).form(int8_constants=int8_constants), folder)


def quantized(graph: Path) -> bool:
    """Return whether Q/DQ is in a graph. Raises DeviceError where it cannot be read."""
    with opened(graph) as found:
        return bool(found.scales())


def input_name(graph: Path) -> str:
    """Return the name of the network's input. Raises DeviceError."""
    try:
        return inputs(graph.read_bytes())[0]
    except (OSError, IndexError, ValueError) as error:
        raise DeviceError(f"{graph}: no input", found=str(error), fix="unpack the bundle again") from error


def float_type(graph: Path) -> str:
    """`fp16` where a network has weights of 16 bits, else `fp32`. Raises DeviceError."""
    with _mapped(graph) as onnx, _as_device_error(graph):
        return "fp16" if any(each.data_type == FLOAT16 for each in initializers(onnx)) else "fp32"


def taken_apart(graph: Path) -> PlainGraph:
    """The network in float, its scales and its float layers. Raises DeviceError."""
    from edgekd.core.formats.plain_graph import plain_graph

    with _as_device_error(graph):
        return plain_graph(graph.read_bytes())


@contextmanager
def opened(graph: Path) -> Iterator[QdqGraph]:
    """The graph in a file, which is not read into memory as a whole. Raises DeviceError."""
    from edgekd.core.formats.qdq_graph import QdqGraph

    with _mapped(graph) as onnx, _as_device_error(graph):
        yield QdqGraph(onnx)


@contextmanager
def _mapped(path: Path) -> Iterator[bytes]:
    """A file's bytes, of which the system keeps in memory what is in use. Raises DeviceError."""
    from mmap import PROT_READ, mmap

    with _as_device_error(path), path.open("rb") as stream:
        content = mmap(stream.fileno(), 0, prot=PROT_READ)  # outlives the stream
    with content:
        yield cast("bytes", content)  # indexing and slicing are all that is done with it


def _written(file: StreamedFile, folder: Path) -> Path:
    """Write a file with this content. Raises DeviceError where there is no room, SpecError, ValueError."""
    from edgekd.agent.slots import require_room

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

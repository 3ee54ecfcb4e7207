"""ncnn, by way of pnnx: `model.ncnn.param` and `model.ncnn.bin`.

pnnx knows no Q/DQ. It gets the network in floating point, and INT8 is put back into what it wrote: each convolution is
known by its weights, which pnnx leaves as they are, and takes the codes and scales that it has in the ONNX graph.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.errors import DeviceError, SpecError
from edgekd.deploy.converters.ncnn_model import Layer, in_int8, parse, written
from edgekd.deploy.converters.source import require_float32, without_int8
from edgekd.deploy.converters.strided import without_strided_slices
from edgekd.deploy.converters.types import Asked, FormatName, Made, QuantizedLayer, Source
from edgekd.graph.runtimes.ncnn import NCNN_CPU, Ncnn, unknown_layers
from edgekd.graph.runtimes.types import require

STEM = "model.ncnn"
_TIMEOUT_S = 900
_UNCHANGED = "convert with --precision fp32, which takes INT8 out"


@dataclass(frozen=True)
class NcnnFiles:
    """A folder as Ultralytics names it. INT8 of convolutions is carried; products stay in floating point."""

    name: FormatName = "ncnn"
    suffix: str = "_ncnn_model"
    single_file: bool = False
    engine: Ncnn = NCNN_CPU
    libraries: tuple[str, ...] = ("pnnx", "ncnn")

    def require(self) -> None:
        """Raises DeviceError unless pnnx, which converts, and ncnn, which says what layers there are, are installed."""
        require(NCNN_CPU)
        _pnnx()

    def convert(self, source: Source, folder: Path, name: str, asked: Asked) -> Made:
        """Write the two files; `fp16` stores in float16 what is not INT8. Raises as `Format`."""
        require_float32(source, "an ncnn network")
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            plain = without_int8(source, Path(scratch) / "plain.onnx") if source.layers else source
            graph = Path(scratch) / "m.onnx"
            without_strided_slices(plain.graph, graph)
            param, weights = _converted(graph, source)
        layers, carried = _quantized(param, weights, source)
        param, weights = written(layers, asked.precision == "fp16")
        (folder / f"{STEM}.param").write_text(param, "ascii")
        (folder / f"{STEM}.bin").write_bytes(weights)
        lost = len(source.layers) - carried
        notes = (f"{lost} INT8 layers compute in float: ncnn has INT8 for convolutions alone",) if lost else ()
        return Made(f"{STEM}.param", carried, notes=notes)


NCNN = NcnnFiles()


def _pnnx() -> Path:
    """pnnx's program, found without importing the package, which would import PyTorch. Raises DeviceError."""
    found = find_spec("pnnx")
    places = [Path(place) / "pnnx" for place in (found.submodule_search_locations or ())] if found else []
    program = next((place for place in places if place.is_file()), None)
    if program is None:
        raise DeviceError("pnnx, which writes ncnn's files, is not here", fix="pip install pnnx ncnn")
    return program


def _converted(graph: Path, source: Source) -> tuple[str, bytes]:
    """Convert a float graph with pnnx to its two files. Raises DeviceError."""
    command: Sequence[str | Path] = (_pnnx(), graph.name, "fp16=0")
    try:
        done = subprocess.run(
            command, cwd=graph.parent, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"pnnx cannot convert {source.graph.name}", found=str(error)[:200]) from error
    param, weights = (graph.with_name(f"{graph.stem}.ncnn.{suffix}") for suffix in ("param", "bin"))
    if done.returncode or not (param.is_file() and weights.is_file()):
        said = (done.stderr + done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise DeviceError(
            f"pnnx cannot convert {source.graph.name}",
            found=f"exit code {done.returncode}: {said[-1][:200] if said else 'it said nothing'}",
            fix="convert to another format, or report it to pnnx with the graph",
        )
    return param.read_text("utf-8"), weights.read_bytes()


def _quantized(param: str, weights: bytes, source: Source) -> tuple[tuple[Layer, ...], int]:
    """The layers that pnnx wrote, those in INT8 that are so in the source, and how many. Raises DeviceError."""
    try:
        layers = parse(param, weights)
    except ValueError as error:
        raise DeviceError(
            f"{source.graph.name}: what pnnx wrote cannot be read", found=str(error), fix="convert to another format"
        ) from error
    if missing := unknown_layers({layer.kind for layer in layers}):
        raise DeviceError(
            f"{source.graph.name}: ncnn has no layer for part of it",
            found=", ".join(missing),
            fix="convert to another format, or export the model without them",
        )
    known = _by_weights(source)
    found = [_in_int8(layer, known) for layer in layers]
    return tuple(found), sum(new is not old for new, old in zip(found, layers, strict=True))


def _by_weights(source: Source) -> dict[bytes, QuantizedLayer]:
    """The INT8 convolutions by the float32 bytes of their weights. Raises SpecError where two have the same."""
    found: dict[bytes, QuantizedLayer] = {}
    for layer in source.layers:
        if layer.operator != "Conv":
            continue
        other = found.setdefault(_weights(layer), layer)
        if other.input_scale != layer.input_scale:
            raise SpecError(
                f"{source.graph.name}: INT8 cannot be carried over to ncnn",
                found=f"{other.name} and {layer.name} have the same weights and other scales",
                fix=_UNCHANGED,
            )
    return found


def _weights(layer: QuantizedLayer) -> bytes:
    """Return the values of the codes, as `core.formats.plain_graph` computes them."""
    sides = (-1, *[1] * (layer.codes.ndim - 1)) if layer.scales.size > 1 else ()
    values: Any = layer.codes.astype(np.float32) * layer.scales.reshape(sides)
    return bytes(values.astype("<f4").tobytes())


def _in_int8(layer: Layer, known: dict[bytes, QuantizedLayer]) -> Layer:
    wanted = known.get(layer.weights[0].astype("<f4").tobytes()) if layer.weights and layer.tagged else None
    if wanted is None:
        return layer
    return in_int8(layer, wanted.codes, wanted.scales, wanted.input_scale) or layer

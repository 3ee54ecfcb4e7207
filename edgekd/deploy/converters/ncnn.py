"""ncnn, by way of pnnx: `model.ncnn.param` and `model.ncnn.bin`, in a folder as Ultralytics names it.

pnnx does not support Q/DQ. It converts the network in floating point, and INT8 is restored afterwards: each convolution
is identified by its weights, which pnnx does not change, and gets its codes and scales of the ONNX graph.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.errors import DeviceError, SpecError
from edgekd.deploy.converters.ncnn_model import NcnnLayer, parse, serialize, with_int8
from edgekd.deploy.converters.source import require_float32, without_int8
from edgekd.deploy.converters.strided import without_strided_slices
from edgekd.deploy.converters.types import ConversionRequest, ConversionResult, Format, QuantizedLayer, Source
from edgekd.graph.runtimes.ncnn import NCNN_CPU, unknown_layers
from edgekd.graph.runtimes.types import require

STEM = "model.ncnn"
_TIMEOUT_S = 900


def convert(source: Source, folder: Path, name: str, request: ConversionRequest) -> ConversionResult:
    """Write the two files; INT8 of convolutions is carried over, matrix products stay in floating point."""
    require_float32(source, "an ncnn network")
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        plain = without_int8(source, Path(scratch) / "plain.onnx") if source.layers else source
        graph = Path(scratch) / "m.onnx"
        without_strided_slices(plain.graph, graph)
        param, weights = _run_pnnx(graph, source)
    layers, carried = _quantized(param, weights, source)
    param, weights = serialize(layers, narrow=request.precision == "fp16")
    (folder / f"{STEM}.param").write_text(param, "ascii")
    (folder / f"{STEM}.bin").write_bytes(weights)
    lost = len(source.layers) - carried
    notes = (f"{lost} INT8 layers compute in float: ncnn has INT8 for convolutions only",) if lost else ()
    return ConversionResult(f"{STEM}.param", carried, notes=notes)


def require_converters() -> None:
    """Raise DeviceError unless pnnx, which converts, and ncnn, which lists the known layers, are installed."""
    require(NCNN_CPU)
    _pnnx()


NCNN = Format(
    name="ncnn",
    suffix="_ncnn_model",
    single_file=False,
    runtime=NCNN_CPU,
    libraries=("pnnx", "ncnn"),
    convert=convert,
    require=require_converters,
)


def _pnnx() -> Path:
    """Locate pnnx's program without importing the package, which would import PyTorch. Raises DeviceError."""
    package = find_spec("pnnx")
    candidates = [Path(folder) / "pnnx" for folder in (package.submodule_search_locations or ())] if package else []
    program = next((path for path in candidates if path.is_file()), None)
    if program is None:
        raise DeviceError("pnnx, which writes ncnn's files, is not installed", fix="pip install pnnx ncnn")
    return program


def _run_pnnx(graph: Path, source: Source) -> tuple[str, bytes]:
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
        log = (done.stderr + done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise DeviceError(
            f"pnnx cannot convert {source.graph.name}",
            found=f"exit code {done.returncode}: {log[-1][:200] if log else 'no output'}",
            fix="convert to another format, or report it to pnnx with the graph",
        )
    return param.read_text("utf-8"), weights.read_bytes()


def _quantized(param: str, weights: bytes, source: Source) -> tuple[tuple[NcnnLayer, ...], int]:
    """Return the layers that pnnx wrote, with INT8 as in the source, and the number in INT8. Raises DeviceError."""
    try:
        layers = parse(param, weights)
    except ValueError as error:
        raise DeviceError(
            f"{source.graph.name}: unreadable output of pnnx", found=str(error), fix="convert to another format"
        ) from error
    if missing := unknown_layers({layer.kind for layer in layers}):
        raise DeviceError(
            f"{source.graph.name}: layers that ncnn does not have",
            found=", ".join(missing),
            fix="convert to another format, or export the model without them",
        )
    known = _by_weights(source)
    converted = [_with_int8(layer, known) for layer in layers]
    return tuple(converted), sum(new is not old for new, old in zip(converted, layers, strict=True))


def _by_weights(source: Source) -> dict[bytes, QuantizedLayer]:
    """Return the INT8 convolutions by the float32 bytes of their weights. Raises SpecError for ambiguous scales."""
    layers: dict[bytes, QuantizedLayer] = {}
    for layer in source.layers:
        if layer.operator != "Conv":
            continue
        other = layers.setdefault(_weights(layer), layer)
        if other.input_scale != layer.input_scale:
            raise SpecError(
                f"{source.graph.name}: INT8 cannot be carried over to ncnn",
                found=f"{other.name} and {layer.name} have the same weights and different scales",
                fix="convert with --precision fp32, without INT8",
            )
    return layers


def _weights(layer: QuantizedLayer) -> bytes:
    """Return the values of the codes, as `core.formats.plain_graph` computes them."""
    sides = (-1, *[1] * (layer.codes.ndim - 1)) if layer.scales.size > 1 else ()
    values: Any = layer.codes.astype(np.float32) * layer.scales.reshape(sides)
    return bytes(values.astype("<f4").tobytes())


def _with_int8(layer: NcnnLayer, known: dict[bytes, QuantizedLayer]) -> NcnnLayer:
    quantized = known.get(layer.weights[0].astype("<f4").tobytes()) if layer.weights and layer.tagged else None
    if quantized is None:
        return layer
    return with_int8(layer, quantized.codes, quantized.scales, quantized.input_scale) or layer

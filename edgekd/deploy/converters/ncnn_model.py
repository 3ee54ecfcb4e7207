"""Parse and serialize ncnn's two files: `.param`, a list of layers as text, and `.bin`, their weights in sequence.

So weights of a layer can be replaced by INT8 with the scales of another graph; ncnn's own tools only calibrate again.
Pure, but for NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

_MAGIC = "7767517"
_RAW = 0  # tags before weights: their type
_FLOAT16 = 0x01306B47
_INT8 = 0x000D4B38
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
_INT8_TERM = 8  # key of the parameter for scales after the weights
_GROUPS = 7  # key of the number of groups


@dataclass(frozen=True)
class NcnnLayer:
    """A line of a `.param`: parameters by key, as text; weights in the order of the file.

    tagged: the first of `weights` may be stored in another type than float32.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, str]
    weights: tuple[np.ndarray, ...] = ()
    tagged: bool = False

    def number(self, key: int, default: int = 0) -> int:
        """Return an integer parameter."""
        return int(self.parameters.get(key, default))


def parse(param: str, weights: bytes) -> tuple[NcnnLayer, ...]:
    """Return the layers of a network with float32 weights. Raises ValueError if the files do not match."""
    lines = param.splitlines()
    if not lines or lines[0].strip() != _MAGIC:
        raise ValueError(f"expected an ncnn network, which begins with {_MAGIC}")
    reader = _WeightReader(weights)
    layers = tuple(_with_weights(_parse_line(line), reader) for line in lines[2:] if line.strip())
    if reader.offset != len(weights):
        kinds = ", ".join(sorted({layer.kind for layer in layers if not layer.weights}))
        raise ValueError(f"{len(weights) - reader.offset} bytes of weights belong to none of the layers, among {kinds}")
    return layers


def serialize(layers: Sequence[NcnnLayer], *, narrow: bool) -> tuple[str, bytes]:
    """Return the two files of a network.

    Tagged weights are stored in float16 if that is lossless, or with `narrow`.
    """
    blobs = {name for layer in layers for name in layer.outputs}
    lines = [_MAGIC, f"{len(layers)} {len(blobs)}", *map(_line, layers)]
    return "\n".join(lines) + "\n", b"".join(part for layer in layers for part in _stored(layer, narrow))


def with_int8(layer: NcnnLayer, codes: np.ndarray, scales: np.ndarray, input_scale: float) -> NcnnLayer | None:
    """Return the layer with INT8 weights and scales of weights and input; None if ncnn has no such layer.

    codes: as in ONNX, [outputs, inputs / groups, ...]; scales: one, or one per output; ncnn stores their reciprocals.
    """
    if layer.kind not in ("Convolution", "ConvolutionDepthWise"):
        return None
    outputs, grouped = layer.number(0), layer.kind == "ConvolutionDepthWise"
    if grouped and layer.number(_GROUPS, 1) != outputs:  # ncnn has one scale per group
        return None
    per_output = np.broadcast_to(scales.astype(np.float32), outputs)
    with np.errstate(divide="ignore"):
        reciprocals = np.where(per_output > 0, np.float32(1) / per_output, np.float32(0)).astype(np.float32)
    input_reciprocal = np.array([1 / input_scale], np.float32)
    parameters = {**layer.parameters, _INT8_TERM: "1" if grouped else "2"}
    weights = (codes.reshape(-1), *layer.weights[1:], reciprocals, input_reciprocal)
    return replace(layer, parameters=parameters, weights=weights)


def _parse_line(line: str) -> NcnnLayer:
    """Parse a line: kind, name, numbers of inputs and outputs, their names, parameters `key=value`."""
    kind, name, input_count, output_count, *rest = line.split()
    inputs, outputs = int(input_count), int(output_count)
    names, settings = rest[: inputs + outputs], rest[inputs + outputs :]
    parameters = {int(key): value for key, _, value in (each.partition("=") for each in settings)}
    return NcnnLayer(kind, name, tuple(names[:inputs]), tuple(names[inputs:]), parameters)


def _line(layer: NcnnLayer) -> str:
    parameters = (f"{key}={value}" for key, value in layer.parameters.items())
    counts = (str(len(layer.inputs)), str(len(layer.outputs)))
    return " ".join((layer.kind, layer.name, *counts, *layer.inputs, *layer.outputs, *parameters))


def _with_weights(layer: NcnnLayer, reader: _WeightReader) -> NcnnLayer:
    """Read the weights of a layer. Kinds that are not listed have none: otherwise the total size does not match."""
    number = layer.number
    if layer.kind in _CONVOLUTIONS:
        return replace(layer, weights=tuple(reader.kernel_and_bias(number(6), number(0) * number(5))), tagged=True)
    if layer.kind == "InnerProduct":
        return replace(layer, weights=tuple(reader.kernel_and_bias(number(2), number(0) * number(1))), tagged=True)
    if layer.kind == "MemoryData":
        sides = [number(key) for key in (0, 1, 2, 11) if number(key)]
        return replace(layer, weights=(reader.float32(int(np.prod(sides))),))
    if layer.kind == "LayerNorm":
        return replace(layer, weights=tuple(reader.float32(number(0)) for _ in range(2 * number(2, 1))))
    if layer.kind == "BatchNorm":
        return replace(layer, weights=tuple(reader.float32(number(0)) for _ in range(4)))
    return layer


class _WeightReader:
    """Reads weights in sequence; raises ValueError at the end of the file, and for unknown types."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.offset = 0

    def kernel_and_bias(self, size: int, bias: int) -> Iterator[np.ndarray]:
        """Yield a kernel, and its bias unless its size is 0."""
        yield self._tagged(size)
        if bias:
            yield self.float32(bias)

    def float32(self, size: int) -> np.ndarray:
        """Return `size` float32 values."""
        return np.frombuffer(self._take(size * 4), "<f4")

    def _tagged(self, size: int) -> np.ndarray:
        tag = int(np.frombuffer(self._take(4), "<u4")[0])
        if tag == _FLOAT16:
            return np.frombuffer(self._take(_padded(size * 2))[: size * 2], "<f2").astype(np.float32)
        if tag == _RAW:
            return self.float32(size)
        raise ValueError(f"weights of an unknown type {tag:#x}")

    def _take(self, count: int) -> bytes:
        content = self._content[self.offset : self.offset + count]
        if len(content) != count:
            raise ValueError(f"expected {count} bytes of weights at {self.offset}, found {len(content)}")
        self.offset += count
        return content


def _padded(count: int) -> int:
    """Round up to a multiple of four bytes, the alignment of weights."""
    return (count + 3) // 4 * 4


def _stored(layer: NcnnLayer, narrow: bool) -> Iterator[bytes]:
    for index, values in enumerate(layer.weights):
        if index or not layer.tagged:
            yield values.astype("<f4").tobytes()
        elif values.dtype == np.int8:
            yield _tag(_INT8) + values.tobytes().ljust(_padded(values.size), b"\0")
        elif narrow or _is_float16(values):
            yield _tag(_FLOAT16) + values.astype("<f2").tobytes().ljust(_padded(values.size * 2), b"\0")
        else:
            yield _tag(_RAW) + values.astype("<f4").tobytes()


def _is_float16(values: np.ndarray) -> bool:
    """Return whether float16 holds all values exactly."""
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


def _tag(value: int) -> bytes:
    return int(value).to_bytes(4, "little")

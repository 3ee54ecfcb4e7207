"""ncnn's two files: `.param`, a list of layers as text, and `.bin`, their weights one after the other.

Read so that the weights of a layer can be replaced by INT8 with the scales of another graph, which neither pnnx nor
ncnn's own tools do: those calibrate anew. Pure, but for NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

_MAGIC = "7767517"
_RAW, _FLOAT16, _INT8 = 0, 0x01306B47, 0x000D4B38
"""What stands before tagged weights: how they are stored."""
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
_INT8_TERM = 8  # number of the parameter that says that scales follow the weights
_GROUPS = 7


@dataclass(frozen=True)
class Layer:
    """A line of a `.param`: parameters by number, as text; weights in the order of the file.

    tagged: which of `weights` may be stored in another type than float32; each layer has at most one, its first.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, str]
    weights: tuple[np.ndarray, ...] = ()
    tagged: bool = False

    def number(self, key: int, usual: int = 0) -> int:
        """An integer parameter."""
        return int(self.parameters.get(key, usual))


def parse(param: str, weights: bytes) -> tuple[Layer, ...]:
    """The layers of a network with their weights as float32. Raises ValueError where they do not fit each other."""
    lines = param.splitlines()
    if not lines or lines[0].strip() != _MAGIC:
        raise ValueError(f"expected an ncnn network, which begins with {_MAGIC}")
    reader = _Reader(weights)
    layers = tuple(_with_weights(_layer(line), reader) for line in lines[2:] if line.strip())
    if reader.at != len(weights):
        kinds = ", ".join(sorted({layer.kind for layer in layers if not layer.weights}))
        raise ValueError(f"{len(weights) - reader.at} bytes of weights belong to none of the layers, among {kinds}")
    return layers


def written(layers: Sequence[Layer], narrow: bool) -> tuple[str, bytes]:
    """The two files of a network.

    Weights that float16 holds exactly are stored so; with `narrow` all are that do not have to be float32.
    """
    blobs = {name for layer in layers for name in layer.outputs}
    lines = [_MAGIC, f"{len(layers)} {len(blobs)}", *map(_line, layers)]
    return "\n".join(lines) + "\n", b"".join(part for layer in layers for part in _stored(layer, narrow))


def in_int8(layer: Layer, codes: np.ndarray, scales: np.ndarray, input_scale: float) -> Layer | None:
    """The layer with INT8 weights, and scales for them and for what it reads; None where ncnn has no such layer.

    codes as ONNX has them, [outputs, inputs by groups, ...]; scales: one, or one an output. ncnn divides where ONNX
    multiplies, so its scales are the reciprocals.
    """
    if layer.kind not in ("Convolution", "ConvolutionDepthWise"):
        return None
    outputs, grouped = layer.number(0), layer.kind == "ConvolutionDepthWise"
    if grouped and layer.number(_GROUPS, 1) != outputs:  # there a scale belongs to a group
        return None
    every = np.broadcast_to(scales.astype(np.float32), outputs)
    with np.errstate(divide="ignore"):
        reciprocals = np.where(every > 0, np.float32(1) / every, np.float32(0)).astype(np.float32)
    read = np.array([1 / input_scale], np.float32)
    parameters = {**layer.parameters, _INT8_TERM: "1" if grouped else "2"}
    return replace(layer, parameters=parameters, weights=(codes.reshape(-1), *layer.weights[1:], reciprocals, read))


def _layer(line: str) -> Layer:
    """One line: kind, name, counts of inputs and outputs, their names, parameters `number=value`."""
    kind, name, reads, writes, *rest = line.split()
    inputs, outputs = int(reads), int(writes)
    names, told = rest[: inputs + outputs], rest[inputs + outputs :]
    parameters = {int(key): value for key, _, value in (each.partition("=") for each in told)}
    return Layer(kind, name, tuple(names[:inputs]), tuple(names[inputs:]), parameters)


def _line(layer: Layer) -> str:
    told = (f"{key}={value}" for key, value in layer.parameters.items())
    counts = (str(len(layer.inputs)), str(len(layer.outputs)))
    return " ".join((layer.kind, layer.name, *counts, *layer.inputs, *layer.outputs, *told))


def _with_weights(layer: Layer, reader: _Reader) -> Layer:
    """The layer with what it loads. Kinds that are not listed load nothing: where they do, sizes will not match."""
    number = layer.number
    if layer.kind in _CONVOLUTIONS:
        return replace(layer, weights=tuple(reader.filtered(number(6), number(0) * number(5))), tagged=True)
    if layer.kind == "InnerProduct":
        return replace(layer, weights=tuple(reader.filtered(number(2), number(0) * number(1))), tagged=True)
    if layer.kind == "MemoryData":
        sides = [number(key) for key in (0, 1, 2, 11) if number(key)]
        return replace(layer, weights=(reader.plain(int(np.prod(sides))),))
    if layer.kind == "LayerNorm":
        return replace(layer, weights=tuple(reader.plain(number(0)) for _ in range(2 * number(2, 1))))
    if layer.kind == "BatchNorm":
        return replace(layer, weights=tuple(reader.plain(number(0)) for _ in range(4)))
    return layer


class _Reader:
    """Weights one after the other; `at` is how far it got. Raises ValueError where they end, or make no sense."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def filtered(self, size: int, bias: int) -> Iterator[np.ndarray]:
        """A filter, and its bias where it has one."""
        yield self._tagged(size)
        if bias:
            yield self.plain(bias)

    def plain(self, size: int) -> np.ndarray:
        """As many float32."""
        return np.frombuffer(self._take(size * 4), "<f4")

    def _tagged(self, size: int) -> np.ndarray:
        tag = int(np.frombuffer(self._take(4), "<u4")[0])
        if tag == _FLOAT16:
            return np.frombuffer(self._take(_padded(size * 2))[: size * 2], "<f2").astype(np.float32)
        if tag == _RAW:
            return self.plain(size)
        raise ValueError(f"weights of an unknown type {tag:#x}")

    def _take(self, count: int) -> bytes:
        found = self._content[self.at : self.at + count]
        if len(found) != count:
            raise ValueError(f"expected {count} bytes of weights at {self.at}, found {len(found)}")
        self.at += count
        return found


def _padded(count: int) -> int:
    """Weights begin at multiples of four bytes."""
    return (count + 3) // 4 * 4


def _stored(layer: Layer, narrow: bool) -> Iterator[bytes]:
    for index, values in enumerate(layer.weights):
        if index or not layer.tagged:
            yield values.astype("<f4").tobytes()
        elif values.dtype == np.int8:
            yield _tag(_INT8) + values.tobytes().ljust(_padded(values.size), b"\0")
        elif narrow or _fits(values):
            yield _tag(_FLOAT16) + values.astype("<f2").tobytes().ljust(_padded(values.size * 2), b"\0")
        else:
            yield _tag(_RAW) + values.astype("<f4").tobytes()


def _fits(values: np.ndarray) -> bool:
    """Return whether float16 holds all values exactly."""
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


def _tag(value: int) -> bytes:
    return int(value).to_bytes(4, "little")

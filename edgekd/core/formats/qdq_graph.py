"""A Q/DQ graph, and its forms for builders: without Q/DQ, with some layers in float, with FP32 weights.

TensorRT 10 and later take weights as INT8 constants behind a DequantizeLinear. TensorRT 8 has refused them
(NVIDIA/TensorRT issue 2163; taken in issue 3385): there a weight is an FP32 constant behind Q/DQ. A form is generated
while it is written, one weight at a time. Source for TensorRT 8: `QuantDequantLinearHelper` in onnx-tensorrt,
builtin_op_importers.cpp at 8.2-GA to 8.6-GA.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import IO

import numpy as np

from edgekd.core.formats.onnx_bytes import (
    ATTRIBUTE_GRAPHS,
    ATTRIBUTE_INTEGER,
    ATTRIBUTE_NAME,
    ATTRIBUTE_TYPE,
    FLOAT,
    FLOAT16,
    GRAPH,
    INITIALIZER,
    INT8,
    INT32,
    NAME,
    NODE,
    NODE_ATTRIBUTE,
    NODE_INPUT,
    NODE_NAME,
    NODE_OPERATOR,
    NODE_OUTPUT,
    OUTPUT,
    RAW_DATA,
    VALUE_INFO,
    Node,
    Tensor,
    read_node,
    tensor,
    text,
)
from edgekd.core.formats.protobuf import BYTES, copied, field, fields, integer, integer_field

COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with nearly all of the work, whose precision matters."""
QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
_DEFAULT_AXIS = 1  # of QuantizeLinear and DequantizeLinear
_INTEGER_TYPE = 2  # AttributeProto.AttributeType.INT
_NUMPY = {FLOAT: "<f4", FLOAT16: "<f2", INT8: "<i1", INT32: "<i4"}


@dataclass(frozen=True)
class Piece:
    """A part of a file. length: of its content in bytes, known before the content is made."""

    length: int
    content: Callable[[], bytes]


@dataclass(frozen=True)
class StreamedFile:
    """A file that is generated while it is written, piece by piece. quantized: whether it has Q/DQ."""

    pieces: tuple[Piece, ...]
    quantized: bool

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return sum(piece.length for piece in self.pieces)

    def write(self, stream: IO[bytes]) -> None:
        """Write the file. Raises OSError, ValueError where a weight cannot have this form."""
        for piece in self.pieces:
            stream.write(piece.content())

    def content(self) -> bytes:
        """Return the complete file. Raises ValueError where a weight cannot have this form."""
        return b"".join(piece.content() for piece in self.pieces)


class QdqGraph:
    """The nodes, constants and Q/DQ pairs of the graph in an ONNX file.

    onnx: bytes, or a memory map of the file. Raises ValueError where it is no ONNX file.
    """

    def __init__(self, onnx: bytes) -> None:
        self.onnx = onnx
        self.model_fields = tuple(fields(onnx, 0, len(onnx)))
        graphs = [each for each in self.model_fields if each[:2] == (GRAPH, BYTES)]
        if len(graphs) != 1:
            raise ValueError(f"not an ONNX file: expected one graph, found {len(graphs)}")
        self.graph_fields = tuple(fields(onnx, *graphs[0][2:]))
        self.nodes = [read_node(onnx, first, last) for number, _, first, last in self.graph_fields if number == NODE]
        tensors = (tensor(onnx, first, last) for number, _, first, last in self.graph_fields if number == INITIALIZER)
        self.constants: dict[str, Tensor] = {each.name: each for each in tensors if each}
        self.outputs = {text(onnx, first, last, 1) for number, _, first, last in self.graph_fields if number == OUTPUT}
        self.has_subgraphs = any(_has_subgraph(onnx, node) for node in self.nodes)
        self.quantizers = {node.outputs[0]: node for node in self.nodes if node.operator == QUANTIZE}
        self.dequantizers = {node.outputs[0]: node for node in self.nodes if node.operator == DEQUANTIZE}

    def value(self, name: str) -> np.ndarray:
        """Return a constant. Raises ValueError where it is none, or of a type without Q/DQ."""
        found = self.constants.get(name)
        if found is None or found.data_type not in _NUMPY:
            raise ValueError(f"expected constants for Q/DQ, found {name or 'none'}")
        return np.frombuffer(self.onnx[found.begin : found.end], _NUMPY[found.data_type]).reshape(found.shape)

    def plain(self, name: str) -> str:
        """Return the tensor that replaces `name` when Q/DQ is left out."""
        while name in self.dequantizers and self.dequantizers[name].inputs[0] in self.quantizers:
            name = self.quantizers[self.dequantizers[name].inputs[0]].inputs[0]
        return name

    def dequantizes_constants(self, name: str) -> bool:
        """Return whether a DequantizeLinear of constants gives this tensor: weights."""
        node = self.dequantizers.get(name)
        return node is not None and node.inputs[0] in self.constants

    def scales(self) -> dict[str, float]:
        """Return the scales of the quantized activations, by the name of the tensor in the plain graph.

        Raises ValueError where one has two scales, or a zero point.
        """
        scales: dict[str, float] = {}
        for node in self.quantizers.values():
            if node.inputs[0] in self.constants:  # weights
                continue
            if len(node.inputs) < 3 or self.value(node.inputs[2]).any() or self.value(node.inputs[1]).size != 1:
                raise ValueError(f"expected one scale, and zero point 0, for {node.inputs[0]}")
            name, scale = self.plain(node.inputs[0]), float(self.value(node.inputs[1]).reshape(()))
            if scales.setdefault(name, scale) != scale:
                raise ValueError(f"expected one scale for {name}, found {scales[name]} and {scale}")
        return scales

    def int8_layers(self) -> tuple[str, ...]:
        """Return the names of the computing nodes whose first two operands are dequantized, in graph order.

        Weights may be transposed behind that.
        """
        transposed = (node for node in self.nodes if node.operator == "Transpose")
        weights = {node.outputs[0] for node in transposed if any(map(self.dequantizes_constants, node.inputs))}
        computing = (node for node in self.nodes if node.operator in COMPUTING)
        return tuple(node.name for node in computing if {*self.dequantizers, *weights} >= set(node.inputs[:2]))

    def without_qdq(self) -> StreamedFile:
        """Return the network in float. Raises ValueError for a quantized output, or a computed INT8 tensor."""
        lost = sorted(self.outputs & {*self.quantizers, *self.dequantizers})
        if lost:
            raise ValueError(f"expected outputs that are not quantized, found {', '.join(lost)}")
        form = _Form(self, None, int8_constants=True)
        remaining = [node.outputs[0] for node in form.nodes if is_pair(node)]
        if remaining:
            raise ValueError(f"expected Q/DQ pairs and weights, found {', '.join(remaining)}")
        return form.file()

    def form(self, float_layers: Collection[str] = (), *, int8_constants: bool = True) -> StreamedFile:
        """Return the graph with the nodes of these names in float.

        int8_constants: whether weights are INT8 constants behind a DequantizeLinear; else they are FP32 constants
        behind a QuantizeLinear and a DequantizeLinear of the same scale. Raises ValueError for a name that no node has,
        and for scales that FP32 weights cannot have.
        """
        unknown = sorted(set(float_layers) - {node.name for node in self.nodes})
        if unknown:
            raise ValueError(f"expected names of nodes, found {', '.join(unknown)}")
        return _Form(self, set(float_layers), int8_constants=int8_constants).file()


class _Form:
    """One form of a graph. nodes: its nodes without the QuantizeLinear of FP32 weights.

    float_nodes: names of the nodes that read no Q/DQ; None for all.
    """

    def __init__(self, graph: QdqGraph, float_nodes: set[str] | None, *, int8_constants: bool) -> None:
        self._graph = graph
        self._float_nodes = float_nodes
        self._float_transposes = self._transposes_for_float()
        self._quantized_reads = graph.outputs.union(*(each.inputs for each in graph.nodes if not self._is_float(each)))
        self.nodes = self._needed_nodes()
        self._float32_codes: dict[str, Node] = {}  # by INT8 constant that becomes FP32, its DequantizeLinear
        for node in self.nodes if not int8_constants else ():
            if node.operator == DEQUANTIZE and node.inputs[0] in graph.constants:
                first = self._float32_codes.setdefault(node.inputs[0], node)
                if (first.inputs, axis_of(first)) != (node.inputs, axis_of(node)):
                    raise ValueError(f"expected one scale for {node.inputs[0]}, found {first.inputs[1]} and another")
        self._read = graph.outputs.union(*map(self._inputs, self.nodes))
        pairs = {name for node in graph.nodes if is_pair(node) for name in node.inputs}
        # A subgraph may read what no node reads.
        self._unread = (pairs if graph.has_subgraphs else graph.constants.keys()) - self._read

    def _is_float(self, node: Node) -> bool:
        if is_pair(node):
            return False
        return self._float_nodes is None or node.name in self._float_nodes or node.outputs in self._float_transposes

    def _transposes_for_float(self) -> set[tuple[str, ...]]:
        """Return the outputs of each Transpose of dequantized weights that only float nodes read."""
        float_nodes = self._float_nodes or set()
        read_in_int8 = {name for node in self._graph.nodes if node.name not in float_nodes for name in node.inputs}
        transposes = (node for node in self._graph.nodes if node.operator == "Transpose")
        weights = (node for node in transposes if any(map(self._graph.dequantizes_constants, node.inputs)))
        return {node.outputs for node in weights if read_in_int8.isdisjoint(node.outputs)}

    def _needed_nodes(self) -> list[Node]:
        """Return the nodes of the form, in order, without Q/DQ that nothing reads."""
        read = set(self._graph.outputs)
        needed = []
        for node in reversed(self._graph.nodes):
            if not is_pair(node) or not read.isdisjoint(node.outputs):
                read.update(self._computed(node) if self._is_float(node) else node.inputs)
                needed.append(node)
        return needed[::-1]

    def _inputs(self, node: Node) -> tuple[str, ...]:
        """Return the inputs of a node in this form."""
        if node.operator == DEQUANTIZE and node.inputs[0] in self._float32_codes:
            return (*node.inputs[:2], self._zero_point(node))
        return self._float_inputs(node) if self._is_float(node) else node.inputs

    def _float_inputs(self, node: Node) -> tuple[str, ...]:
        return tuple(self._weight(self._graph.plain(name)) for name in node.inputs)

    def _computed(self, node: Node) -> set[str]:
        """Return the names of the computed tensors that a float node reads, without weights."""
        return {name for name in map(self._graph.plain, node.inputs) if not self._graph.dequantizes_constants(name)}

    def _weight(self, name: str) -> str:
        """Return the name of the float constant for a DequantizeLinear's output, another where that stays."""
        stays = name in self._quantized_reads and self._graph.dequantizes_constants(name)
        return f"{name}/float" if stays else name

    def _zero_point(self, node: Node) -> str:
        """Return the zero point of FP32 weights: the graph's own where it has one per scale, as TensorRT 8 requires."""
        own = self._graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
        size = self._graph.value(node.inputs[1]).size
        fits = own is not None and own.data_type == INT8 and self._graph.value(own.name).size == size
        return node.inputs[2] if fits else f"{node.inputs[0]}/zero_point"

    def file(self) -> StreamedFile:
        """Return the file in this form."""
        onnx, pieces = self._graph.onnx, [*self._node_pieces(), *self._other_pieces(), *self._weight_pieces()]
        length = sum(piece.length for piece in pieces)
        parts: list[Piece] = []
        for each in self._graph.model_fields:
            if each[0] == GRAPH:
                parts += [_piece(integer(GRAPH << 3 | BYTES) + integer(length)), *pieces]
            else:
                parts.append(_piece(copied(onnx, *each)))
        return StreamedFile(tuple(parts), any(is_pair(node) for node in self.nodes))

    def _node_pieces(self) -> Iterator[Piece]:
        """Yield the nodes, each weight's QuantizeLinear before the first node that reads it."""
        quantizers = {id(node): codes for codes, node in self._float32_codes.items()}
        for node in self.nodes:
            if id(node) in quantizers:
                yield _piece(field(NODE, self._quantizer(node)))
            parts = [field(NODE_INPUT, name.encode()) for name in self._inputs(node)]
            parts += [copied(self._graph.onnx, *each) for each in node.fields if each[0] != NODE_INPUT]
            if id(node) in quantizers and "axis" not in node.integers:
                parts.append(_axis_field(node))
            yield _piece(field(NODE, b"".join(parts)))

    def _quantizer(self, node: Node) -> bytes:
        """Return the QuantizeLinear for a DequantizeLinear of weights, with the same scale, zero point and axis."""
        codes = node.inputs[0]
        inputs = (float32_names(codes)[0], node.inputs[1], self._zero_point(node))
        return b"".join(
            (
                *(field(NODE_INPUT, name.encode()) for name in inputs),
                field(NODE_OUTPUT, codes.encode()),
                field(NODE_NAME, float32_names(codes)[1].encode()),
                field(NODE_OPERATOR, QUANTIZE.encode()),
                _axis_field(node),
            )
        )

    def _other_pieces(self) -> Iterator[Piece]:
        """Yield all fields of the graph but nodes, and but those of removed Q/DQ."""
        onnx, graph = self._graph.onnx, self._graph
        gone = {*graph.quantizers, *graph.dequantizers} - self._read
        for number, wire, begin, end in graph.graph_fields:
            if number == NODE or (number == VALUE_INFO and text(onnx, begin, end, 1) in gone):
                continue
            if number == INITIALIZER:
                constant = tensor(onnx, begin, end)
                if constant and (constant.name in self._unread or constant.name in self._float32_codes):
                    continue
            head = len(integer(number << 3 | wire)) + (len(integer(end - begin)) if wire == BYTES else 0)
            yield Piece(head + end - begin, partial(copied, onnx, number, wire, begin, end))

    def _weight_pieces(self) -> Iterator[Piece]:
        """Yield float weights: of layers that left INT8, and those that a QuantizeLinear quantizes again."""
        graph = self._graph
        outputs = {name for node in self.nodes for name in node.outputs}
        for name, node in graph.dequantizers.items():
            if graph.dequantizes_constants(name) and self._weight(name) in self._read - outputs:
                yield _weight_piece(graph, node, self._weight(name), exact=False)
        for codes, node in self._float32_codes.items():
            yield _weight_piece(graph, node, float32_names(codes)[0], exact=True)
            if self._zero_point(node) not in graph.constants:
                zeros = np.zeros(graph.value(node.inputs[1]).shape, np.int8)
                yield _piece(field(INITIALIZER, _initializer(self._zero_point(node), zeros, INT8)))


def _has_subgraph(onnx: bytes, node: Node) -> bool:
    attributes = (each for each in node.fields if each[0] == NODE_ATTRIBUTE)
    return any(inner[0] in ATTRIBUTE_GRAPHS for each in attributes for inner in fields(onnx, *each[2:]))


def is_pair(node: Node) -> bool:
    """Return whether a node is one of a Q/DQ pair."""
    return node.operator in (QUANTIZE, DEQUANTIZE)


def axis_of(node: Node) -> int:
    """Return the axis along which a QuantizeLinear or DequantizeLinear has its scales."""
    return node.integers.get("axis", _DEFAULT_AXIS)


def dequantized(codes: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """Return codes * scales, in the scales' type.

    codes: integers of any shape; scales: float32 or float16, one, or as many as `axis` of codes is long.
    """
    values: np.ndarray = (codes.astype(scales.dtype) * _along(scales, axis, codes.ndim)).astype(scales.dtype)
    return values


def require_same_codes(weights: np.ndarray, codes: np.ndarray, scales: np.ndarray, axis: int) -> None:
    """Raise ValueError where QuantizeLinear does not return these codes for weights = `dequantized(codes, ...)`.

    It rounds weights / scales to the nearest integer, which differs only where a weight is infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.rint(weights / _along(scales, axis, codes.ndim))
    if not np.array_equal(found, codes):
        raise ValueError(f"expected scales whose weights fit float32, found {float(scales.max()):.6g}")


def _along(scales: np.ndarray, axis: int, dimensions: int) -> np.ndarray:
    """Reshape scales to multiply along an axis."""
    sides = [1] * dimensions
    if scales.size != 1:
        sides[axis] = scales.size
    return scales.reshape(sides)


def float32_names(codes: str) -> tuple[str, str]:
    """Return the names of the FP32 constant in place of an INT8 one, and of the QuantizeLinear that reads it."""
    return f"{codes}/float32", f"{codes}/quantize"


def _weight_piece(graph: QdqGraph, node: Node, name: str, *, exact: bool) -> Piece:
    """Return the initializer with the values of a DequantizeLinear of constants.

    exact: whether a QuantizeLinear must return the same codes. Raises ValueError for a zero point other than 0,
    and, where exact, for other weights than INT8 ones with float32 scales.
    """
    codes, scales = graph.constants.get(node.inputs[0]), graph.value(node.inputs[1])
    if codes is None or (len(node.inputs) > 2 and graph.value(node.inputs[2]).any()):
        raise ValueError(f"expected constants and zero point 0 for {node.inputs[0]}")
    if exact and (codes.data_type, scales.dtype.itemsize) != (INT8, 4):
        raise ValueError(f"expected INT8 weights with float32 scales in {node.inputs[0]}")
    kind = FLOAT if scales.dtype.itemsize == 4 else FLOAT16

    def content() -> bytes:
        values = graph.value(node.inputs[0])
        with np.errstate(over="ignore"):
            weights = dequantized(values, scales, axis_of(node))
        if exact:
            require_same_codes(weights, values, scales, axis_of(node))
        return field(INITIALIZER, _initializer(name, weights, kind))

    raw = scales.dtype.itemsize * prod(codes.shape)
    body = len(_tensor_head(name, codes.shape, kind)) + len(integer(RAW_DATA << 3 | BYTES)) + len(integer(raw)) + raw
    return Piece(len(integer(INITIALIZER << 3 | BYTES)) + len(integer(body)) + body, content)


def _initializer(name: str, values: np.ndarray, kind: int) -> bytes:
    return _tensor_head(name, values.shape, kind) + field(RAW_DATA, values.tobytes())


def _tensor_head(name: str, shape: tuple[int, ...], kind: int) -> bytes:
    dims = b"".join(integer_field(1, side) for side in shape)
    return dims + integer_field(2, kind) + field(NAME, name.encode())


def _axis_field(node: Node) -> bytes:
    """Return the attribute `axis`: where it is missing, TensorRT takes 0 for several scales, and ONNX 1."""
    axis = integer_field(ATTRIBUTE_INTEGER, axis_of(node) % 2**64) + integer_field(ATTRIBUTE_TYPE, _INTEGER_TYPE)
    return field(NODE_ATTRIBUTE, field(ATTRIBUTE_NAME, b"axis") + axis)


def _piece(content: bytes) -> Piece:
    return Piece(len(content), lambda: content)

"""An ONNX file as bytes, read without the onnx package; the numbers of fields and types are those of onnx.proto.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edgekd.core.formats.protobuf import BYTES, VARINT, copied, field, fields, integer_field, varint

FLOAT, INT8, INT32, FLOAT16 = 1, 3, 6, 10
"""TensorProto.DataType."""
GRAPH = 7
"""Field of ModelProto."""
FLOAT32_NODES = "edgekd.float32_nodes"
"""Key of metadata: a JSON object of the nodes that must compute in float32, each with its largest magnitude."""
_METADATA = 14  # of ModelProto
_METADATA_KEY, _METADATA_VALUE = 1, 2  # of StringStringEntryProto
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13
"""Fields of GraphProto."""
VALUE_NAME = 1
"""Field of ValueInfoProto."""
_VALUE_TYPE = 2  # of ValueInfoProto
_TENSOR_TYPE, _ELEMENT_TYPE = 1, 1  # of TypeProto, and of the TypeProto.Tensor in it
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9
"""Fields of TensorProto."""
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR, NODE_ATTRIBUTE = 1, 2, 3, 4, 5
"""Fields of NodeProto."""
ATTRIBUTE_NAME, ATTRIBUTE_INTEGER, ATTRIBUTE_TYPE = 1, 3, 20
"""Fields of AttributeProto."""
_ATTRIBUTE_TENSOR = 5  # of AttributeProto
ATTRIBUTE_GRAPHS = (6, 11)
"""Fields of AttributeProto that hold subgraphs."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in an ONNX file, with the begin and end of its raw data."""

    name: str
    shape: tuple[int, ...]
    data_type: int
    begin: int
    end: int


@dataclass(frozen=True)
class Node:
    """A node in an ONNX file.

    integers: its integer attributes by name; tensor_types: the element types of its tensor attributes by name; fields:
    all of its fields as `number, wire type, begin, end`.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int]
    tensor_types: Mapping[str, int]
    fields: tuple[tuple[int, int, int, int], ...]


def initializers(onnx: bytes) -> Iterator[Tensor]:
    """Yield the initializers of an ONNX file's graph that have raw data, in order. Raises ValueError."""
    for graph in _values(onnx, 0, len(onnx), GRAPH):
        for begin, end in _values(onnx, *graph, INITIALIZER):
            constant = tensor(onnx, begin, end)
            if constant:
                yield constant


def inputs(onnx: bytes) -> list[str]:
    """Return the names of a graph's inputs without a constant value. Raises ValueError."""
    constants = {each.name for each in initializers(onnx)}
    ports = (port for graph in _values(onnx, 0, len(onnx), GRAPH) for port in _values(onnx, *graph, INPUT))
    names = (text(onnx, *port, VALUE_NAME) for port in ports)
    return [name for name in names if name not in constants]


def float32_nodes(onnx: bytes) -> dict[str, float]:
    """Return the nodes that must compute in float32, because float16 cannot hold their values, with the largest one.

    Empty where the file names none, or names them in another form than edgekd's. Raises ValueError.
    """
    entries = _values(onnx, 0, len(onnx), _METADATA)
    pairs = ((text(onnx, *each, _METADATA_KEY), text(onnx, *each, _METADATA_VALUE)) for each in entries)
    return float32_nodes_in(dict(pairs))


def float32_nodes_in(metadata: Mapping[str, str]) -> dict[str, float]:
    """Return the same from the metadata of a file, by key."""
    try:
        return {str(name): float(value) for name, value in json.loads(metadata.get(FLOAT32_NODES, "{}")).items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def with_outputs(onnx: bytes, names: Iterable[str], data_type: int) -> bytes:
    """Return the file with further outputs of these names and of one type. Raises ValueError."""
    kind = field(_VALUE_TYPE, field(_TENSOR_TYPE, integer_field(_ELEMENT_TYPE, data_type)))
    more = b"".join(field(OUTPUT, field(VALUE_NAME, name.encode()) + kind) for name in names)
    parts = []
    for number, wire, begin, end in fields(onnx, 0, len(onnx)):
        if (number, wire) == (GRAPH, BYTES):
            parts.append(field(GRAPH, onnx[begin:end] + more))
        else:
            parts.append(copied(onnx, number, wire, begin, end))
    return b"".join(parts)


def text(onnx: bytes, begin: int, end: int, number: int) -> str:
    """Return the text in a field of a message; empty where it has none. Raises ValueError."""
    texts = (onnx[first:last].decode("utf-8", "replace") for first, last in _values(onnx, begin, end, number))
    return next(texts, "")


def tensor(onnx: bytes, begin: int, end: int) -> Tensor | None:
    """Read the TensorProto in a part of an ONNX file; None without exactly one field of raw data. Raises ValueError."""
    shape: list[int] = []
    name, data_type, raw = "", 0, []
    for number, wire, first, last in fields(onnx, begin, end):
        if number == DIMS and wire in (VARINT, BYTES):  # one by one, or packed into one field
            while first < last:
                side, first = varint(onnx, first, last)
                shape.append(side)
        elif (number, wire) == (DATA_TYPE, VARINT):
            data_type = varint(onnx, first, last)[0]
        elif (number, wire) == (NAME, BYTES):
            name = onnx[first:last].decode("utf-8", "replace")
        elif (number, wire) == (RAW_DATA, BYTES):
            raw.append((first, last))
    return Tensor(name, tuple(shape), data_type, *raw[0]) if len(raw) == 1 else None


def read_node(onnx: bytes, begin: int, end: int) -> Node:
    """Read the NodeProto in a part of an ONNX file. Raises ValueError."""
    texts: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_NAME: [], NODE_OPERATOR: []}
    integers: dict[str, int] = {}
    tensor_types: dict[str, int] = {}
    parts = tuple(fields(onnx, begin, end))
    for number, _, first, last in parts:
        if number in texts:
            texts[number].append(onnx[first:last].decode("utf-8", "replace"))
        elif number == NODE_ATTRIBUTE:
            name = text(onnx, first, last, ATTRIBUTE_NAME)
            for inner, wire, start, stop in fields(onnx, first, last):
                if (inner, wire) == (ATTRIBUTE_INTEGER, VARINT):
                    integers[name] = _signed(varint(onnx, start, stop)[0])
                elif (inner, wire) == (_ATTRIBUTE_TENSOR, BYTES):
                    tensor_types[name] = integer_in(onnx, start, stop, DATA_TYPE)
    name, operator = ("".join(texts[number]) for number in (NODE_NAME, NODE_OPERATOR))
    return Node(name, operator, tuple(texts[NODE_INPUT]), tuple(texts[NODE_OUTPUT]), integers, tensor_types, parts)


def element_type(onnx: bytes, begin: int, end: int) -> int:
    """Return the element type of the tensor that a ValueInfoProto describes; 0 where it has none. Raises ValueError."""
    kinds = (each for kind in _values(onnx, begin, end, _VALUE_TYPE) for each in _values(onnx, *kind, _TENSOR_TYPE))
    return next((integer_in(onnx, *kind, _ELEMENT_TYPE) for kind in kinds), 0)


def integer_in(onnx: bytes, begin: int, end: int, number: int) -> int:
    """Return the first integer in a field of a message; 0 where it has none. Raises ValueError."""
    integers = (varint(onnx, first, last)[0] for first, last in _values(onnx, begin, end, number, VARINT))
    return next(integers, 0)


def _values(onnx: bytes, begin: int, end: int, number: int, wire: int = BYTES) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the values of the fields with a number and a wire type."""
    return ((first, last) for found, kind, first, last in fields(onnx, begin, end) if (found, kind) == (number, wire))


def _signed(value: int) -> int:
    """Return a 64-bit varint as the signed integer it encodes."""
    return value - 2**64 if value >= 2**63 else value

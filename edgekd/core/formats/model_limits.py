"""Limits of an ONNX file, checked in its bytes before a library reads it. No I/O.

A file of a few kilobytes can name functions that expand to billions of nodes, tensors of terabytes, and files
anywhere on the disk as the place of its weights. The file is read forwards, once.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Tuple  # noqa: UP035 tuple[...] at run time is Python 3.9

from edgekd.core.formats.protobuf import BYTES, VARINT, fields, varint

MAX_DEPTH = 16
"""Graphs inside attributes inside graphs; exporters nest two or three."""
MAX_WORK = 1_000_000
"""Fields of all messages that are looked at, sides of shapes, and _MESSAGE_WORK for each message.

YOLOX-Nano has 17,000. A core takes 1.5 s for a million.
"""
MAX_EXPANDED_NODES = 200_000
"""Nodes once every function is expanded. A detector has some 1,000."""
MAX_OPERATORS = 20_000
"""Different operators and functions. ONNX has 200, and exporters write a function for each module."""
MAX_TEXT = 4096
"""Bytes of the name of an operator, a function or a file: the longest path of Linux."""
MAX_ENTRIES = 16
"""Entries of external data; ONNX has 5."""
MAX_RANK = 64
"""Dimensions of a tensor; NumPy has at most 64."""
MAX_TENSOR_BYTES = 1 << 31
"""Bytes of one tensor: the largest message of Protocol Buffers."""
MAX_DENSE_ELEMENTS = 1 << 28
"""Elements of a sparse tensor once it is dense: 1 GiB as float32."""
_MESSAGE_WORK = 8  # time of a message, in fields
_ELEMENTS_PER_BYTE = 4  # the smallest types have 2 bits

# Numbers of fields in onnx.proto.
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN, _FUNCTION_ATTRIBUTE = 1, 7, 10, 11
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 13, 14
_TENSOR_DATA = (4, 5, 6, 7, 9, 10, 11)
_SPARSE_VALUES, _SPARSE_INDICES, _SPARSE_DIMS = 1, 2, 3
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1  # TensorProto.DataLocation
_BITS = {1: 32, 4: 16, 5: 16, 6: 32, 7: 64, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_BITS.update(dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8))
_BITS.update(dict.fromkeys((21, 22, 23), 4))
"""Bits of an element by TensorProto.DataType; newer types have at least 2."""


@dataclass(frozen=True)
class ExternalData:
    """The place of a tensor's values outside the file, as the file states it. length: bytes that the tensor needs."""

    tensor: str
    entries: Mapping[str, str]
    length: int


Operator = Tuple[str, str]  # noqa: UP006
"""Domain and name of an operator or function."""


@dataclass
class _Scan:
    """Counts of a file. main, functions: operators in the graph and in each function, and how often.

    self_contained: whether external data is an error.
    """

    content: Any
    self_contained: bool
    work: int = MAX_WORK
    operators: int = MAX_OPERATORS
    external: list[ExternalData] = field(default_factory=list)
    main: Counter[Operator] = field(default_factory=Counter)
    functions: dict[Operator, Counter[Operator]] = field(default_factory=dict)

    def parts(self, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the fields of a message. Raises ValueError where the file has too many."""
        self.spend(_MESSAGE_WORK)
        for part in fields(self.content, begin, end):
            self.spend(1)
            yield part

    def spend(self, work: int) -> None:
        """Count work. Raises ValueError for too much of it."""
        self.work -= work
        if self.work < 0:
            raise ValueError(f"too many nodes, tensors or attributes: more work than {MAX_WORK} fields")

    def messages(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the fields of a message that have a length: messages, text, bytes. Raises ValueError as `parts`."""
        return ((number, first, last) for number, wire, first, last in self.parts(begin, end) if wire == BYTES)

    def name(self, begin: int, end: int) -> str:
        """Return the name of an operator, function or file. Raises ValueError for one that is too long."""
        if end - begin > MAX_TEXT:
            raise ValueError(f"a name of {end - begin} bytes, where at most {MAX_TEXT} are")
        return bytes(self.content[begin:end]).decode("utf-8", "replace")

    def count(self, calls: Counter[Operator], operator: Operator) -> None:
        """Count a call. Raises ValueError for too many different operators."""
        self._require_few_operators(is_new=operator not in calls)
        calls[operator] += 1

    def add_function(self, function: Operator, calls: Counter[Operator]) -> None:
        """Add the calls of a function. Raises ValueError for too many functions."""
        self._require_few_operators(is_new=function not in self.functions)
        # Overloads of a function share its name: together they are an upper bound.
        self.functions.setdefault(function, Counter()).update(calls)

    def _require_few_operators(self, *, is_new: bool) -> None:
        self.operators -= is_new
        if self.operators < 0:
            raise ValueError(f"more than {MAX_OPERATORS} different operators and functions")

    def add_external(self, data: ExternalData) -> None:
        """Add a tensor whose values are in another file. Raises ValueError where it may not be."""
        if self.self_contained:
            location = data.entries.get("location", "")
            raise ValueError(f"external data {location[:100]!r} of tensor {data.tensor[:80]!r}")
        self.external.append(data)


def require_self_contained(content: Any) -> None:
    """Raise ValueError for an ONNX file with values in other files, or one that is damaged or breaks a limit.

    content: `bytes`, or what gives bytes by index and slice, forwards.
    """
    _scanned(content, self_contained=True)


def external_data(content: Any) -> list[ExternalData]:
    """Return the tensors of an ONNX file, `bytes` or a map of it, whose values are in other files.

    Raises ValueError for a file that is damaged or breaks a limit.
    """
    return _scanned(content, self_contained=False).external


def _scanned(content: Any, *, self_contained: bool) -> _Scan:
    scan = _Scan(content, self_contained)
    for number, begin, end in scan.messages(0, len(content)):
        if number == _MODEL_GRAPH:
            _graph(scan, begin, end, scan.main, 0)
        elif number == _MODEL_FUNCTIONS:
            _function(scan, begin, end)
        elif number == _MODEL_TRAINING:
            raise ValueError("a graph with training information, which a detector does not need")
    _require_few_nodes(scan)
    return scan


def _graph(scan: _Scan, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"graphs nested more than {MAX_DEPTH} deep")
    for number, first, last in scan.messages(begin, end):
        if number == _GRAPH_NODE:
            _node(scan, first, last, calls, depth)
        elif number == _GRAPH_TENSOR:
            _tensor(scan, first, last)
        elif number == _GRAPH_SPARSE:
            _sparse(scan, first, last)


def _node(scan: _Scan, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
    operator, domain = "", ""
    for number, first, last in scan.messages(begin, end):
        if number == _NODE_OPERATOR:
            operator = scan.name(first, last)
        elif number == _NODE_DOMAIN:
            domain = scan.name(first, last)
        elif number == _NODE_ATTRIBUTE:
            _attribute(scan, first, last, calls, depth)
    scan.count(calls, _operator(domain, operator))


def _attribute(scan: _Scan, begin: int, end: int, calls: Counter[Operator], depth: int) -> None:
    for number, first, last in scan.messages(begin, end):
        if number in _ATTRIBUTE_TENSORS:
            _tensor(scan, first, last)
        elif number in _ATTRIBUTE_GRAPHS:
            _graph(scan, first, last, calls, depth + 1)
        elif number in _ATTRIBUTE_SPARSE:
            _sparse(scan, first, last)


def _function(scan: _Scan, begin: int, end: int) -> None:
    name, domain = "", ""
    calls: Counter[Operator] = Counter()
    for number, first, last in scan.messages(begin, end):
        if number == _FUNCTION_NAME:
            name = scan.name(first, last)
        elif number == _FUNCTION_DOMAIN:
            domain = scan.name(first, last)
        elif number == _FUNCTION_NODE:
            _node(scan, first, last, calls, 0)
        elif number == _FUNCTION_ATTRIBUTE:
            _attribute(scan, first, last, calls, 0)
    scan.add_function(_operator(domain, name), calls)


def _operator(domain: str, name: str) -> Operator:
    return "" if domain == "ai.onnx" else domain, name


def _tensor(scan: _Scan, begin: int, end: int) -> int:
    """Check a tensor's shape by its data; return its elements."""
    dims: list[int] = []
    name, kind, stored, outside = "", 0, 0, False
    entries: dict[str, str] = {}
    for number, wire, first, last in scan.parts(begin, end):
        if number == _TENSOR_DIMS:
            _add_integers(scan, wire, first, last, dims)
        elif number in _TENSOR_DATA:
            stored += last - first + 1  # an empty text is an element, too
        elif number == _TENSOR_NAME:
            name = scan.name(first, last)
        elif number == _TENSOR_EXTERNAL:
            entries.update(_entry(scan, first, last))
            if len(entries) > MAX_ENTRIES:
                raise ValueError(f"external data with more than {MAX_ENTRIES} entries")
        elif (number, wire) == (_TENSOR_TYPE, VARINT):
            kind = varint(scan.content, first, last)[0]
        elif (number, wire) == (_TENSOR_LOCATION, VARINT):
            outside = varint(scan.content, first, last)[0] == _EXTERNAL
    elements = prod(dims)
    if elements > _ELEMENTS_PER_BYTE * MAX_TENSOR_BYTES:
        raise ValueError(f"tensor {name[:80]!r} of shape {str(dims)[:80]}: more than {MAX_TENSOR_BYTES} bytes")
    if outside or entries:
        scan.add_external(ExternalData(name, entries, (elements * _BITS.get(kind, 2) + 7) // 8))
    elif elements > _ELEMENTS_PER_BYTE * stored:
        raise ValueError(f"tensor {name[:80]!r} of shape {str(dims)[:80]}: its data has {stored} bytes")
    return elements


def _sparse(scan: _Scan, begin: int, end: int) -> None:
    dims: list[int] = []
    for number, wire, first, last in scan.parts(begin, end):
        if number == _SPARSE_DIMS:
            _add_integers(scan, wire, first, last, dims)
        elif number in (_SPARSE_VALUES, _SPARSE_INDICES) and wire == BYTES:
            _tensor(scan, first, last)
    if prod(dims) > MAX_DENSE_ELEMENTS:
        raise ValueError(f"a sparse tensor of shape {str(dims)[:80]}: more than {MAX_DENSE_ELEMENTS} elements")


def _add_integers(scan: _Scan, wire: int, first: int, last: int, dims: list[int]) -> None:
    """Add the integers of a field, one or packed. Raises ValueError for a tensor of too many dimensions."""
    while wire in (VARINT, BYTES) and first < last:
        scan.spend(1)
        value, first = varint(scan.content, first, last)
        dims.append(value)
        if len(dims) > MAX_RANK:
            raise ValueError(f"a tensor of more than {MAX_RANK} dimensions")


def _entry(scan: _Scan, begin: int, end: int) -> dict[str, str]:
    values = {number: scan.name(first, last) for number, first, last in scan.messages(begin, end)}
    return {values.get(_ENTRY_KEY, ""): values.get(_ENTRY_VALUE, "")}


def _require_few_nodes(scan: _Scan) -> None:
    """Raise ValueError where the functions call themselves, or expand to too many nodes."""
    callers: dict[Operator, list[Operator]] = {}
    uncounted = {}
    for name, calls in scan.functions.items():
        called = calls.keys() & scan.functions.keys()
        uncounted[name] = len(called)
        for each in called:
            callers.setdefault(each, []).append(name)
    sizes: dict[Operator, int] = {}
    ready = [name for name, count in uncounted.items() if not count]
    while ready:
        name = ready.pop()
        sizes[name] = _expanded(scan.functions[name], sizes)
        for caller in callers.get(name, ()):
            uncounted[caller] -= 1
            if not uncounted[caller]:
                ready.append(caller)
    if len(sizes) < len(scan.functions):
        raise ValueError("functions that call themselves")
    _expanded(scan.main, sizes)


def _expanded(calls: Counter[Operator], sizes: Mapping[Operator, int]) -> int:
    size = sum(count * (1 + sizes.get(operator, 0)) for operator, count in calls.items())
    if size > MAX_EXPANDED_NODES:
        raise ValueError(f"more than {MAX_EXPANDED_NODES} nodes once its functions are expanded")
    return size

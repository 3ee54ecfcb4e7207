"""The activations of an ONNX graph (tensors that depend on the frame): their types, and which lack an INT8 scale.

TensorRT's implicit quantization runs a layer in INT8 only where all tensors around it have a scale. A tensor of unknown
type is taken for floating point, so that a missing scale is never overlooked.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from edgekd.core.formats.onnx_bytes import (
    DATA_TYPE,
    FLOAT,
    FLOAT16,
    GRAPH,
    INITIALIZER,
    INPUT,
    INT32,
    NAME,
    NODE,
    OUTPUT,
    VALUE_INFO,
    VALUE_NAME,
    Node,
    element_type,
    integer_in,
    read_node,
    text,
)
from edgekd.core.formats.protobuf import fields

INT64 = 7
"""TensorProto.DataType of shapes and indices."""
BOOL = 9
"""TensorProto.DataType of comparisons."""
_DOUBLE = 11  # TensorProto.DataType
_BFLOAT16 = 16  # TensorProto.DataType
_FLOATING = (FLOAT, FLOAT16, _DOUBLE, _BFLOAT16)
_FIXED = {
    **dict.fromkeys(("ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size"), INT64),
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual"), BOOL),
    **dict.fromkeys(("Not", "Or", "Xor"), BOOL),
}
"""Operators whose outputs have a fixed type (operator specification of ONNX)."""
_TYPED_BY = {"CastLike": 1, "DequantizeLinear": 1, "OneHot": 2, "Where": 1}
"""Operators whose outputs have the type of another input than the first, and its index."""
_TYPE_ATTRIBUTE = {"Cast": "to", "EyeLike": "dtype"}
"""Operators that state the type of their outputs in an attribute."""
_WITH_INDICES = ("MaxPool", "TopK")
"""Operators whose second output holds indices."""
_KEEP_INTEGERS = frozenset(
    (
        *("Abs", "Add", "CastLike", "Ceil", "Clip", "Compress", "Concat", "CumSum", "Div", "Expand", "Flatten"),
        *("Floor", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg"),
        *("OneHot", "Pad", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape"),
        *("ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Squeeze", "Sub", "Sum", "Tile", "TopK"),
        *("Transpose", "Unsqueeze", "Where"),
    )
)
"""Operators whose outputs are integers or booleans where what they read is; of others that is not assumed."""


class Activations:
    """The tensors of one graph.

    nodes: in file order, in which they can run; types: the TensorProto.DataType of every tensor, by name; dependent:
    names of the tensors that depend on the frame, in the order in which they are computed.
    """

    def __init__(self, onnx: bytes, begin: int, end: int) -> None:
        self.nodes: list[Node] = []
        self.types: dict[str, int] = {}
        inputs: list[str] = []
        stated: dict[str, int] = {}
        for number, _, first, last in fields(onnx, begin, end):
            if number == NODE:
                self.nodes.append(read_node(onnx, first, last))
            elif number == INITIALIZER:
                self.types[text(onnx, first, last, NAME)] = integer_in(onnx, first, last, DATA_TYPE)
            elif number in (INPUT, OUTPUT, VALUE_INFO):
                name = text(onnx, first, last, VALUE_NAME)
                stated[name] = element_type(onnx, first, last)
                inputs += [name] if number == INPUT else []
        self.dependent = dict.fromkeys(name for name in inputs if name not in self.types)
        self.types.update((name, stated[name] or FLOAT) for name in self.dependent)
        for node in self.nodes:
            depends = any(name in self.dependent for name in node.inputs)
            for index, name in enumerate(node.outputs):
                if name:
                    self.types[name] = stated.get(name) or _output_type(node, index, self.types, self.dependent)
                    self.dependent.update({name: None} if depends else {})

    def floating(self) -> tuple[str, ...]:
        """Return the names of the tensors that depend on the frame and are floating point, in computing order."""
        return tuple(name for name in self.dependent if self.types[name] in _FLOATING)


def float_activations(onnx: bytes) -> tuple[str, ...]:
    """Return the names of a graph's floating-point activations, its inputs and outputs among them, in computing order.

    Tensors computed from constants alone are none. Raises ValueError where the file has no graph.
    """
    graphs = [(begin, end) for number, _, begin, end in fields(onnx, 0, len(onnx)) if number == GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"not an ONNX file: expected one graph, found {len(graphs)}")
    return Activations(onnx, *graphs[0]).floating()


def missing_scales(onnx: bytes, scales: Container[str]) -> tuple[str, ...]:
    """Return the floating-point activations of a graph without Q/DQ that have no scale, in computing order.

    scales: by tensor name, such as a calibration cache. Raises ValueError where the file has no graph.
    """
    return tuple(name for name in float_activations(onnx) if name not in scales)


def _output_type(node: Node, index: int, types: Mapping[str, int], dependent: Container[str]) -> int:
    """Return the type of an output by the rule of its operator; FLOAT where there is none."""
    if node.operator == "Constant":
        return node.tensor_types.get("value", INT64 if "value_int" in node.integers else FLOAT)
    if node.operator == "ConstantOfShape":
        return node.tensor_types.get("value", FLOAT)
    if node.operator in _TYPE_ATTRIBUTE:
        return node.integers.get(_TYPE_ATTRIBUTE[node.operator], FLOAT)
    if node.operator in ("ConvInteger", "MatMulInteger"):
        return INT32
    if index == 1 and node.operator in _WITH_INDICES:
        return INT64
    if node.operator in _FIXED:
        return _FIXED[node.operator]
    kind = _input_type(node, types, dependent)
    return kind if kind in _FLOATING or node.operator in _KEEP_INTEGERS else FLOAT


def _input_type(node: Node, types: Mapping[str, int], dependent: Container[str]) -> int:
    """Return the type of the input that determines that of the outputs: the first that depends on the frame, if any."""
    names: Sequence[str] = node.inputs
    if node.operator in _TYPED_BY:
        names = names[_TYPED_BY[node.operator] :][:1]
    elif node.operator in ("Concat", "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"):
        names = [name for name in names if name in dependent] or names
    return next((types[name] for name in names if types.get(name)), FLOAT)

"""A view of an ONNX graph: nodes and edges, constants, shapes, and the number formats that nodes compute in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekd.graph.model_file import read_model, reading

if TYPE_CHECKING:
    import numpy as np

OperatorClass = Literal["conv", "gemm"]
KINDS: dict[OperatorClass, tuple[str, ...]] = {"conv": ("Conv", "ConvTranspose"), "gemm": ("MatMul", "Gemm")}
"""The operators of each class that computes with weights."""

Dims = tuple[int | None, ...]
"""The dimensions of a tensor; None for one that is not fixed."""


class Graph:
    """A ModelProto's graph: nodes and edges, constants, shapes and number formats. Build it again after a change.

    nested: whether `nodes` include those of nested graphs; producers: the node that writes each tensor, except inputs
    and initializers.
    """

    def __init__(self, model: Any, *, nested: bool = False) -> None:
        self.model = model
        self.nodes: list[Any] = list(_nodes(model.graph) if nested else model.graph.node)
        self.outputs: list[str] = [value.name for value in model.graph.output]
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        # An empty name stands for an optional input or output that is left out, and is no tensor.
        self.producers = {output: node for node in self.nodes for output in node.output if output}
        self._consumers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name:
                    self._consumers[name].append((node, index))

    def of(self, *op_types: str) -> list[Any]:
        """Return the nodes of these operators, in order."""
        return [node for node in self.nodes if node.op_type in op_types]

    def consumers(self, tensor: str) -> list[tuple[Any, int]]:
        """Return the nodes that read a tensor, each with the index of the input."""
        return self._consumers.get(tensor, [])

    def activations(self, node: Any) -> list[str]:
        """Return the tensors that a node reads, except initializers."""
        return [name for name in reads(node) if name not in self.initializers]

    def constant(self, tensor: str) -> np.ndarray | None:
        """Return the value of an initializer; None for anything else."""
        initializer = self.initializers.get(tensor)
        return None if initializer is None else array(initializer)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return the shape of an initializer; None for anything else."""
        initializer = self.initializers.get(tensor)
        return None if initializer is None else tuple(initializer.dims)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """The TensorProtos of initializers and Constant nodes, by name."""
        values = ((node.output[0], a) for node in self.of("Constant") for a in node.attribute)
        return self.initializers | {name: entry.t for name, entry in values if entry.name == "value"}

    @cached_property
    def read_by_nested(self) -> frozenset[str]:
        """The outer names that nested graphs read. `consumers` does not include these reads."""
        return frozenset(name for node in self.nodes for name in _read_by_nested(node))

    @cached_property
    def inputs(self) -> dict[str, Dims]:
        """The shapes of the graph's inputs, by name."""
        return {value.name: _dims(value) for value in self.model.graph.input if value.name not in self.constants}

    @cached_property
    def shapes(self) -> dict[str, Dims]:
        """The shapes that the graph states, and those inferred from them, by tensor."""
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(self.model).graph
        except onnx.shape_inference.InferenceError:  # such as plugins whose domain is not imported: use stated shapes
            inferred = self.model.graph
        computed = (value for value in [*inferred.value_info, *inferred.output] if value.name not in self.constants)
        return self.inputs | {value.name: _dims(value) for value in computed}

    def computing_in(self, kind: OperatorClass, number_format: str) -> list[Any]:
        """Return the nodes of an operator class with an operand in a number format, such as `int8`."""
        return [node for node in self.of(*KINDS[kind]) if number_format in map(self._format, node.input[:2])]

    def quantized_type(self, node: Any) -> str | None:
        """Return the type that a quantizing or dequantizing node converts to or from; None for any other node.

        ONNX's operators define it by zero point, attribute or data type, custom operators by their name.
        """
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            marks = _MARKS.items() if "Quantize" in node.op_type else ()
            return next((word for mark, word in marks if mark in node.op_type.upper()), None)
        if len(node.input) > 2 and node.input[2] in self.constants:
            return type_name(self.constants[node.input[2]].data_type)
        if node.op_type == "QuantizeLinear":
            return type_name(attribute(node, "output_dtype", 0) or _UINT8)
        if node.input[0] in self.constants:
            return type_name(self.constants[node.input[0]].data_type)
        source = self.producers.get(node.input[0])
        return self.quantized_type(source) if source is not None else None

    def _format(self, name: str) -> str | None:
        source = self.producers.get(name)
        while source is not None and source.op_type in _PASS_THROUGH:
            name = source.input[0]
            source = self.producers.get(name)
        if name in self.constants:
            return type_name(self.constants[name].data_type)
        return self.quantized_type(source) if source is not None else None


_PASS_THROUGH = ("Transpose", "Reshape", "Cast", "Identity")
_MARKS = {"FP4": "nvfp4", "FP8": "fp8", "INT8": "int8", "INT4": "int4"}
_STORED = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "FLOAT4E2M1": "nvfp4"}
_UINT8 = 2  # TensorProto.UINT8, the default output type of QuantizeLinear


def load_graph(path: Path) -> Any:
    """Load a ModelProto, and check it. Raises SpecError where the file is not a valid ONNX model."""
    import onnx

    with reading(path):
        model = read_model(path)
        onnx.checker.check_model(model)
    return model


def load_view(path: Path) -> Graph:
    """Read a graph with its nested graphs, without external data. Raises SpecError for a file that is no ONNX model."""
    with reading(path):
        graph = Graph(read_model(path, external=False), nested=True)
        if not graph.nodes:
            raise ValueError("a graph without nodes")
    return graph


def inputs_of(model: Any) -> list[Any]:
    """Return the inputs that are not weights; graphs of IR version 3 list both."""
    weights = {initializer.name for initializer in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def opset_of(model: Any) -> int:
    """Return the version of ONNX's default operator set in a model; 0 if it states none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def where(nodes: Iterable[Any]) -> str:
    """Return a description of nodes for messages: `Conv /a/conv, /b/conv, /c/conv and 12 more`."""
    nodes = list(nodes)
    names = [node.name or (node.output[0] if node.output else "unnamed") for node in nodes]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return " and ".join(sorted({node.op_type for node in nodes})) + " " + ", ".join(names[:3]) + more


def reads(node: Any) -> list[str]:
    """Return the names that a node reads: its inputs, and the outer names that its nested graphs read."""
    return [*filter(None, node.input), *sorted(_read_by_nested(node))]


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, or the default."""
    return attributes(node).get(name, default)


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node, by name."""
    from onnx import helper

    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def array(tensor: Any) -> np.ndarray:
    """Return the values of a TensorProto."""
    import onnx

    values: np.ndarray = onnx.numpy_helper.to_array(tensor)
    return values


def type_name(code: int) -> str:
    """Return the name of a TensorProto type as `edgekd.hardware.target.Precision` has it, else ONNX's in lower case."""
    name = onnx_type_name(code)
    return "fp8" if name.startswith("float8") else _STORED.get(name.upper(), name)


def onnx_type_name(code: int) -> str:
    """Return ONNX's name of a TensorProto type in lower case; `type CODE` if ONNX has no such type."""
    import onnx

    try:
        return str(onnx.TensorProto.DataType.Name(code)).lower()
    except ValueError:
        return f"type {code}"


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in _graphs_in(node):
            yield from _nodes(inner)


def _graphs_in(node: Any) -> Iterator[Any]:
    for entry in node.attribute:
        yield from [entry.g, *entry.graphs]


def _read_by_nested(node: Any) -> set[str]:
    """Return the outer names that the nested graphs of a node read, such as the branches of an If."""
    read: set[str] = set()
    for graph in _graphs_in(node):
        own = {value.name for value in [*graph.input, *graph.initializer]}
        own.update(name for inner in graph.node for name in inner.output)
        read |= {name for inner in graph.node for name in reads(inner)} - own
    return read


def _dims(value: Any) -> Dims:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)

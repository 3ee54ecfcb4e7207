"""An ONNX graph as questions are asked of it: nodes, constants, shapes, and in which number format a node computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekd.core.errors import SpecError

Kind = Literal["conv", "gemm"]
KINDS: dict[Kind, tuple[str, ...]] = {"conv": ("Conv", "ConvTranspose"), "gemm": ("MatMul", "Gemm")}
"""The operators of each class that computes with weights."""

Dims = tuple[int | None, ...]
"""The dimensions of a tensor; None for one that is not fixed."""


@dataclass(frozen=True)
class GraphView:
    """One graph. `nodes` include those of nested graphs; `constants` are TensorProtos by name; `producers` maps a
    tensor's name to the node it comes from; `shapes` are what the graph states and what follows from it.
    """

    opset: int
    nodes: tuple[Any, ...]
    constants: dict[str, Any]
    producers: dict[str, Any]
    inputs: dict[str, Dims]
    shapes: dict[str, Dims]
    functions: frozenset[tuple[str, str]]

    def of(self, *op_types: str) -> list[Any]:
        """The nodes of these operators, in order."""
        return [node for node in self.nodes if node.op_type in op_types]

    def computing_in(self, kind: Kind, number_format: str) -> list[Any]:
        """The nodes of a class with an operand in a format."""
        return [node for node in self.of(*KINDS[kind]) if number_format in self._formats(node)]

    def quantized_type(self, node: Any) -> str | None:
        """The type that a quantizing or dequantizing node converts to or from; None for any other node.

        ONNX's operators name it by zero point, attribute or data; custom operators carry it in their name.
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

    def _formats(self, node: Any) -> set[str]:
        return {name for operand in node.input[:2] if (name := self._format(operand))}

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
_UINT8 = 2  # TensorProto.UINT8, which QuantizeLinear means where it does not say


def load_view(path: Path) -> GraphView:
    """The graph in a file, without its external data. Raises SpecError: the file is not an ONNX model."""
    import onnx

    try:
        return view_of(onnx.load(path, load_external_data=False))
    except Exception as error:  # protobuf's error type is not part of onnx's interface
        raise SpecError(
            f"{path}: cannot be read as an ONNX model",
            found=str(error).strip().split("\n")[0][:200] or type(error).__name__,
            fix="check that the file is complete, or export it again",
        ) from error


def view_of(model: Any) -> GraphView:
    """The graph of a ModelProto; ValueError where it has no nodes."""
    import onnx

    nodes = tuple(_nodes(model.graph))
    if not nodes:
        raise ValueError("a graph without nodes")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {node.output[0]: a.t for node in nodes for a in node.attribute if _is_constant(node, a)}
    inputs = {value.name: _dims(value) for value in model.graph.input if value.name not in constants}
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:  # as for plugins whose domain is not imported: keep what is stated
        inferred = model.graph
    computed = [value for value in [*inferred.value_info, *inferred.output] if value.name not in constants]
    return GraphView(
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        nodes=nodes,
        constants=constants,
        producers={name: node for node in nodes for name in node.output},
        inputs=inputs,
        shapes=inputs | {value.name: _dims(value) for value in computed},
        functions=frozenset((function.domain, function.name) for function in model.functions),
    )


def where(nodes: Iterable[Any]) -> str:
    """Which nodes, for a reader: `Conv /a/conv, /b/conv, /c/conv and 12 more`."""
    nodes = list(nodes)
    names = [node.name or (node.output[0] if node.output else "unnamed") for node in nodes]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return " and ".join(sorted({node.op_type for node in nodes})) + " " + ", ".join(names[:3]) + more


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, or the default."""
    import onnx

    found = [onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name]
    return found[0] if found else default


def array(tensor: Any) -> Any:
    """The values of a TensorProto as a NumPy array."""
    import onnx

    return onnx.numpy_helper.to_array(tensor)


def type_name(code: int) -> str:
    """A TensorProto type in the words of `edgekd.hardware.target.Precision`, or else in ONNX's own, in lower case."""
    import onnx

    name = str(onnx.TensorProto.DataType.Name(code))
    return "fp8" if name.startswith("FLOAT8") else _STORED.get(name, name.lower())


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for entry in node.attribute:
            for inner in [entry.g, *entry.graphs]:
                yield from _nodes(inner)


def _is_constant(node: Any, entry: Any) -> bool:
    return bool(node.op_type == "Constant" and entry.name == "value")


def _dims(value: Any) -> Dims:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)

"""A Q/DQ graph taken apart: the same network in float, the scales of its activations, and which layers are float.

For what takes no Q/DQ: NVIDIA's DLA, which up to TensorRT 10 gets INT8 by a calibration cache, and an engine in FP16
where the INT8 one cannot be had. A pair of QuantizeLinear and DequantizeLinear becomes the tensor it reads; a
DequantizeLinear of constants becomes the values that they stand for.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.formats.activations import Activations
from edgekd.formats.onnx_bytes import (
    FLOAT,
    FLOAT16,
    GRAPH,
    INITIALIZER,
    INT8,
    INT32,
    NAME,
    NODE,
    NODE_INPUT,
    OUTPUT,
    RAW_DATA,
    VALUE_INFO,
    Node,
    read_node,
    tensor,
    text,
)
from edgekd.formats.protobuf import copied, field, fields, integer_field

COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose precision matters: nearly all of the work."""
_NUMPY = {FLOAT: "<f4", FLOAT16: "<f2", INT8: "<i1", INT32: "<i4"}


@dataclass(frozen=True)
class PlainGraph:
    """A network without Q/DQ.

    onnx: its file; weights have the values that the integers stood for, in the type of their scales. scales: of each
    quantized activation, by the name of its tensor in `onnx`. float_layers: names of the nodes that Q/DQ keeps in
    floating point: those of COMPUTING whose operands it does not quantize, what follows them up to the next quantizer,
    and what no quantized layer reads, such as the decoding of boxes. With a scale for every tensor, TensorRT would
    run them in INT8 unless it is told not to. float_tensors: the floating-point outputs of those that they alone read,
    or that the network gives; without a scale for these, TensorRT cannot compute them in INT8.
    """

    onnx: bytes
    scales: Mapping[str, float]
    float_layers: tuple[str, ...]
    float_tensors: tuple[str, ...]


class _Graph:
    """The parts of a Q/DQ graph, and what takes the place of the outputs of its DequantizeLinear nodes."""

    def __init__(self, onnx: bytes, begin: int, end: int) -> None:
        self.onnx = onnx
        self.fields = tuple(fields(onnx, begin, end))
        self.nodes = [read_node(onnx, first, last) for number, _, first, last in self.fields if number == NODE]
        self.kept = [node for node in self.nodes if node.operator not in ("QuantizeLinear", "DequantizeLinear")]
        found = (tensor(onnx, first, last) for number, _, first, last in self.fields if number == INITIALIZER)
        self.constants = {each.name: each for each in found if each}
        self.quantized = {node.outputs[0]: node for node in self.nodes if node.operator == "QuantizeLinear"}
        self.dequantized = {node.outputs[0]: node for node in self.nodes if node.operator == "DequantizeLinear"}
        transposes = (node for node in self.nodes if node.operator == "Transpose")
        self.transposed_weights = {node.outputs[0] for node in transposes if any(map(self.is_weights, node.inputs))}
        self.removed = {*self.quantized, *self.dequantized}
        self.required_outputs()

    def required_outputs(self) -> None:
        """Raises ValueError where the graph gives a dequantized tensor, whose name would be lost."""
        outputs = {text(self.onnx, first, last, 1) for number, _, first, last in self.fields if number == OUTPUT}
        lost = sorted(outputs & self.removed)
        if lost:
            raise ValueError(f"expected outputs that are not quantized, found {', '.join(lost)}")

    def is_weights(self, name: str) -> bool:
        """Return whether a tensor is dequantized constants."""
        return name in self.dequantized and self.dequantized[name].inputs[0] not in self.quantized

    def value(self, name: str) -> np.ndarray:
        """A constant. Raises ValueError where it is none, or of a type that Q/DQ does not have."""
        found = self.constants.get(name)
        if found is None or found.data_type not in _NUMPY:
            raise ValueError(f"expected constants for Q/DQ, found {name or 'none'}")
        return np.frombuffer(self.onnx[found.begin : found.end], _NUMPY[found.data_type]).reshape(found.shape)

    def plain(self, name: str) -> str:
        """The tensor that stands for `name` when Q/DQ is gone."""
        while name in self.dequantized and self.dequantized[name].inputs[0] in self.quantized:
            name = self.quantized[self.dequantized[name].inputs[0]].inputs[0]
        return name

    def scales(self) -> dict[str, float]:
        """Of each activation that is quantized, by its name. Raises ValueError where it has two, or a zero point."""
        found: dict[str, float] = {}
        for node in self.quantized.values():
            if len(node.inputs) < 3 or self.value(node.inputs[2]).any() or self.value(node.inputs[1]).size != 1:
                raise ValueError(f"expected one scale, and zero point 0, for {node.inputs[0]}")
            name, scale = self.plain(node.inputs[0]), float(self.value(node.inputs[1]).reshape(()))
            if found.setdefault(name, scale) != scale:
                raise ValueError(f"expected one scale for {name}, found {found[name]} and {scale}")
        return found

    def weights(self, node: Node) -> bytes:
        """The initializer that stands for a DequantizeLinear of constants. Raises ValueError."""
        codes, scales = self.value(node.inputs[0]), self.value(node.inputs[1])
        if len(node.inputs) > 2 and self.value(node.inputs[2]).any():
            raise ValueError(f"expected zero point 0 for {node.inputs[0]}")
        if scales.size != 1:
            sides = [1] * codes.ndim
            sides[node.integers.get("axis", 1)] = scales.size
            scales = scales.reshape(sides)
        values = (codes.astype(scales.dtype) * scales).astype(scales.dtype)
        kind = FLOAT if scales.dtype.itemsize == 4 else FLOAT16
        dims = b"".join(integer_field(1, side) for side in codes.shape)
        return dims + integer_field(2, kind) + field(NAME, node.outputs[0].encode()) + field(RAW_DATA, values.tobytes())

    def float_nodes(self) -> list[Node]:
        """The nodes that Q/DQ does not let run in INT8."""
        read_in_int8 = {node.inputs[0] for node in self.quantized.values()}
        for node in reversed(self.kept):
            if node.operator not in COMPUTING and not read_in_int8.isdisjoint(node.outputs):
                read_in_int8.update(node.inputs)
        unrounded: set[str] = set()  # tensors that come from a float layer with no quantizer in between
        found = []
        for node in self.kept:
            if node.operator in COMPUTING:
                is_float = not all(map(self._in_int8, node.inputs[:2]))
                follows = is_float
            else:
                follows = not unrounded.isdisjoint(node.inputs)
                is_float = follows or read_in_int8.isdisjoint(node.outputs)
            unrounded.update(node.outputs if follows else ())
            found += [node] if is_float else []
        return found

    def read_by_others(self, nodes: Sequence[Node]) -> set[str]:
        """Return the names, without Q/DQ, of the tensors that nodes other than these read."""
        those = {node.outputs for node in nodes}
        return {self.plain(name) for node in self.kept if node.outputs not in those for name in node.inputs}

    def _in_int8(self, name: str) -> bool:
        """Return whether an operand is dequantized; constants may be transposed behind that."""
        return name in self.dequantized or name in self.transposed_weights

    def written(self) -> bytes:
        """The graph without Q/DQ."""
        used = {self.plain(name) for node in self.kept for name in node.inputs}
        parts = []
        for number, wire, first, last in self.fields:
            if number == NODE or (number == VALUE_INFO and text(self.onnx, first, last, 1) in self.removed):
                continue
            if number == INITIALIZER and (found := tensor(self.onnx, first, last)) and found.name not in used:
                continue
            parts.append(copied(self.onnx, number, wire, first, last))
        weights = (self.weights(node) for name, node in self.dequantized.items() if self.plain(name) == name in used)
        return b"".join(
            (
                *(field(NODE, self._renamed(node)) for node in self.kept),
                *parts,
                *(field(INITIALIZER, each) for each in weights),
            )
        )

    def _renamed(self, node: Node) -> bytes:
        """A node that reads what stands for its inputs."""
        inputs = iter(node.inputs)
        return b"".join(
            field(NODE_INPUT, self.plain(next(inputs)).encode()) if each[0] == NODE_INPUT else copied(self.onnx, *each)
            for each in node.fields
        )


def plain_graph(onnx: bytes) -> PlainGraph:
    """Take the Q/DQ graph of an ONNX file apart.

    Raises ValueError where it is no such file, an output or a zero point is in the way, or a scale is no constant.
    """
    found = tuple(fields(onnx, 0, len(onnx)))
    graphs = [_Graph(onnx, begin, end) for number, _, begin, end in found if number == GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"not an ONNX file: expected one graph, found {len(graphs)}")
    scales = graphs[0].scales()
    written = graphs[0].written()
    parts = (
        field(GRAPH, written) if number == GRAPH else copied(onnx, number, wire, begin, end)
        for number, wire, begin, end in found
    )
    floating = set(Activations(written, 0, len(written)).floating())
    float_nodes = graphs[0].float_nodes()
    nodes = [(node, [name for name in node.outputs if name in floating]) for node in float_nodes]
    read_elsewhere = graphs[0].read_by_others(float_nodes)
    return PlainGraph(
        onnx=b"".join(parts),
        scales=scales,
        float_layers=tuple(node.name for node, outputs in nodes if outputs),
        float_tensors=tuple(name for _, outputs in nodes for name in outputs if name not in read_elsewhere),
    )

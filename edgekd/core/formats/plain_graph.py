"""A Q/DQ graph without its Q/DQ: the network in float, the scales of its activations, and its float layers.

For builders without Q/DQ: NVIDIA's DLA, which up to TensorRT 10 gets INT8 by a calibration cache, and engines in float.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.core.formats.activations import float_activations
from edgekd.core.formats.onnx_bytes import Node
from edgekd.core.formats.qdq_graph import COMPUTING, QdqGraph, StreamedFile, is_pair


@dataclass(frozen=True)
class PlainGraph:
    """A network without Q/DQ.

    file: its ONNX file; weights have the values that the integers stood for, in the type of their scales. scales: of
    each quantized activation, by the name of its tensor in the file. float_layers: names of the nodes that Q/DQ keeps
    in floating point: those of COMPUTING whose operands it does not quantize, what follows them up to the next
    quantizer, and what no quantized layer reads, such as the decoding of boxes. With a scale for every tensor, TensorRT
    would run them in INT8 unless forbidden. float_outputs: the floating-point outputs of those, in computing
    order; float_tensors: those among them that float layers alone read, or that the network gives; without a scale for
    these, TensorRT cannot compute them in INT8.
    """

    file: StreamedFile
    scales: Mapping[str, float]
    float_layers: tuple[str, ...]
    float_outputs: tuple[str, ...]
    float_tensors: tuple[str, ...]

    @property
    def onnx(self) -> bytes:
        """The complete file in memory."""
        return self.file.content()


def plain_graph(onnx: bytes) -> PlainGraph:
    """Remove Q/DQ from the graph of an ONNX file. Raises ValueError where it is none, and as `remove_qdq` does."""
    return remove_qdq(QdqGraph(onnx))


def remove_qdq(graph: QdqGraph) -> PlainGraph:
    """Remove Q/DQ from a graph. Raises ValueError for a quantized output, a zero point, or a scale that varies."""
    scales = graph.scales()
    floating = set(float_activations(graph.onnx))
    float_nodes = _float_nodes(graph)
    nodes = [(node, [name for name in node.outputs if name in floating]) for node in float_nodes]
    read_elsewhere = _read_by_others(graph, float_nodes)
    return PlainGraph(
        file=graph.without_qdq(),
        scales=scales,
        float_layers=tuple(node.name for node, outputs in nodes if outputs),
        float_outputs=tuple(name for _, outputs in nodes for name in outputs),
        float_tensors=tuple(name for _, outputs in nodes for name in outputs if name not in read_elsewhere),
    )


def _plain_nodes(graph: QdqGraph) -> list[Node]:
    return [node for node in graph.nodes if not is_pair(node)]


def _float_nodes(graph: QdqGraph) -> list[Node]:
    """Return the nodes that Q/DQ keeps in float."""
    int8_layers = set(graph.int8_layers())
    read_in_int8 = {node.inputs[0] for node in graph.quantizers.values()}
    for node in reversed(_plain_nodes(graph)):
        if node.operator not in COMPUTING and not read_in_int8.isdisjoint(node.outputs):
            read_in_int8.update(node.inputs)
    unrounded: set[str] = set()  # tensors from a float layer without a quantizer in between
    float_nodes = []
    for node in _plain_nodes(graph):
        if node.operator in COMPUTING:
            is_float = follows = node.name not in int8_layers
        else:
            follows = not unrounded.isdisjoint(node.inputs)
            is_float = follows or read_in_int8.isdisjoint(node.outputs)
        unrounded.update(node.outputs if follows else ())
        float_nodes += [node] if is_float else []
    return float_nodes


def _read_by_others(graph: QdqGraph, nodes: Sequence[Node]) -> set[str]:
    """Return the names, without Q/DQ, of the tensors that other nodes read."""
    those = {node.outputs for node in nodes}
    return {graph.plain(name) for node in _plain_nodes(graph) if node.outputs not in those for name in node.inputs}

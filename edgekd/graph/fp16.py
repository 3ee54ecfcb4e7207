"""Convert graphs for strongly typed builders: operators that are not quantized compute in float16.

TensorRT 11 and TensorRT for RTX take each tensor's type from the graph; in float32, operators that are not quantized
would take most of the time of an INT8 network. Box decoding stays in float32, because float16 coordinates near 640 are
multiples of 0.5 pixels. Nodes whose values float16 cannot represent stay in float32, too (`graph.pins`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgekd.core.errors import CompressError, first_line
from edgekd.core.formats.qdq_graph import COMPUTING, DEQUANTIZE, QUANTIZE
from edgekd.graph.model_file import read_model
from edgekd.graph.opset import raise_opset
from edgekd.graph.pins import pinned
from edgekd.graph.view import Graph, opset_of

MIN_OPSET = 19  # the first in which QuantizeLinear and DequantizeLinear take float16 (ONNX operator changelog)


def half(source: Path, out: Path) -> int:
    """Write the ONNX graph `source` to `out` with float16 in place of float32, except input, output, decoding and pins.

    Scales of Q/DQ become float16, too, as their operators require. Returns the opset of the new graph. Raises SpecError
    if `source` cannot be read, CompressError if it cannot be converted.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = read_model(source)
    try:
        raised = raise_opset(model, MIN_OPSET, source.name)
        own_casts = {node.name for node in raised.graph.node if node.op_type == "Cast"}
        halved = convert_float_to_float16(
            raised, keep_io_types=True, op_block_list=[], node_block_list=[*decoding(model.graph), *wide(model)]
        )
        _keep_wide(halved.graph, own_casts)
        OnnxModel.graph_topological_sort(halved.graph)
        onnx.checker.check_model(halved, full_check=True)
    except Exception as error:  # exceptions of three libraries have no common base class
        raise CompressError(
            f"{source}: cannot be converted to float16",
            found=first_line(error),
            fix="choose a target that is not strongly typed, or export the detector again",
        ) from error
    onnx.save(halved, out)
    return opset_of(halved)


def decoding(graph: Any) -> list[str]:
    """Return the names of the nodes after the last layers: no COMPUTING node depends on them."""
    read: set[str] = set()
    names = []
    for node in reversed(graph.node):
        if node.op_type in COMPUTING or not read.isdisjoint(node.output):
            read.update(node.input)
        else:
            names.append(node.name)
    return names[::-1]


def wide(model: Any) -> list[str]:
    """Return the names of the nodes pinned to float32, and of the Q/DQ nodes before them, sorted."""
    graph, pins = Graph(model), pinned(model)
    names = set(pins)
    for node in graph.nodes:
        if node.name in pins:
            for name in node.input:
                while (by := graph.producers.get(name)) is not None and by.op_type in (QUANTIZE, DEQUANTIZE):
                    names.add(by.name)
                    name = by.input[0]
    return sorted(names)


def _keep_wide(graph: Any, own_casts: Collection[str]) -> None:
    """Remove pairs of Cast nodes, to float16 and back, that the converter inserts between two nodes in float32.

    own_casts: names of the graph's own Cast nodes, which are kept: they may round to integers.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast" and node.name not in own_casts}
    instead = {name: casts[node.input[0]].input[0] for name, node in casts.items() if node.input[0] in casts}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
    outputs = {value.name for value in graph.output}
    for name in outputs & instead.keys():
        casts[name].input[0] = instead[name]  # a Cast without effect, kept for the name of the output
    while unread := casts.keys() - outputs - {name for node in graph.node for name in node.input}:
        for name in unread:
            graph.node.remove(casts.pop(name))

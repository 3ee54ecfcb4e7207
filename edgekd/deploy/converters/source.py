"""An ONNX graph made ready for a converter: what it computes in INT8, and the same without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import SpecError
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.core.formats.qdq_graph import COMPUTING
from edgekd.deploy.converters.types import Precision, QuantizedLayer, Source
from edgekd.graph.view import Graph


def prepared(
    graph: Path, spec: DetectorSpec, precision: Precision, scratch: Path, scales: Mapping[str, float] | None = None
) -> Source:
    """The graph as a conversion begins with it; for `fp32` a copy in `scratch` that has no INT8. Raises SpecError.

    scales: of a calibration cache that came with the graph.
    """
    from edgekd.graph.view import load_graph

    source = Source(graph, spec, tuple(quantized_layers(load_graph(graph))), scales or {})
    return without_int8(source, scratch / "float.onnx") if precision == "fp32" and source.layers else source


def quantized_layers(model: Any) -> Iterator[QuantizedLayer]:
    """The layers of a Q/DQ graph that read INT8 and have INT8 weights, by constant scales."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type not in COMPUTING:
            continue
        reads, weighs = (graph.producers.get(name) for name in node.input[:2])
        if reads is None or weighs is None or {reads.op_type, weighs.op_type} != {"DequantizeLinear"}:
            continue
        codes, scales, read = (graph.constant(name) for name in (*weighs.input[:2], reads.input[1]))
        if codes is not None and codes.dtype == np.int8 and scales is not None and read is not None and read.size == 1:
            wide = scales.astype(np.float32)
            yield QuantizedLayer(node.name, node.op_type, codes, wide.reshape(-1), float(read.reshape(())))


def without_int8(source: Source, out: Path) -> Source:
    """Write `out`: the same graph in floating point; weights keep the values that their codes stood for.

    Raises SpecError where its Q/DQ is of a kind that edgekd does not write.
    """
    try:
        out.write_bytes(plain_graph(source.graph.read_bytes()).onnx)
    except ValueError as error:
        raise SpecError(
            f"{source.graph.name}: its INT8 cannot be taken out", found=str(error), fix="convert the float model"
        ) from error
    return Source(out, source.spec)


def require_float32(source: Source, what: str) -> None:
    """Refuse a graph with float16 weights, which a converter would misread or widen. Raises SpecError."""
    from onnx import TensorProto

    from edgekd.graph.view import load_graph

    halves = [each.name for each in load_graph(source.graph).graph.initializer if each.data_type == TensorProto.FLOAT16]
    if halves:
        raise SpecError(
            f"{source.graph.name}: {what} is made of a float32 graph",
            found=f"{len(halves)} weights in float16, such as {halves[0]}",
            fix="convert the float32 or INT8 model, with --precision fp16",
        )

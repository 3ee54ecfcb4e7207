"""Prepare an ONNX graph for a converter: find its INT8 layers, or remove INT8."""

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


def prepare(
    graph: Path, spec: DetectorSpec, precision: Precision, scratch: Path, scales: Mapping[str, float] | None = None
) -> Source:
    """Return the source of a conversion; for `fp32` a copy in `scratch` without INT8. Raises SpecError.

    scales: of a calibration cache of the graph.
    """
    from edgekd.graph.view import load_graph

    if spec.preprocess.input != "float32":
        raise SpecError(
            f"{graph.name}: takes raw frames; runtimes that it is converted for prepare frames themselves",
            expected="an input float32",
            found=spec.preprocess.input,
            fix="convert a build without --input",
        )
    if spec.batch > 1:
        raise SpecError(
            f"{graph.name}: takes up to {spec.batch} frames at once; conversions are of networks for one frame",
            fix="convert a build without --batch",
        )
    source = Source(graph, spec, tuple(quantized_layers(load_graph(graph))), scales or {})
    return without_int8(source, scratch / "float.onnx") if precision == "fp32" and source.layers else source


def quantized_layers(model: Any) -> Iterator[QuantizedLayer]:
    """Yield the layers of a Q/DQ graph with INT8 input and weights of constant scales."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type not in COMPUTING:
            continue
        activation, weight = (graph.producers.get(name) for name in node.input[:2])
        if activation is None or weight is None or {activation.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        codes, scales, scale = (graph.constant(name) for name in (*weight.input[:2], activation.input[1]))
        if codes is None or codes.dtype != np.int8 or scales is None or scale is None or scale.size != 1:
            continue
        scales = scales.astype(np.float32).reshape(-1)
        yield QuantizedLayer(node.name, node.op_type, codes, scales, float(scale.reshape(())))


def without_int8(source: Source, out: Path) -> Source:
    """Write the graph in floating point to `out`, with dequantized weights.

    Raises SpecError for Q/DQ that edgekd does not write.
    """
    try:
        out.write_bytes(plain_graph(source.graph.read_bytes()).onnx)
    except ValueError as error:
        raise SpecError(
            f"{source.graph.name}: its INT8 cannot be removed", found=str(error), fix="convert the float model"
        ) from error
    return Source(out, source.spec)


def require_float32(source: Source, result: str) -> None:
    """Raise SpecError for float16 weights, which a converter would misread or widen. result: named in the error."""
    from onnx import TensorProto

    from edgekd.graph.view import load_graph

    halves = [each.name for each in load_graph(source.graph).graph.initializer if each.data_type == TensorProto.FLOAT16]
    if halves:
        raise SpecError(
            f"{source.graph.name}: {result} is made from a float32 graph",
            found=f"{len(halves)} weights in float16, such as {halves[0]}",
            fix="convert the float32 or INT8 model, with --precision fp16",
        )

"""Rules for the DLA. Source: TensorRT documentation, "DLA Supported Layers and Restrictions".

A node beyond a limit falls back to the GPU if that is allowed, at the cost of a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgekd.core.errors import SpecError
from edgekd.graph.pins import pinned
from edgekd.graph.view import Graph, attribute, where
from edgekd.hardware.compatibility_rules import (
    Finding,
    Rule,
    dynamic_inputs,
    runtime_title,
    takes_batches,
    tensorrt_range,
)
from edgekd.hardware.target import Target

_LAST_WITH_DLA = (10, 7)
_AGAIN_WITH_DLA = (11, 4, 1)
"""TensorRT's guide, "Working with DLA", 11.3 and 11.4.1: 10.7 is the last 10.x with a DLA, 11.4.1 has AGX Orin's."""


def missing_dla_generation(target: Target) -> Iterator[Finding]:
    """Yield a finding if some of a target's TensorRT versions have no DLA, as in JetPack 7.2 for Orin."""
    trt = tensorrt_range(target)
    if target.dla and trt and trt[1][:2] > _LAST_WITH_DLA and trt[0] < _AGAIN_WITH_DLA:
        title = runtime_title(target)
        what = f"TensorRT after 10.7 has no DLA until 11.4.1, which has AGX Orin's alone; this is {title}"
        yield Finding("slow", "request", what, "stay with JetPack 6 for the DLA, or run on the GPU")


_FALLBACK = "; it falls back to the GPU"


def _dla_dynamic_shapes(graph: Graph, target: Target) -> Iterator[Finding]:
    if takes_batches(graph):
        what = "on the DLA: takes fixed shapes only, so that the agent builds its engine for one frame at a time"
        yield Finding("note", "graph", what, "nothing, or --batch for the GPU alone")
    elif names := dynamic_inputs(graph):
        what = (
            f"on the DLA: input {', '.join(names)} has dimensions that are not fixed; the DLA takes fixed shapes only"
        )
        yield Finding("impossible", "graph", what, "export with a fixed shape (dynamic=False)")


def _dla_quantization(graph: Graph, target: Target) -> Iterator[Finding]:
    nodes, title = graph.of("QuantizeLinear", "DequantizeLinear"), runtime_title(target)
    if nodes and target.dla and target.dla.quantization.value != "qdq":
        what = f"on the DLA: {title} takes no Q/DQ there, but a calibration cache that scales every activation"
        yield Finding("note", where(nodes), what, "nothing: a build writes the cache, derived from this graph")


def _dla_sizes(graph: Graph, target: Target) -> Iterator[Finding]:
    """Batch at most 4096, every other dimension at most 8192; vectors and scalars are not tensors of a DLA layer."""
    tensors = ((name, [size or 0 for size in dims]) for name, dims in graph.shapes.items() if len(dims) > 1)
    large = [name for name, (batch, *rest) in tensors if batch > 4096 or max(rest) > 8192]
    if large:
        more = f" and {len(large) - 1} more tensors" if len(large) > 1 else ""
        shape = f"{large[0]} {list(graph.shapes[large[0]])}"
        what = f"on the DLA: {shape}{more} exceeds 4096 (batch) or 8192 (any other dimension){_FALLBACK}"
        yield Finding("slow", "graph", what, "keep such tensors (a flattened head) out of the part for the DLA")


def _dla_convolutions(graph: Graph, target: Target) -> Iterator[Finding]:
    """Kernels 1 to 32, strides 1 to 8; transposed ones without groups, dilation or padding."""
    if large := [node for node in graph.of("Conv", "ConvTranspose") if _exceeds(graph, node)]:
        what = f"on the DLA: kernels reach 32 and strides 8 at most{_FALLBACK}"
        yield Finding("slow", where(large), what, "use smaller kernels or strides")
    if transposed := [node for node in graph.of("ConvTranspose") if _is_special(node)]:
        what = f"on the DLA: a transposed convolution has no groups, dilation or padding{_FALLBACK}"
        yield Finding("slow", where(transposed), what, "upsample with Resize instead")


def _exceeds(graph: Graph, node: Any) -> bool:
    weights = graph.constants.get(node.input[1])
    kernel = attribute(node, "kernel_shape", list(weights.dims[2:]) if weights is not None else [])
    return max(kernel, default=1) > 32 or max(attribute(node, "strides", [1])) > 8


def _is_special(node: Any) -> bool:
    return bool(
        attribute(node, "group", 1) > 1
        or max(attribute(node, "dilations", [1])) > 1
        or any(attribute(node, "pads", [0]))
    )


DLA_OPERATORS = frozenset(
    "Abs Add Atan AveragePool BatchNormalization Clip Concat Conv ConvTranspose Cos Div Equal Gemm Greater LeakyRelu"
    " Less LRN Max MaxPool Min Mul PRelu Pow ReduceMax Relu Resize Sigmoid Sin Slice Softmax Split Sub Sum Tanh"
    " Transpose Upsample".split()
)
"""Operators with a DLA layer, within limits. Softmax needs Orin."""
_DLA_WINDOW = 8  # largest side of a pooling window


def operators_beyond_dla(graph: Graph, target: Target) -> Iterator[Finding]:
    """Yield a finding on operators without a DLA layer, and the share of multiply-adds that the GPU runs for them."""
    from edgekd.hardware.predict.graph import computing_nodes

    if outside := [node for node in computing_nodes(graph) if _beyond_dla(node, target)]:
        what = f"on the DLA: there is no layer for these{_FALLBACK}{_share_of(graph, outside)}"
        yield Finding("slow", where(outside), what, "end the graph before the head, or run it on the GPU")


def _beyond_dla(node: Any, target: Target) -> bool:
    oldest = target.dla is not None and target.dla.version.value < 2
    pooled = node.op_type in ("AveragePool", "MaxPool") and max(attribute(node, "kernel_shape", [1])) > _DLA_WINDOW
    return node.op_type not in DLA_OPERATORS or pooled or (oldest and node.op_type == "Softmax")


def _share_of(graph: Graph, nodes: list[Any]) -> str:
    """Return a clause with the share of nodes in a frame's multiply-adds; empty where sizes are not fixed."""
    from edgekd.hardware.predict.graph import work_name, works_of
    from edgekd.hardware.predict.work import multiply_adds

    try:
        works = works_of(graph, "graph")
    except SpecError:
        return ""
    names = {work_name(node) for node in nodes}
    whole = multiply_adds(works)
    part = multiply_adds(work for work in works if work.name in names)
    return f", with {part / whole:.1%} of the multiply-adds" if whole else ""


def _dla_float32(graph: Graph, target: Target) -> Iterator[Finding]:
    """The DLA computes in INT8 and FP16 only."""
    if nodes := [node for node in graph.nodes if node.name in pinned(graph.model)]:
        what = f"on the DLA: {len(nodes)} nodes need float32, which it does not have"
        yield Finding("impossible", where(nodes), what, "run on the GPU, or make their values smaller")


DLA_RULES: tuple[Rule, ...] = (_dla_float32, _dla_dynamic_shapes, _dla_quantization, _dla_sizes, _dla_convolutions)

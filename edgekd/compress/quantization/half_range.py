"""Range check for float16: nodes whose values exceed its range, less a margin, on calibration frames.

Every float tensor is measured, or bounded by a measured one: operators that only move or damp values need no
measurement. Values inside an operator are included: squares in a normalization, and the sum of a mean. Matrix products
and convolutions are assumed to accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.compress.quantization.half import HALF_MAX
from edgekd.compress.quantization.placement import MOVES_VALUES
from edgekd.compress.quantization.ranges import MagnitudeHistogram
from edgekd.graph.session import copied
from edgekd.graph.view import Graph, array

MARGIN = 4.0
"""Factor from the largest magnitude on calibration frames to the largest expected on any other frame."""
VANISHING = 2.0**-25
"""Magnitudes up to this one round to zero in float16."""
FLOAT_MAX = float(np.finfo(np.float32).max)
"""Replaces infinity, which is valid in the float32 graph, too, such as in masks."""

_BOUNDED = frozenset(("Cos", "Erf", "HardSigmoid", "Sigmoid", "Sin", "Softmax", "Tanh"))
"""Operators whose outputs are within -1..1."""
_DAMPS = MOVES_VALUES | frozenset(
    (
        *("Abs", "AveragePool", "Cast", "DepthToSpace", "Dropout", "Expand", "Gather", "GatherElements", "GatherND"),
        *("GlobalAveragePool", "GlobalMaxPool", "GridSample", "LeakyRelu", "Neg", "ReduceMax", "ReduceMin", "Relu"),
        *("SpaceToDepth", "Tile", "TopK"),
    )
)
"""Operators whose outputs are no larger than their first input."""
_NORMALIZES = ("GroupNormalization", "InstanceNormalization", "LayerNormalization")
"""Operators that square their first input."""
_AMPLIFIES_ZERO = ("Div", "Log", "Pow", "Reciprocal", "Sqrt")
"""Operators whose result is not finite if a small constant has become zero, or that pass this zero on."""
_DATA_DEPENDENT = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
"""Operators whose outputs may be empty, and then have no largest value."""


@dataclass(frozen=True)
class RangeProbe:
    """A float graph with further outputs for the largest magnitudes of its activations.

    model: the ModelProto; outputs: names of the added outputs, scalars.
    """

    model: Any
    outputs: tuple[str, ...]


def range_probe(graph: Graph) -> RangeProbe:
    """Return a copy of a float graph with outputs for the largest magnitude of every tensor that needs measuring."""
    from onnx import helper, numpy_helper

    model = copied(graph.model)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(FLOAT_MAX), _FINITE))
    names = list(_measured(graph))
    for name in names:
        high, low, negated, largest = (f"{name}/{part}" for part in ("high", "low", "negated", "largest"))
        model.graph.node.extend(
            (
                helper.make_node("ReduceMax", [name], [high], keepdims=0),
                helper.make_node("ReduceMin", [name], [low], keepdims=0),
                helper.make_node("Neg", [low], [negated]),
                helper.make_node("Max", [high, negated], [largest]),
                helper.make_node("Min", [largest, _FINITE], [_output(name)]),
            )
        )
    return RangeProbe(model, tuple(map(_output, names)))


def nodes_beyond_half(graph: Graph, observed: Mapping[str, MagnitudeHistogram]) -> dict[str, float]:
    """Return the nodes that must compute in float32, in graph order, with the largest magnitude in each.

    observed: outputs of the graph's `range_probe` on the calibration frames. A node is listed if one of its inputs or
    outputs, or a value inside it, exceeds HALF_MAX / MARGIN, if one of its constants exceeds HALF_MAX, or if a nonzero
    constant would become zero.
    """
    largest = _bounds(graph, observed)
    vanishing = _behind_vanishing(graph)
    beyond = {}
    for node in graph.nodes:
        constants = [largest[name] for name in node.input if name in graph.constants]
        tensors = [largest.get(name, 0.0) for name in (*node.input, *node.output) if name not in graph.constants]
        computed, constant = max([*tensors, _inside(graph, node, largest)]), max(constants, default=0.0)
        if computed * MARGIN > HALF_MAX or constant > HALF_MAX or node.name in vanishing:
            beyond[node.name] = max(computed, constant)
    return beyond


_FINITE = "edgekd/largest_float32"


def _output(name: str) -> str:
    return f"{name}/magnitude"


def _measured(graph: Graph) -> Iterator[str]:
    """Yield the float inputs, and the computed float tensors that no other tensor bounds."""
    floating = _float_tensors(graph)
    yield from (name for name in graph.inputs if name in floating)
    dependent: set[str] = set()
    for node in graph.nodes:
        if node.op_type in _DATA_DEPENDENT or not dependent.isdisjoint(node.input):
            dependent.update(node.output)
        elif node.op_type not in (*_BOUNDED, "Constant") and _bounding(graph, node) is None:
            yield from (name for name in node.output if name in floating)


def _float_tensors(graph: Graph) -> set[str]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(graph.model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def _bounding(graph: Graph, node: Any) -> list[str] | None:
    """Return the inputs whose largest magnitude bounds the outputs; None if there are none."""
    if node.op_type == "Concat":
        return list(node.input)
    if node.op_type in _DAMPS:
        return [node.input[0]]
    if node.op_type == "Mul":
        gates = [name for name in node.input if (by := graph.producers.get(name)) and by.op_type in _BOUNDED]
        return [name for name in node.input if name != gates[0]] or gates if gates else None
    return None


def _bounds(graph: Graph, observed: Mapping[str, MagnitudeHistogram]) -> dict[str, float]:
    """Return the largest known magnitude of each activation and constant, by name.

    Infinite constants are ignored: they are the same in float16.
    """
    bounds = {name: _largest_finite(array(tensor)) for name, tensor in graph.constants.items()}
    bounds.update((name, observed[_output(name)].largest) for name in graph.inputs if _output(name) in observed)
    for node in graph.nodes:
        by = _bounding(graph, node)
        inherited = 0.0 if by is None else max((bounds.get(name, 0.0) for name in by), default=0.0)
        for name in node.output:
            if name not in bounds:
                measured = observed.get(_output(name))
                bounds[name] = inherited if measured is None else measured.largest
    return bounds


def _inside(graph: Graph, node: Any, largest: Mapping[str, float]) -> float:
    """Return the largest value inside an operator: the square in a normalization, or the sum of a mean; else 0."""
    if node.op_type in _NORMALIZES:
        return largest.get(node.input[0], 0.0) ** 2
    if node.op_type == "ReduceL2":
        return largest.get(node.output[0], 0.0) ** 2
    if node.op_type == "ReduceMean":
        sizes = [graph.shapes.get(name, ()) for name in (node.input[0], node.output[0])]
        if all(all(sides) for sides in sizes):
            whole, left = (float(np.prod([side or 1 for side in sides])) for sides in sizes)
            return largest.get(node.output[0], 0.0) * whole / left
    return 0.0


def _largest_finite(values: np.ndarray) -> float:
    if values.dtype != np.float32:
        return 0.0
    return float(np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max(initial=0))


def _behind_vanishing(graph: Graph) -> set[str]:
    """Return the nodes that read a scalar constant that float16 rounds to zero, and nodes that this zero breaks."""
    scalars = {name: array(tensor) for name, tensor in graph.constants.items() if int(np.prod(tensor.dims)) == 1}
    tiny = {name for name, value in scalars.items() if value.dtype == np.float32 and 0 < abs(value.item()) <= VANISHING}
    nodes: set[str] = set()
    for node in graph.nodes:
        if not tiny.isdisjoint(node.input):
            own = any(name in scalars and name in tiny for name in node.input)
            if own or node.op_type in _AMPLIFIES_ZERO:
                nodes.add(node.name)
                tiny.update(node.output)
    return nodes

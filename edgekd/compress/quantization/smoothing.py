"""Smoothing: scale the channels of a LayerNorm to more equal ranges, and compensate in the products that read it.

An INT8 activation has one scale for all channels, so a few large channels make the step coarse for all others. The
weights of a product have a scale per output, not per input, and can absorb part of a channel's range. With a factor s
for each channel, `x W = (x / s) (s W)`. The division is folded into gamma and beta of the normalization, the
multiplication into the weights: no node is added, and the float result is the same. If another node reads the
normalization, such as a residual addition, one Mul by s restores the values for it.

Source: G. Xiao et al., "SmoothQuant", arXiv 2211.10438. There the strength `alpha` is one number for the network; here
it is chosen for each normalization by the error of its products.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.compress.quantization.layers import LayerView, ProductView, is_layer, layer_of
from edgekd.compress.quantization.ranges import LEVELS, MagnitudeHistogram, scale_of
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels
from edgekd.graph.session import copied, cpu_session
from edgekd.graph.view import Graph

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""Candidate strengths: 1 equalizes the ranges of the activation's channels, 0 the ranges of the weights' columns."""
MAX_ERROR = 0.8
"""Smoothing is applied only if it reduces the error below this share (by 1 dB)."""
ROWS = 1024
"""Number of rows of an activation, over all frames, for measuring the error."""
MAX_FACTOR = 1024.0
"""Limit of factors and of their inverses, for channels that are zero on nearly all frames."""
_KEEPS_ORDER = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that keep the order of values, so that a later product of K inputs reads the same K channels."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """A LayerNorm, as one operator or as its last Mul and Add, that products read.

    output: name of its tensor; affine: (node, input index) of gamma and beta [K]; products: views of the products that
    read it, also after a Reshape; quantized: the products in INT8; branches: (node, input index) that read it for these
    products only; others: all other readers.
    """

    output: str
    affine: tuple[tuple[Any, int], ...]
    products: tuple[LayerView, ...]
    quantized: tuple[LayerView, ...]
    branches: tuple[tuple[Any, int], ...]
    others: tuple[tuple[Any, int], ...]


def smoothed(graph: Graph, quantized: Collection[str], frames: Sequence[np.ndarray]) -> Graph:
    """Return the float graph with the normalizations scaled for which that reduces the error of INT8 below MAX_ERROR.

    graph: from `quantize.prepared`; changed in place. quantized: names of the layers in INT8; frames: calibration
    frames of the input's shape.
    """
    from onnx import ValueInfoProto

    found = list(normalizations(graph, quantized))
    if not found or not frames:
        return graph
    model = copied(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(ValueInfoProto(name=each.output) for each in found)
    session, source = cpu_session(model), model.graph.input[0].name
    values = list(zip(*(session.run(None, {source: frame}) for frame in frames), strict=True))
    for each, of_frames in zip(found, values, strict=True):
        factors = best_factors(each.quantized, of_frames)
        if factors is not None:
            _apply(graph, each, factors)
    return Graph(graph.model)


def normalizations(graph: Graph, quantized: Collection[str]) -> Iterator[Normalization]:
    """Yield the normalizations with constant gamma and beta that products in `quantized` (layer names) read."""
    for node in graph.nodes:
        affine = _affine(graph, node)
        if affine is None or node.output[0] in graph.outputs or node.output[0] in graph.read_by_nested:
            continue
        (width,) = graph.shape(affine[0][0].input[affine[0][1]]) or (0,)
        branches: list[tuple[Any, int]] = []
        others: list[tuple[Any, int]] = []
        products: list[LayerView] = []
        for reader, index in graph.consumers(node.output[0]):
            read = _products_behind(graph, reader, index, width)
            (others if read is None else branches).append((reader, index))
            products += read or []
        in_int8 = tuple(view for view in products if view.name in quantized)
        if in_int8:
            yield Normalization(node.output[0], affine, tuple(products), in_int8, tuple(branches), tuple(others))


def _products_behind(graph: Graph, node: Any, index: int, width: int) -> list[LayerView] | None:
    """Return the products of `width` inputs that read a tensor through input `index` of a node.

    The node is a product, or a Reshape with only such readers; None for any other node.
    """
    if index != 0:
        return None
    if node.op_type in _KEEPS_ORDER and node.output[0] not in graph.outputs:
        behind = [_products_behind(graph, *each, width) for each in graph.consumers(node.output[0])]
        return None if not behind or None in behind else [view for views in behind for view in views or ()]
    view = layer_of(graph, node) if is_layer(graph, node) else None
    return [view] if isinstance(view, ProductView) and view.weights.shape[1] == width else None


def best_factors(products: Sequence[LayerView], values: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the factors of the channels, float32 [K], with the smallest error; None if it is not below MAX_ERROR.

    values: the activation that the products read, float32 [..., K], for each frame.
    """
    indices = products[0].draw_patches(values, ROWS)
    rows = np.concatenate([products[0].patches(v, at)[0] for v, at in zip(values, indices, strict=True)])
    weights = [product.matrices[0] for product in products]
    reach, columns = np.abs(rows).max(axis=0), np.abs(np.concatenate(weights)).max(axis=0)
    if not (reach.any() and columns.any()):
        return None
    limit = MAX_ERROR * _error(rows, weights, np.ones(len(reach), np.float32))
    candidates = [_factors(reach, columns, alpha) for alpha in ALPHAS]
    errors = [_error(rows, weights, factors) for factors in candidates]
    best = int(np.argmin(errors))
    return candidates[best] if errors[best] < limit else None


def _factors(reach: np.ndarray, columns: np.ndarray, alpha: float) -> np.ndarray:
    """Return factors with the geometric mean 1, from the largest magnitudes of channels and of columns [K]."""
    used = (reach > 0) & (columns > 0)
    logarithms = np.zeros(len(reach))
    logarithms[used] = alpha * np.log(reach[used]) - (1 - alpha) * np.log(columns[used])
    logarithms[used] -= logarithms[used].mean()
    return np.exp(np.clip(logarithms, -np.log(MAX_FACTOR), np.log(MAX_FACTOR))).astype(np.float32)


def _error(rows: np.ndarray, weights: Sequence[np.ndarray], factors: np.ndarray) -> float:
    """Return noise power / signal power in INT8, summed over the products."""
    scaled = rows / factors
    histogram = MagnitudeHistogram()
    histogram.add(scaled)
    scale = scale_of(histogram, "mse")
    read = np.clip(np.rint(scaled / scale), -LEVELS, LEVELS) * scale
    total = 0.0
    for matrix in weights:
        stored = dequantize_channels(*quantize_channels(matrix * factors))
        exact = rows @ matrix.T
        total += float(np.square(read @ stored.T - exact).sum() / max(np.square(exact).sum(), 1e-30))
    return total


def _affine(graph: Graph, node: Any) -> tuple[tuple[Any, int], ...] | None:
    """Return (node, input index) of gamma and beta [K] if a LayerNorm with constant ones ends in this node, or None."""
    if node.op_type == "LayerNormalization":
        places = tuple((node, index) for index in range(1, len(node.input)) if node.input[index])
    elif node.op_type == "Add" and len(node.input) == 2:
        by = [graph.producers.get(name) for name in node.input]
        mul = next((each for each in by if each is not None and each.op_type == "Mul"), None)
        if mul is None or len(graph.consumers(mul.output[0])) != 1:
            return None
        places = (*_constant_inputs(graph, mul), *_constant_inputs(graph, node))
        if len(places) != 2 or not _normalized(graph, mul):
            return None
    else:
        return None
    shapes = {graph.shape(each.input[index]) for each, index in places}
    return places if len(shapes) == 1 and len(shapes.pop() or ()) == 1 else None


def _constant_inputs(graph: Graph, node: Any) -> list[tuple[Any, int]]:
    return [(node, index) for index, name in enumerate(node.input) if name in graph.initializers]


def _normalized(graph: Graph, mul: Any) -> bool:
    """Return whether a Mul scales the quotient of a decomposed LayerNorm."""
    return any(by.op_type == "Div" for name in mul.input if (by := graph.producers.get(name)) is not None)


def _apply(graph: Graph, normalization: Normalization, factors: np.ndarray) -> None:
    """Write scaled constants; other readers of the normalization get the original values."""
    from onnx import helper, numpy_helper

    initializers = graph.model.graph.initializer

    def store(name: str, value: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    for node, index in normalization.affine:
        value = graph.constant(node.input[index])
        assert value is not None, "gamma and beta are constants"
        node.input[index] = store(f"{node.input[index]}/{node.name}/smoothed", value / factors)
    nodes = {node.name: node for node in graph.nodes}
    for view in normalization.products:
        nodes[view.name].input[1] = store(f"{view.weights_name}/smoothed", view.stored(view.weights * factors))
    if normalization.others:
        narrow, producer = f"{normalization.output}/smoothed", graph.producers[normalization.output]
        producer.output[0] = narrow
        for node, index in normalization.branches:
            node.input[index] = narrow
        restored = [narrow, store(f"{narrow}/factors", factors)]
        mul = helper.make_node("Mul", restored, [normalization.output], f"{normalization.output}/restore")
        position = list(graph.model.graph.node).index(producer)
        graph.model.graph.node.insert(position + 1, mul)

"""Smoothing: channels of a LayerNorm are scaled to more equal ranges, and the products that read it are scaled back.

An INT8 activation has one scale for all of its channels, so a few large channels make the step coarse for all others.
A product's weights have a scale for each output only, and no scale for each input: they can take over a part of a
channel's range. With a factor s for each channel, `x W = (x / s) (s W)`. The division is folded into gamma and beta of
the normalization, the multiplication into the weights: nothing is added to the graph, and in float it computes the
same. Where anything else reads the normalization, such as a residual addition, one Mul by s restores the values for it.

Source: G. Xiao et al., "SmoothQuant", arXiv 2211.10438. There the strength `alpha` is one number for the network; here
it is chosen for each normalization by the error of its products.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.compress.quantization.layers import LayerView, ProductView, layer_of
from edgekd.compress.quantization.ranges import LEVELS, MagnitudeHistogram, scale_of
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels
from edgekd.graph.session import copied, cpu_session
from edgekd.graph.view import Graph

ALPHAS = (0.25, 0.5, 0.75, 1.0)
"""Strengths to choose from: 1 makes the ranges of the activation's channels equal, 0 those of the weights' columns."""
MAX_ERROR = 0.8
"""Share of the error below which what is left has to be (1 dB less): otherwise the graph stays as it is."""
ROWS = 1024
"""Rows of an activation, over all frames, by which the error is measured."""
MAX_FACTOR = 1024.0
"""Largest factor either way: for channels that are zero on nearly all frames."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """A LayerNorm, as one operator or as its last Mul and Add, that quantized products read.

    output: its tensor; affine: nodes and indices of inputs that hold gamma and beta [K]; products: views of its
    readers; others: nodes, and indices of inputs, that read it as well.
    """

    output: str
    affine: tuple[tuple[Any, int], ...]
    products: tuple[LayerView, ...]
    others: tuple[tuple[Any, int], ...]


def smoothed(graph: Graph, quantized: Collection[str], frames: Sequence[np.ndarray]) -> Graph:
    """Return the float graph with normalizations scaled where that lessens the error of INT8 by more than a fifth.

    graph: as of `quantize.prepared`; it is changed. quantized: names of the layers in INT8; frames: calibration frames
    of the input's shape.
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
        factors = best_factors(each.products, of_frames)
        if factors is not None:
            _apply(graph, each, factors)
    return Graph(graph.model)


def normalizations(graph: Graph, quantized: Collection[str]) -> Iterator[Normalization]:
    """Return the normalizations with constant gamma and beta that products among the layers `quantized` read."""
    for node in graph.nodes:
        affine = _affine(graph, node)
        if affine is None or node.output[0] in graph.outputs:
            continue
        readers = graph.consumers(node.output[0])
        views = {reader.name: layer_of(graph, reader) for reader, index in readers if reader.name in quantized}
        products = tuple(view for view in views.values() if isinstance(view, ProductView))
        names = {view.name for view in products}
        width = graph.shape(affine[0][0].input[affine[0][1]])
        if products and all((view.weights.shape[1],) == width for view in products):
            others = tuple((reader, index) for reader, index in readers if reader.name not in names)
            yield Normalization(node.output[0], affine, products, others)


def best_factors(products: Sequence[LayerView], values: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the factor of each channel, float32 [K], with the least error; None where none leaves less than MAX_ERROR.

    values: of the activation that the products read, float32 [..., K], one for each frame.
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
    """Return the noise of the products in INT8 relative to their signal, summed over the products."""
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
    """Return where the constants gamma and beta [K] of a LayerNorm are that ends in this node; None for other nodes."""
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
    """Write scaled constants; where others read the normalization, they get its values as they were."""
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
        for view in normalization.products:
            nodes[view.name].input[0] = narrow
        restored = [narrow, store(f"{narrow}/factors", factors)]
        mul = helper.make_node("Mul", restored, [normalization.output], f"{normalization.output}/restore")
        index = list(graph.model.graph.node).index(producer)
        graph.model.graph.node.insert(index + 1, mul)

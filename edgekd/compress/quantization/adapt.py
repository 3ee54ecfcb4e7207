"""Adaptation of a Q/DQ graph to other imaging conditions: the same nodes, with other weights, biases and ranges.

The float graph runs on images in the original conditions, and a copy on the same scenes in simulated new conditions.
Layer by layer, from the input on, each convolution of the copy gets the weights and the bias whose output is closest to
the original's, given all changes before it (`quantization.reconstruct`, which compensates rounding in the same way).
They are stored in the layer's own format. Finally the ranges of activations are measured on real frames in the new
conditions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.layers import LayerView, is_dfl, layer_of
from edgekd.compress.quantization.placement import QuantizerPlacement, shared_scales
from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.quantization.quantize import PROBES, frames_to_fit, prepared, reconstruct
from edgekd.compress.quantization.reconstruct import Stored
from edgekd.compress.quantization.scales import choose_scales
from edgekd.core.errors import CompressError
from edgekd.core.formats.nvfp4 import Nvfp4
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.graph.session import copied
from edgekd.graph.view import Graph


def adapt(
    source: Path,
    out: Path,
    known: Sequence[np.ndarray],
    shown: Sequence[np.ndarray],
    new: Sequence[np.ndarray],
) -> dict[str, float]:
    """Write `out`: the graph `source` fitted to other conditions. Returns the scale of each quantized activation.

    known: frames float32 [1, 3, h, w] in the original conditions; shown: the same scenes in simulated new conditions;
    new: real frames in the new conditions, for ranges. Memory limits how many of `known` and `shown` are used.
    Raises CompressError if no convolution can be changed, or the graph has quantized matrix products.
    """
    import onnx

    layers = read_layers(source)
    try:
        plain = plain_graph(source.read_bytes())
    except ValueError as error:
        raise CompressError(f"{source.name}: its INT8 cannot be read", found=str(error)) from error
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        floating = Path(scratch) / "plain.onnx"
        onnx.save(_widened(onnx.load_from_string(plain.onnx)), floating)
        graph = prepared(floating)
    changed = _changed(graph, layers, known, shown)
    scales = _ranges(graph, layers, tuple(plain.scales), new) if plain.scales else {}
    inputs = {node.name: node.input[0] for node in graph.nodes if node.input}
    ranges = {layer.node: scales.get(inputs[layer.node], layer.input_scale) for layer in changed}
    kept = (layer if layer.input_scale is None else replace(layer, input_scale=ranges[layer.node]) for layer in changed)
    write_layers(source, out, kept)
    return scales


def _changed(
    graph: Graph, layers: Sequence[QdqConvolution], known: Sequence[np.ndarray], shown: Sequence[np.ndarray]
) -> list[QdqConvolution]:
    """Return the fitted layers as they are stored, and change `graph` accordingly."""
    nodes = {node.name: node for node in graph.nodes}
    views = {each.node: layer_of(graph, nodes[each.node]) for each in layers if not is_dfl(graph, nodes[each.node])}
    forms = {layer.node: layer.form for layer in layers if views.get(layer.node) is not None}
    if not forms:
        raise CompressError("adapt: nothing to change", expected="convolutions with constant weights", found="none")
    count = frames_to_fit(graph, (), len(known), walks=2)
    before = Graph(copied(graph.model))
    steps = {layer.node: layer.mean_step for layer in layers if forms.get(layer.node) == "coded"}
    stored = reconstruct(before, graph, forms, known[:count], shown[:count], "nearest", steps)
    return [_fitted(layer, views[layer.node], graph, stored.get(layer.node)) for layer in layers if layer.node in forms]


def _fitted(layer: QdqConvolution, view: LayerView | None, graph: Graph, stored: Stored | None) -> QdqConvolution:
    """Return a layer with its stored codes, or the graph's weights, and the graph's bias, in the layer's types."""
    assert view is not None, "only such layers were fitted"
    assert not isinstance(stored, Nvfp4), "which no convolution is stored in"
    codes, scales = (graph.constant(view.weights_name), None) if stored is None else stored
    bias = None if layer.bias is None else graph.constant(view.bias_name or "")
    assert codes is not None, "a view has constant weights"
    return replace(
        layer,
        weights=codes.astype(layer.weights.dtype),
        scales=None if scales is None or layer.scales is None else scales.astype(layer.scales.dtype),
        bias=None if bias is None or layer.bias is None else bias.astype(layer.bias.dtype),
    )


def _widened(model: Any) -> Any:
    """Replace float16 by float32 in a model; return it."""
    from onnx import TensorProto, numpy_helper

    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(wide, initializer.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    del model.graph.value_info[:]
    return model


def _ranges(
    graph: Graph, layers: Sequence[QdqConvolution], scaled: Sequence[str], frames: Sequence[np.ndarray]
) -> dict[str, float]:
    """Return the scale of each quantized activation, and of the tensors that share it, measured on frames.

    graph: the float graph; scaled: names of the quantized activations in it.
    """
    quantized = tuple(layer.node for layer in layers if layer.input_scale is not None and layer.scales is not None)
    placement = QuantizerPlacement(quantized, (), tuple(scaled), shared_scales(graph, list(scaled)))
    histograms = observe(graph.model, placement.quantized, frames)
    scales, _ = choose_scales(graph, placement, histograms, "best", frames[:PROBES])
    return {name: scales[name] for group in placement.groups for name in group}

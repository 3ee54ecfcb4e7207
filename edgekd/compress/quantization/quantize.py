"""Post-training quantization without labels: from the float graph to the shipped Q/DQ graph."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.half import as_half, as_short_half
from edgekd.compress.quantization.half_range import nodes_beyond_half, range_probe
from edgekd.compress.quantization.layers import LayerView, is_dfl, is_layer, layer_of
from edgekd.compress.quantization.layerwise import Walk, bytes_per_frame, levels_of, shapes_of
from edgekd.compress.quantization.placement import QuantizerPlacement, place
from edgekd.compress.quantization.reconstruct import Moments, Stored, bias_for, moments_of, pooled, refit, stored_in
from edgekd.compress.quantization.rewrite import (
    apply,
    drop_left_out,
    insert_activation_pairs,
    name_nodes,
    own_parameters,
    store_weights,
)
from edgekd.compress.quantization.scales import choose_scales
from edgekd.compress.quantization.smoothing import smoothed
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels
from edgekd.graph.model_file import read_model
from edgekd.graph.nvfp4 import OPSET
from edgekd.graph.opset import raise_for_nvfp4
from edgekd.graph.pins import pin
from edgekd.graph.session import copied
from edgekd.graph.view import Graph

PROBES = 8
"""Number of frames for measuring each layer's noise."""
RANGE_FRAMES = 32
"""Number of frames for the largest magnitude of every activation, for float16: measuring takes as long as computing the
activations, and a margin covers all other frames."""
MIN_PATCHES = 3072
"""Smallest number of patches of a layer's input, over all frames, for computing its weights."""
MIN_FEEDBACK_PATCHES = 8192
"""The same for rounding with feedback, which fits the covariance of its inputs: with 3072 patches, a YOLO11n in 1/10 of
its float file has 22 % more noise."""
PATCHES_PER_WEIGHT = 2
"""Patches per weight of an output, if that is more."""
FEEDBACK_PATCHES = 512
"""Patches that rounding with feedback needs, or twice the weights of an output if that is less: with fewer it overfits.
Layers with fewer patches per frame need more frames."""
WORKERS = min(os.cpu_count() or 1, 4)
"""Number of layers of one level computed in parallel; each holds its patches in memory."""
WALK_BYTES = 2 << 30
"""Bytes for the tensors of the frames for fitting weights; limits the number of frames if tensors are large."""


@dataclass(frozen=True)
class QuantizationResult:
    """A Q/DQ graph on disk.

    scales: INT8 scale of every quantized activation and of the tensors that share it, by tensor name in the float
    graph; snr_db: signal-to-noise ratio of each layer in INT8, by node name; forms: storage format of each layer's
    weights, by node name, in graph order; layers: number of all layers; float32: nodes that float16 cannot compute,
    with the largest magnitude in each.
    """

    scales: Mapping[str, float]
    snr_db: Mapping[str, float]
    forms: Mapping[str, WeightFormat]
    layers: int
    float32: Mapping[str, float]

    @property
    def int8(self) -> tuple[str, ...]:
        """The node names of the layers that compute in INT8."""
        return tuple(name for name, form in self.forms.items() if form in ("int8", "coded", "fp4x"))


def quantize(
    source: Path,
    out: Path,
    frames: Iterable[np.ndarray],
    step: Quantize,
    plan: Mapping[str, WeightFormat] | None = None,
    coded_steps: Mapping[str, float] | None = None,
) -> QuantizationResult:
    """Write `out`, the Q/DQ version of the float ONNX graph `source`.

    frames: calibration frames float32 of the input's shape, read once. plan: the format of each layer's weights, by
    node name; without one all are INT8 except the head and layers below the step's signal-to-noise ratio.
    coded_steps: step of each layer in `coded`, as for `reconstruct.coded_with_feedback`.
    Raises CompressError if there is no frame, nothing can be quantized, every layer is below the step's signal-to-noise
    ratio, or a weight or an activation is not finite.
    """
    import onnx

    planned = plan or {}
    graph = prepared(source, "nvfp4" in planned.values())
    kept_float = unreadable(graph)
    not_int8 = kept_float + [name for name, form in planned.items() if form in ("float16", "nvfp4")]
    rest = iter(frames)
    first = list(islice(rest, PROBES))
    graph = smoothed(graph, place(graph, not_int8).layers, first)
    placement = place(graph, not_int8)
    few_bits = [name for name, form in planned.items() if form in ("coded", "fp4x", "nvfp4")]
    require_weights(graph, [*placement.layers, *few_bits], source)
    with_feedback = [*few_bits, *(placement.layers if step.int8_rounding == "feedback" else ())]
    count = frames_to_fit(graph, with_feedback, step.frames, walks=2)
    kept: list[np.ndarray] = []
    probe = range_probe(graph)
    remembered = _remembering(chain(first, rest), kept, count)
    with_largest = [*placement.quantized, *probe.outputs]
    histograms = observe(probe.model, with_largest, islice(remembered, RANGE_FRAMES))
    histograms = observe(graph.model, placement.quantized, remembered, histograms)
    if not kept:
        raise CompressError("quantize: nothing to calibrate with", expected="at least one frame", found="none")
    scales, snr_db = (
        choose_scales(graph, placement, histograms, step.ranges, kept[:PROBES]) if placement.layers else ({}, {})
    )
    if plan is None:
        placement = place(graph, kept_float + [name for name, ratio in snr_db.items() if ratio < step.min_snr_db])
        if not placement.layers:
            raise CompressError(
                f"{source.name}: every layer is too noisy in INT8",
                expected=f"at least one with {step.min_snr_db:g} dB",
                found=f"at best {max(snr_db.values()):.1f} dB",
                fix="lower `min_snr_db` in the recipe, or use recipe float",
            )
    forms = _forms(graph, placement, planned)
    quantized = Graph(copied(graph.model))
    insert_activation_pairs(quantized, placement, scales)
    stored = reconstruct(graph, quantized, forms, kept, kept, step.int8_rounding, coded_steps or {})
    store_weights(quantized, stored)
    apply(quantized)
    float32 = nodes_beyond_half(graph, histograms)
    pin(quantized.model, float32)
    onnx.checker.check_model(quantized.model)
    onnx.save(quantized.model, out)
    total = sum(is_layer(graph, node) for node in graph.nodes)
    used = {name: scales[name] for group in placement.groups for name in group}
    return QuantizationResult(used, snr_db, forms, total, float32)


def frames_to_fit(graph: Graph, with_feedback: Iterable[str], frames: int, walks: int) -> int:
    """Return the number of frames for fitting weights: `frames`, or more for rounding with feedback, within memory.

    with_feedback: names of the layers that are rounded with feedback; walks: number of graphs in memory at once.
    """
    nodes, shapes = {node.name: node for node in graph.nodes}, shapes_of(graph)
    for name in with_feedback:
        layer, shape = layer_of(graph, nodes[name]), shapes.get(nodes[name].input[0], ())
        if layer is not None and shape and all(shape):
            needed = min(FEEDBACK_PATCHES, 2 * layer.matrices.shape[2])
            frames = max(frames, -(-needed // layer.count(shape)))
    return min(frames, max(WALK_BYTES // (walks * bytes_per_frame(graph) + 1), 1))


def prepared(source: Path, for_nvfp4: bool = False) -> Graph:
    """Load the float graph, with a name for every node, and separate parameters for every layer.

    for_nvfp4: raise it to the opset of NVFP4. Raises CompressError if that is impossible.
    """

    model = read_model(source)
    drop_left_out(model)
    name_nodes(model)  # before nodes are added: generated names contain the node's number
    try:
        model = raise_for_nvfp4(model, source.name) if for_nvfp4 else model
    except SpecError as error:
        raise CompressError(
            f"{source.name}: its opset cannot be raised",
            expected=f"opset {OPSET}, for nvfp4",
            found=error.found,
            fix="export it at that opset, or plan without nvfp4",
        ) from error
    name_nodes(model)
    own_parameters(model)
    return Graph(model)


def unreadable(graph: Graph) -> list[str]:
    """Return the layers with constant weights that cannot be reconstructed, such as 3-D convolutions."""
    return [
        node.name
        for node in graph.nodes
        if is_layer(graph, node) and graph.shape(node.input[1]) is not None and layer_of(graph, node) is None
    ]


def require_weights(graph: Graph, quantized: Collection[str], source: Path) -> None:
    """Raise CompressError if `quantized` is empty or has a layer with computed weights, or a weight is not finite."""
    layers = [node for node in graph.nodes if is_layer(graph, node)]
    if not quantized:
        raise CompressError(
            f"{source.name}: nothing to quantize",
            expected="convolutions, or products with constant matrices, before the last ones, which stay float",
            found=f"{len(layers)}, with none before the last" if layers else "none",
        )
    for node in layers:
        values = [graph.constant(name) for name in node.input[1:]]
        computed = node.name in quantized and values[0] is None
        if computed or not all(np.isfinite(value).all() for value in values if value is not None):
            found = "computed ones" if computed else "one that is not finite"
            raise CompressError(f"quantize: layer {node.name}", expected="constant, finite weights", found=found)


def _remembering(frames: Iterable[np.ndarray], first: list[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield the frames; append the first ones to `first` until it has `count`."""
    for frame in frames:
        if len(first) < count:
            first.append(frame)
        yield frame


def _forms(graph: Graph, placement: QuantizerPlacement, plan: Mapping[str, WeightFormat]) -> dict[str, WeightFormat]:
    """Return the storage format of every layer's weights; the constants of DFL are not weights."""
    quantized = {*placement.layers, *(name for name, form in plan.items() if form == "nvfp4")}
    return {
        node.name: plan.get(node.name, "int8") if node.name in quantized else "float16"
        for node in graph.nodes
        if is_layer(graph, node) and not is_dfl(graph, node) and layer_of(graph, node) is not None
    }


def reconstruct(
    graph: Graph,
    quantized: Graph,
    forms: Mapping[str, WeightFormat],
    frames: Sequence[np.ndarray],
    read_frames: Sequence[np.ndarray],
    int8_rounding: str,
    coded_steps: Mapping[str, float],
) -> dict[str, Stored]:
    """Compute the weights of all layers in graph order; return the stored form of quantized ones, by node name.

    frames: inputs of `graph`; read_frames: inputs of `quantized` for the same scenes. Biases and weights are also
    changed in `quantized`, in floating point.
    """
    stored: dict[str, Stored] = {}
    reference, approximate = Walk(graph, frames), Walk(quantized, read_frames)
    nodes = {node.name: node for node in graph.nodes}
    inputs = {node.name: node.input for node in quantized.nodes}
    levels = levels_of(graph)

    def decide(name: str) -> _Decided:
        layer = layer_of(graph, nodes[name])
        assert layer is not None, "only such layers have a format"
        pair = reference.values(nodes[name].input[0]), approximate.values(inputs[name][0])
        return _decide(layer, forms[name], *pair, int8_rounding == "feedback", coded_steps.get(name))

    # With BLAS threads in each worker, linear algebra takes twice as long, and its sums depend on the machine.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(WORKERS) as pool:
        for level in range(1, max(levels.values()) + 1):
            names = [name for name in forms if levels[name] == level]
            for name, (values, codes) in zip(names, pool.map(decide, names), strict=True):
                for parameter, value in values.items():
                    approximate.replace(parameter, value)
                if codes is not None:
                    stored[name] = codes
            reference.advance(level)
            approximate.advance(level)
            approximate.select_as(reference)
    return stored


_Decided = tuple[dict[str, np.ndarray], Stored | None]


def _decide(
    layer: LayerView,
    form: WeightFormat,
    reference: list[np.ndarray],
    read: list[np.ndarray],
    int8_feedback: bool,
    step: float | None,
) -> _Decided:
    """Return a layer's initializers with the values that the engine uses, and the stored form of quantized weights."""
    with_feedback = form not in ("float16", "int8") or (form == "int8" and int8_feedback)
    halves = _halves(layer, reference, read, MIN_FEEDBACK_PATCHES if with_feedback else MIN_PATCHES)
    fit = refit(layer.matrices, halves)
    moments = pooled(*halves)
    stored: Stored | None = None
    if form == "float16":
        used = as_short_half(fit.weights)
    elif not with_feedback:
        codes, scales = quantize_channels(fit.weights.reshape(layer.weights.shape))
        stored, used = (codes, scales), dequantize_channels(codes, scales).reshape(fit.weights.shape)
    else:
        steps = [] if step is None else [step]
        ((stored, used),) = stored_in(form, fit.weights, moments.covariance, layer.weights.shape, steps)
    bias = layer.bias + bias_for(fit, used, moments).ravel()
    return layer.initializers(used.reshape(layer.weights.shape), as_half(bias)), stored


def _halves(
    layer: LayerView, reference: list[np.ndarray], read: list[np.ndarray], patches: int
) -> tuple[Moments, Moments]:
    """Return the moments of the same patches in both graphs, for each half of the frames. patches: least number."""
    indices = layer.draw_patches(reference, max(patches, PATCHES_PER_WEIGHT * layer.matrices.shape[2]))
    middle = max(sum(map(len, indices)) // 2, 1)
    ours, theirs = (
        np.concatenate([layer.patches(value, index) for value, index in zip(values, indices, strict=True)], axis=1)
        for values in (reference, read)
    )
    parts = slice(None, middle), slice(-middle, None)
    biased = layer.bias_name is not None
    first, second = (moments_of(layer.matrices, ours[:, part], theirs[:, part], biased) for part in parts)
    return first, second

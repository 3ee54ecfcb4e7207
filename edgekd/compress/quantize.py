"""INT8 as explicit Q/DQ: the float graph in, the graph that ships out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.calibrate import observe
from edgekd.compress.graph import Graph
from edgekd.compress.placement import Placement, place
from edgekd.compress.ranges import MagnitudeHistogram, merged, scale_of
from edgekd.compress.sensitivity import signal_to_noise
from edgekd.errors import CompressError
from edgekd.formats.int8 import quantize_channels

PROBES = 8
"""Frames on which each convolution's noise is measured."""


@dataclass(frozen=True)
class Quantized:
    """A Q/DQ graph on disk.

    scales: INT8 scale of every quantized activation and of the tensors that share it, by tensor name in the float
    graph; snr_db: signal-to-noise ratio of each convolution in INT8, by node name; int8: those that ship in INT8;
    convolutions: how many there are in all.
    """

    scales: Mapping[str, float]
    snr_db: Mapping[str, float]
    int8: tuple[str, ...]
    convolutions: int


def quantize(
    source: Path, out: Path, frames: Iterable[np.ndarray], ranges: str = "mse", min_snr_db: float = 25.0
) -> Quantized:
    """Write `out`, the INT8 Q/DQ version of the float ONNX graph `source`.

    frames: calibration frames float32 [1, 3, h, w], read once. ranges: `entropy`, `mse` or `max`. min_snr_db: a
    convolution whose output would be noisier than this in INT8 stays float.
    Raises CompressError where nothing can be quantized, or a weight or an activation is not finite.
    """
    import onnx

    model = onnx.load(source)
    _name_nodes(model)
    graph = Graph(model)
    placement = place(graph)
    _require_weights(graph, placement, source)
    frame = model.graph.input[0].name
    probes: list[np.ndarray] = []
    histograms = observe(source, placement.quantized, _remembering(frames, probes))
    if not probes:
        raise CompressError("quantize: nothing to calibrate with", expected="at least one frame", found="none")
    scales = group_scales(placement, histograms, ranges, frame)
    snr_db = signal_to_noise(graph, placement, scales, probes)
    noisy = {name for name, ratio in snr_db.items() if ratio < min_snr_db}
    if noisy:
        placement = place(graph, noisy)
        scales = group_scales(placement, histograms, ranges, frame)
    if not placement.convolutions:
        raise CompressError(
            f"{source.name}: every convolution is too noisy in INT8",
            expected=f"at least one with {min_snr_db:g} dB",
            found=f"at best {max(snr_db.values()):.1f} dB",
            fix="lower `min_snr_db` in the recipe, or use recipe float",
        )
    _insert_activation_pairs(graph, placement, scales)
    for name in placement.convolutions:
        _store_weights_as_int8(graph, name)
    _rebuild(model, graph)
    onnx.checker.check_model(model)
    onnx.save(model, out)
    total = sum(node.op_type == "Conv" for node in graph.nodes)
    return Quantized(scales, snr_db, placement.convolutions, total)


def group_scales(
    placement: Placement, histograms: Mapping[str, MagnitudeHistogram], ranges: str, frame: str
) -> dict[str, float]:
    """One scale per group, for each of its tensors. The frame itself is never clipped: white is a value like others."""
    scales = {}
    for group in placement.groups:
        seen = merged([histograms[name] for name in group if name in histograms])
        scales.update(dict.fromkeys(group, scale_of(seen, "max" if frame in group else ranges)))
    return scales


def _require_weights(graph: Graph, placement: Placement, source: Path) -> None:
    """Refuse a graph with no convolution to quantize, or with one whose weights INT8 cannot hold."""
    if not placement.convolutions:
        raise CompressError(
            f"{source.name}: nothing to quantize", expected="convolutions before the head", found="none"
        )
    for node in graph.nodes:
        if node.name in placement.convolutions:
            weights = graph.constant(node.input[1])
            if weights is None or not np.isfinite(weights).all():
                found = "computed ones" if weights is None else "a weight that is not finite"
                raise CompressError(f"quantize: layer {node.name}", expected="constant, finite weights", found=found)


def _remembering(frames: Iterable[np.ndarray], first: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, of which the first few are also put into `first`."""
    for frame in frames:
        if len(first) < PROBES:
            first.append(frame)
        yield frame


def _name_nodes(model: Any) -> None:
    """Names for nodes that have none: placement speaks of nodes by name."""
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}" if f"{node.op_type}_{index}" not in taken else f"edgekd_{index}"


def _insert_activation_pairs(graph: Graph, placement: Placement, scales: Mapping[str, float]) -> None:
    """One QuantizeLinear/DequantizeLinear pair per quantized tensor; the placement's edges read its output."""
    from onnx import helper, numpy_helper

    pairs: dict[str, list[Any]] = {}
    for name in placement.quantized:
        scale, zero = f"{name}/scale", f"{name}/zero_point"
        graph.model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(scales[name], np.float32), scale),
                numpy_helper.from_array(np.array(0, np.int8), zero),
            ]
        )
        pairs[name] = [
            helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}/int8"], f"{name}/quantize"),
            helper.make_node("DequantizeLinear", [f"{name}/int8", scale, zero], [f"{name}/dq"], f"{name}/dequantize"),
        ]
    by_name = {node.name: node for node in graph.nodes}
    for node_name, index in placement.edges:
        by_name[node_name].input[index] += "/dq"
    ordered = [*pairs.get(graph.model.graph.input[0].name, [])]
    for node in graph.nodes:
        ordered.append(node)
        for output in node.output:
            ordered.extend(pairs.get(output, []))
    graph.nodes = ordered


def _store_weights_as_int8(graph: Graph, name: str) -> None:
    """Replace a convolution's float weights by INT8 codes and a per-channel DequantizeLinear."""
    from onnx import helper, numpy_helper

    at = next(index for index, node in enumerate(graph.nodes) if node.name == name)
    node = graph.nodes[at]
    weights = graph.constant(node.input[1])
    assert weights is not None, "checked before calibration"
    codes, scales = quantize_channels(weights)
    stem = f"{node.input[1]}/{name}"
    zeros = np.zeros(len(scales), np.int8)
    names = [f"{stem}/{part}" for part in ("int8", "scale", "zero_point")]
    for value, label in zip((codes, scales, zeros), names, strict=True):
        graph.model.graph.initializer.append(numpy_helper.from_array(value, label))
    graph.nodes.insert(at, helper.make_node("DequantizeLinear", names, [f"{stem}/dq"], f"{stem}/dequantize", axis=0))
    node.input[1] = f"{stem}/dq"


def _rebuild(model: Any, graph: Graph) -> None:
    """Put the nodes back in order and drop the initializers and shapes that nothing refers to any more."""
    nodes = list(graph.nodes)
    used = {name for node in nodes for name in node.input}
    initializers = [initializer for initializer in model.graph.initializer if initializer.name in used]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)

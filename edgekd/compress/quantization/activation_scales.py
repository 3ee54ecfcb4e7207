"""INT8 scales of every activation of a quantized graph, for TensorRT's calibration cache.

Q/DQ contains the scales of layers' inputs. TensorRT's implicit quantization and the DLA need more: a layer computes in
INT8 only if its output, and every tensor up to the next layer, also have scales ("Missing scale and zero-point for
tensor", TensorRT's builder). These are measured on the graph without Q/DQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.layerwise import shapes_of
from edgekd.compress.quantization.placement import CUTS_VALUES, MOVES_VALUES, shared_scales
from edgekd.compress.quantization.ranges import merged, scale_of
from edgekd.core.errors import CompressError
from edgekd.core.formats.activations import float_activations, missing_scales
from edgekd.core.formats.calibration_cache import from_text, to_text
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.graph.session import parts_within
from edgekd.graph.view import Graph

RANGES = "mse"
"""Rule for the ranges of tensors that no quantized layer reads, so that no layer's error can be compared."""
PASS_BYTES = 256 << 20
"""Largest size in bytes of one frame's activations in a calibration pass, which holds two frames."""


def write_cache(source: Path, out: Path, frames: Callable[[], Iterable[np.ndarray]], tensorrt: str) -> dict[str, int]:
    """Write `out`, the calibration cache of the Q/DQ graph `source` for a version of TensorRT.

    Arguments and errors as for `activation_scales`. Returns the number of `activations` with a scale, and of those
    without one, `missing`.
    """
    scales = activation_scales(source, frames)
    out.write_text(to_text(scales, tensorrt), "utf-8")
    missing = missing_scales(plain_graph(source.read_bytes()).onnx, from_text(out.read_text("utf-8")))
    return {"activations": len(scales), "missing": len(missing)}


def activation_scales(source: Path, frames: Callable[[], Iterable[np.ndarray]]) -> dict[str, float]:
    """Return the INT8 scale of each floating-point activation of the Q/DQ graph `source`, in order of execution.

    Names are those of the graph without Q/DQ (`formats.plain_graph`). Scales in Q/DQ are kept exactly.
    frames: returns the calibration frames float32 [1, 3, h, w] on each call.
    Raises CompressError if Q/DQ cannot be removed from the graph, or an activation is not finite.
    """
    import onnx

    try:
        plain = plain_graph(source.read_bytes())
    except ValueError as error:
        raise CompressError(f"{source.name}: its INT8 cannot be read", found=str(error)) from error
    names = float_activations(plain.onnx)
    graph = Graph(onnx.load_from_string(plain.onnx))
    groups = [
        [name for name in group if name in set(names)]
        for group in shared_scales(graph, names, MOVES_VALUES - CUTS_VALUES)
    ]
    scales = known_scales(graph, groups, plain.scales)
    unknown = [group for group in groups if group[0] not in scales]
    histograms = {}
    shapes = shapes_of(graph)
    names_of_unknown = [name for group in unknown for name in group]
    for part in parts_within(names_of_unknown, lambda name: 4 * int(np.prod(shapes.get(name, ()))), PASS_BYTES):
        histograms.update(observe(graph.model, part, frames()))
    ends = {graph.model.graph.input[0].name, *graph.outputs}
    for group in unknown:
        method = RANGES if ends.isdisjoint(group) else "max"
        scales.update(dict.fromkeys(group, scale_of(merged([histograms[name] for name in group]), method)))
    return {name: scales[name] for name in names}


def known_scales(graph: Graph, groups: Sequence[Sequence[str]], stated: Mapping[str, float]) -> dict[str, float]:
    """Return the scales that follow from the scales in Q/DQ, `stated`, by tensor name.

    A group of tensors with the same values has one scale: the largest stated one. A tensor that is cut into parts with
    known scales gets the largest of these, so that cutting does not round again.
    """
    group_of = {name: index for index, group in enumerate(groups) for name in group}
    known: dict[int, float] = {}
    for name, scale in stated.items():
        if name in group_of:
            known[group_of[name]] = max(scale, known.get(group_of[name], 0.0))
    for node in reversed(graph.nodes):
        whole = group_of.get(node.input[0]) if node.op_type in CUTS_VALUES else None
        if whole is not None and whole not in known:
            parts = [group_of[name] for name in _parts(graph, groups[whole])]
            if known.keys() >= set(parts):
                known[whole] = max(known[part] for part in parts)
    return {**{name: known[group] for name, group in group_of.items() if group in known}, **stated}


def _parts(graph: Graph, group: Sequence[str]) -> Iterator[str]:
    """Yield the tensors that are slices of a group's tensors."""
    for name in group:
        for node, index in graph.consumers(name):
            if node.op_type in CUTS_VALUES and index == 0:
                yield from filter(None, node.output)

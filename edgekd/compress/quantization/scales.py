"""INT8 scales of activations: computed from histograms, chosen by the noise of the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekd.compress.quantization.placement import QuantizerPlacement
from edgekd.compress.quantization.ranges import METHODS, MagnitudeHistogram, merged, scale_of
from edgekd.compress.quantization.sensitivity import decibels, output_noise
from edgekd.graph.view import Graph


def choose_scales(
    graph: Graph,
    placement: QuantizerPlacement,
    histograms: Mapping[str, MagnitudeHistogram],
    ranges: str,
    probes: Sequence[np.ndarray],
) -> tuple[dict[str, float], dict[str, float]]:
    """Return a scale for every tensor of the placement's groups, and the signal-to-noise ratio in dB of each layer.

    ranges: a method of `ranges.METHODS`, or `best`: for each group the one with the smallest relative noise, summed
    over its readers, on the frames `probes` float32 [1, 3, h, w].
    """
    frame = graph.model.graph.input[0].name
    methods = sorted(METHODS) if ranges == "best" else [ranges]
    choices = [group_scales(placement, histograms, method, frame) for method in methods]
    noise = output_noise(graph, placement, choices, probes)
    input_of = {node.name: node.input[0] for node in graph.nodes if node.name in placement.layers}
    scales: dict[str, float] = {}
    snr_db: dict[str, float] = {}
    for group in placement.groups:
        members = set(group)
        readers = [name for name in placement.layers if input_of[name] in members]
        relative = np.array([noise.relative(name) for name in readers])
        best = int(relative.sum(axis=0).argmin())
        scales.update((name, choices[best][name]) for name in group)
        snr_db.update((name, decibels(row[best])) for name, row in zip(readers, relative, strict=True))
    return scales, {name: snr_db[name] for name in placement.layers}


def group_scales(
    placement: QuantizerPlacement, histograms: Mapping[str, MagnitudeHistogram], method: str, frame: str
) -> dict[str, float]:
    """Return each tensor's scale, the same for a group. The frame is never clipped: white is a valid value."""
    scales = {}
    for group in placement.groups:
        histogram = merged([histograms[name] for name in group if name in histograms])
        scales.update(dict.fromkeys(group, scale_of(histogram, "max" if frame in group else method)))
    return scales

"""Sensitivity of the network to low-bit weights in each single layer, measured without labels.

The float graph runs layer by layer (`layerwise.Walk`). Each layer's weights are rounded with feedback, as in the
quantized graph, and the rest of the graph runs with them. Errors are measured on other frames than those used for
rounding: a layer with many inputs can fit a few frames exactly, so its error on them would be too small.

Errors are measured at the outputs of the last convolutions and matrix products. Later nodes (sigmoid, box decoding,
selection) only change units; in theirs, a few certain objects would dominate the error of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.compress.quantization.layers import LayerView, is_dfl, layer_of
from edgekd.compress.quantization.layerwise import Walk, levels_of
from edgekd.compress.quantization.reconstruct import Moments, Stored, moments_of, stored_in
from edgekd.compress.weight_formats import WeightFormat
from edgekd.graph.session import part_session
from edgekd.graph.view import Graph, reads

MAX_MEASURED_FRAMES = 4
"""Largest number of frames, the last ones, for measuring errors; at most a quarter. The others are for rounding."""
PATCHES = 8192
"""Number of patches of a layer's input, over all frames, for rounding its weights and for the local noise."""
MIN_POWER = 1e-30
"""Lower bound of divisors."""

TYPICAL_STEP = 0.25
"""Step of coded INT8 with about 3.9 bits per weight."""
STEPS = (0.125, 0.354, 1.0)
"""Measured steps of coded INT8: about 4.7, 3.5 and 2.3 bits per weight. Values for steps between are interpolated."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """The layer `name` in the format `form`, with its bias float32 [O].

    stored: its weights as stored in a graph; local_noise: noise power / signal power at its own output; output_error:
    mean relative error of the network's last layers (`relative_error`); step: step of coded INT8
    (`reconstruct.coded_with_feedback`), None in other formats.
    """

    name: str
    form: WeightFormat
    stored: Stored
    bias: np.ndarray
    local_noise: float
    output_error: float
    step: float | None = None


def measure_rounded(
    graph: Graph, forms: Mapping[str, Sequence[WeightFormat]], frames: Sequence[np.ndarray]
) -> Iterator[Rounded]:
    """Measure each layer in each of its low-bit `forms`, as the only rounded layer of a float graph; frames float32.

    The output error of `coded` is measured with the finest step only; for other steps it is scaled by the local noise.

    Layers must have constant weights, and parameters that no other node reads (`rewrite.own_parameters`).
    Memory: the tensors that are live between two layers, for each frame.
    """
    walk, levels = Walk(graph, frames), levels_of(graph)
    ends = last_products(graph)
    measured = min(max(len(frames) // 4, 1), MAX_MEASURED_FRAMES)
    reference = _Rest(graph, walk, levels, 1, ends).run({}, measured)
    for level in range(1, max(levels.values(), default=0) + 1):
        rest = _Rest(graph, walk, levels, level, ends)
        for node in graph.nodes:
            for form in forms.get(node.name, ()) if levels[node.name] == level else ():
                layer = layer_of(graph, node)
                assert layer is not None, "`forms` has only layers with constant weights"
                moments, unseen = _sampled(layer, walk.values(node.input[0]), measured)
                steps: Sequence[float | None] = STEPS if form == "coded" else (None,)
                gain = None
                for step, rounded in zip(steps, _rounded(layer, moments, unseen, form), strict=True):
                    stored, used, bias, noise = rounded
                    if gain is None:
                        outputs = rest.run(layer.initializers(used, bias), measured)
                        # The outputs of ends before this level do not change: error 0.
                        errors = [relative_error(reference[end], value) for end, value in outputs.items()]
                        gain = sum(errors) / len(ends) / max(noise, MIN_POWER)
                    yield Rounded(node.name, form, stored, bias, noise, gain * noise, step)
        walk.advance(level)


def last_products(graph: Graph) -> tuple[str, ...]:
    """Return the outputs of the last convolutions and matrix products, in graph order; without any, graph outputs."""
    last: set[str] = set()
    passed: set[str] = set()
    waiting = list(graph.outputs)
    while waiting:
        name = waiting.pop()
        node = graph.producers.get(name)
        if node is None or name in passed:
            continue
        passed.add(name)
        if node.op_type in ("Conv", "Gemm", "MatMul") and not is_dfl(graph, node):
            last.add(name)
        else:
            waiting.extend(graph.activations(node))
    return tuple(name for node in graph.nodes for name in node.output if name in last) or tuple(graph.outputs)


def relative_error(expected: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> float:
    """Return noise power / signal power of a tensor over several frames.

    The signal is the variance around the mean of each channel (axis 1; for tensors with two axes around the mean of all
    values), so that boxes and scores have equal weight.
    """
    stacked = np.concatenate(expected).astype(np.float64)
    noise = np.square(np.concatenate(values) - stacked).sum()
    over = (0, *range(2, stacked.ndim)) if stacked.ndim > 2 else None
    return float(noise / max(np.square(stacked - stacked.mean(axis=over, keepdims=True)).sum(), MIN_POWER))


def _sampled(layer: LayerView, inputs: Sequence[np.ndarray], measured: int) -> tuple[Moments, np.ndarray]:
    """Return the moments of a layer's input on the first frames, and patches [g, n, K] of the last frames."""
    indices = layer.draw_patches(inputs, PATCHES)
    patches = [layer.patches(value, index) for value, index in zip(inputs, indices, strict=True)]
    seen, unseen = (np.concatenate(part, axis=1) for part in (patches[:-measured] or patches, patches[-measured:]))
    return moments_of(layer.matrices, seen, seen, biased=layer.bias_name is not None), unseen


def _rounded(
    layer: LayerView, moments: Moments, unseen: np.ndarray, form: str
) -> Iterator[tuple[Stored, np.ndarray, np.ndarray, float]]:
    """Round a layer by the moments of its input; yield stored form, weights, bias, and local noise on unseen patches.

    Yields once, or for `coded` once for each of STEPS.
    """
    signal = unseen @ layer.matrices.transpose(0, 2, 1) + layer.bias.reshape(layer.groups, 1, -1)
    for stored, used in stored_in(form, layer.matrices, moments.covariance, layer.weights.shape, STEPS):
        change = used - layer.matrices
        noise = (unseen - moments.mean[:, None]) @ change.transpose(0, 2, 1)
        bias = layer.bias - (change @ moments.mean[:, :, None]).ravel()
        relative = float(np.square(noise).sum() / max(np.square(signal).sum(), MIN_POWER))
        yield stored, used.reshape(layer.weights.shape), bias, relative


class _Rest:
    """The rest of the graph from a level on, up to the tensors `ends`."""

    def __init__(self, graph: Graph, walk: Walk, levels: Mapping[str, int], level: int, ends: Sequence[str]) -> None:
        self._walk = walk
        self._source = graph.model
        self._nodes = [node for node in graph.nodes if levels[node.name] >= level]
        made = {name for node in self._nodes for name in node.output}
        read = {name for node in self._nodes for name in reads(node) if name not in made}
        self._constants = [each for each in graph.model.graph.initializer if each.name in read]
        self._inputs = sorted(read.difference(each.name for each in self._constants))
        self._ends = [name for name in ends if name in made]

    def run(self, changed: Mapping[str, np.ndarray], frames: int) -> dict[str, list[np.ndarray]]:
        """Return the `ends` that this part computes, for each of the last frames, with some initializers changed."""
        from onnx import numpy_helper

        constants = [
            numpy_helper.from_array(changed[each.name], each.name) if each.name in changed else each
            for each in self._constants
        ]
        samples = {name: self._walk.values(name)[0] for name in self._inputs}
        session = part_session(self._source, self._nodes, constants, samples, self._ends)
        values = zip(*(self._walk.values(name)[-frames:] for name in self._inputs), strict=True)
        outputs = [session.run(self._ends, dict(zip(self._inputs, each, strict=True))) for each in values]
        return {name: [each[index] for each in outputs] for index, name in enumerate(self._ends)}

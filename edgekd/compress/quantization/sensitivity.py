"""Sensitivity of each layer to INT8, measured at its own output.

For every layer of the float graph, an INT8 version is computed on the same float input, for each candidate scale of the
input, at a sample of its outputs. This needs no labels, and errors do not propagate from layer to layer, so the numbers
are comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.compress.quantization.calibrate import activations
from edgekd.compress.quantization.layers import LayerView, layer_of
from edgekd.compress.quantization.placement import QuantizerPlacement
from edgekd.core.formats.int8 import LEVELS, dequantize_channels, quantize_channels
from edgekd.graph.view import Graph

NOISELESS_DB = 120.0
"""Largest signal-to-noise ratio, in dB, also without any noise: a finite number for reports."""
PATCHES = 256
"""Largest number of output positions of a layer, per frame, at which its noise is measured."""
MIN_POWER = 1e-30
"""Lower bound of divisors and of relative noise."""


@dataclass(frozen=True)
class OutputNoise:
    """Sums of squares over the outputs of n layers: `noise` [choices, n] of the INT8 versions, `signal` [n]."""

    layers: tuple[str, ...]
    noise: np.ndarray
    signal: np.ndarray

    def relative(self, layer: str) -> np.ndarray:
        """Return noise power / signal power of a layer, float64 [choices]."""
        index = self.layers.index(layer)
        return np.asarray(self.noise[:, index] / max(self.signal[index], MIN_POWER))


def decibels(relative: float) -> float:
    """Return the signal-to-noise ratio in dB, at most NOISELESS_DB, for noise power / signal power."""
    return float(min(-10 * np.log10(max(relative, MIN_POWER)), NOISELESS_DB))


def output_noise(
    graph: Graph, placement: QuantizerPlacement, choices: Sequence[Mapping[str, float]], frames: Sequence[np.ndarray]
) -> OutputNoise:
    """Measure the noise of each INT8 layer for several choices of scales, on frames float32 [1, 3, h, w].

    Outputs are computed at PATCHES positions per layer and frame, or at all.
    """
    by_name = {node.name: node for node in graph.nodes}
    twins = [_Twin.of(graph, by_name[name], choices) for name in placement.layers]
    places: list[list[np.ndarray]] = []
    noise, signal = np.zeros((len(choices), len(twins))), np.zeros(len(twins))
    tensors = list(dict.fromkeys(twin.tensor for twin in twins))
    for number, values in enumerate(activations(graph.model, tensors, frames)):
        inputs = [values[twin.tensor] for twin in twins]
        places = places or [
            twin.layer.draw_patches([each] * len(frames), PATCHES * len(frames))
            for twin, each in zip(twins, inputs, strict=True)
        ]
        for index, twin in enumerate(twins):
            powers = twin.powers(inputs[index], places[index][number])
            noise[:, index] += powers[:-1]
            signal[index] += powers[-1]
    return OutputNoise(placement.layers, noise, signal)


@dataclass(frozen=True, eq=False)
class _Twin:
    """A layer and its INT8 version, the twin.

    tensor: name of their input; weights float32 [g, K, o]: weights of the twin; bias float32 [O]; scales: scale of the
    input in each choice.
    """

    layer: LayerView
    tensor: str
    weights: np.ndarray
    bias: np.ndarray
    scales: Sequence[float]

    @classmethod
    def of(cls, graph: Graph, node: Any, choices: Sequence[Mapping[str, float]]) -> _Twin:
        layer = layer_of(graph, node)
        assert layer is not None, "placement quantizes only constant weights"
        rounded = dequantize_channels(*quantize_channels(layer.weights)).reshape(layer.matrices.shape)
        bias = layer.bias if layer.bias_name in node.input else np.zeros_like(layer.bias)
        scales = [choice[node.input[0]] for choice in choices]
        return cls(layer, node.input[0], rounded.transpose(0, 2, 1), bias, scales)

    def powers(self, values: np.ndarray, places: np.ndarray) -> list[float]:
        """Return the noise power for each choice, then the signal power, at patches `places` of an input."""
        read = self.layer.patches(values, places)
        exact = read @ self.layer.matrices.transpose(0, 2, 1)
        noise = {scale: _power(self._codes(read, scale) @ (self.weights * scale) - exact) for scale in set(self.scales)}
        groups, _, outputs = exact.shape
        return [*(noise[scale] for scale in self.scales), _power(exact + self.bias.reshape(groups, 1, outputs))]

    @staticmethod
    def _codes(read: np.ndarray, scale: float) -> np.ndarray:
        codes = read / np.float32(scale)
        np.rint(codes, out=codes)
        return np.clip(codes, -LEVELS - 1, LEVELS, out=codes)


def _power(values: np.ndarray) -> float:
    return float(np.vdot(values, values))

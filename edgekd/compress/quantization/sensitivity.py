"""Sensitivity of each layer to INT8, measured at its own output.

Beside every layer of the float graph its INT8 twin is computed on the same float input, for each candidate scale of the
input, at some of its outputs. It needs no labels, and no error passes from layer to layer, so the numbers are
comparable.
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
"""Signal-to-noise ratio without noise, in dB: a number for reports."""
PATCHES = 256
"""Outputs of a layer in each frame by which its noise is measured, where there are more."""
MIN_POWER = 1e-30
"""Smallest divisor of a power."""


@dataclass(frozen=True)
class OutputNoise:
    """Sums of squares over the outputs of n layers: `noise` [choices, n] of their twins, `signal` [n]."""

    layers: tuple[str, ...]
    noise: np.ndarray
    signal: np.ndarray

    def relative(self, layer: str) -> np.ndarray:
        """Return noise by signal, float64 [choices]."""
        index = self.layers.index(layer)
        return np.asarray(self.noise[:, index] / max(self.signal[index], MIN_POWER))


def decibels(relative: float) -> float:
    """Return the signal-to-noise ratio in dB of noise relative to the signal."""
    return float(min(-10 * np.log10(max(relative, MIN_POWER)), NOISELESS_DB))


def output_noise(
    graph: Graph, placement: QuantizerPlacement, choices: Sequence[Mapping[str, float]], frames: Sequence[np.ndarray]
) -> OutputNoise:
    """Measure the noise of each INT8 layer for several choices of scales, on frames float32 [1, 3, h, w].

    Of each layer PATCHES outputs of a frame are computed, or all.
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
    """A layer and its INT8 twin. tensor: what they read; weights float32 [g, K, o]: of the twin; bias float32 [O];
    scales: of each choice.
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
        """Return the power of the noise for each choice, then that of the signal, at places of an input."""
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

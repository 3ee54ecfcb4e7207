"""Sensitivity of each layer to INT8, measured at its own output.

Beside every layer of the float graph run its INT8 twins on the same float input, one for each candidate scale of the
input. It needs no labels, and no error passes from layer to layer, so the numbers are comparable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.compress.quantization.layers import layer_of
from edgekd.compress.quantization.placement import QuantizerPlacement
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels
from edgekd.graph.session import copied, cpu_session
from edgekd.graph.view import Graph

NOISELESS_DB = 120.0
"""Signal-to-noise ratio without noise, in dB: a number for reports."""
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
    graph: Graph, placement: QuantizerPlacement, choices: Sequence[Mapping[str, float]], frames: Iterable[np.ndarray]
) -> OutputNoise:
    """Measure the noise of each INT8 layer for several choices of scales, over frames float32 [1, 3, h, w]."""
    by_name = {node.name: node for node in graph.nodes}
    inputs = [by_name[name].input[0] for name in placement.layers]
    scales = [[choice[tensor] for choice in choices] for tensor in inputs]
    session, frame_name = _twin_session(graph, [by_name[name] for name in placement.layers], scales)
    names = [output.name for output in session.get_outputs()]
    power = dict.fromkeys(names, 0.0)
    for frame in frames:
        for name, value in zip(names, session.run(names, {frame_name: frame}), strict=True):
            power[name] += float(value)
    noise = [[power[_noise(c, scale)] for scale in of] for c, of in zip(placement.layers, scales, strict=True)]
    signal = [power[f"{name}/signal"] for name in placement.layers]
    return OutputNoise(placement.layers, np.array(noise).T, np.array(signal))


def _noise(layer: str, scale: float) -> str:
    return f"{layer}/noise/{scale.hex()}"


def _twin_session(graph: Graph, nodes: Sequence[Any], scales: Sequence[Sequence[float]]) -> tuple[Any, str]:
    """Return a session on the float graph that gives noise and signal of each layer, and its input's name."""
    import onnx
    from onnx import helper

    model = copied(graph.model)
    del model.graph.output[:]
    outputs: list[str] = []
    for node, choices in zip(nodes, scales, strict=True):
        layer = layer_of(graph, node)
        assert layer is not None, "placement quantizes only constant weights"
        weights = layer.stored(dequantize_channels(*quantize_channels(layer.weights)))
        model.graph.initializer.append(_constant(f"{node.name}/twin", weights))
        for scale in dict.fromkeys(choices):
            twin, constants = _twin(node, scale)
            model.graph.node.extend(twin)
            model.graph.initializer.extend(constants)
            outputs.append(_noise(node.name, scale))
        outputs.append(f"{node.name}/signal")
        power = helper.make_node("ReduceSumSquare", [node.output[0]], [outputs[-1]], keepdims=0)
        model.graph.node.append(power)
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in outputs)
    return cpu_session(model), model.graph.input[0].name


def _twin(node: Any, scale: float) -> tuple[list[Any], list[Any]]:
    """Return the nodes and constants of a layer's INT8 twin, up to the power of its noise."""
    from onnx import helper

    stem = f"{node.name}/twin/{scale.hex()}"
    constants = [_constant(f"{stem}/scale", np.float32(scale)), _constant(f"{stem}/zero", np.int8(0))]
    twin = copied(node)
    twin.name = stem
    twin.input[0], twin.input[1], twin.output[0] = f"{stem}/x", f"{node.name}/twin", f"{stem}/y"
    nodes = [
        helper.make_node("QuantizeLinear", [node.input[0], f"{stem}/scale", f"{stem}/zero"], [f"{stem}/q"]),
        helper.make_node("DequantizeLinear", [f"{stem}/q", f"{stem}/scale", f"{stem}/zero"], [f"{stem}/x"]),
        twin,
        helper.make_node("Sub", [node.output[0], f"{stem}/y"], [f"{stem}/difference"]),
        helper.make_node("ReduceSumSquare", [f"{stem}/difference"], [_noise(node.name, scale)], keepdims=0),
    ]
    return nodes, constants


def _constant(name: str, value: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value), name)

"""How much each convolution loses in INT8, measured where it happens: at its own output.

Beside every convolution of the float graph runs its INT8 twin, on the same float input. Neither needs labels, and no
error is carried from layer to layer, so the numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgekd.compress.graph import Graph
from edgekd.compress.placement import Placement
from edgekd.formats.int8 import dequantize_channels, quantize_channels

NOISELESS_DB = 120.0


def signal_to_noise(
    graph: Graph, placement: Placement, scales: Mapping[str, float], frames: Iterable[np.ndarray]
) -> dict[str, float]:
    """Signal-to-quantization-noise ratio in dB of each INT8 convolution's output, over frames float32 [1, 3, h, w]."""
    session, input_name = _twin_session(graph, placement, scales)
    names = [output.name for output in session.get_outputs()]
    power = np.zeros(len(names))
    for frame in frames:
        power += np.array([float(value) for value in session.run(names, {input_name: frame})])
    noise, signal = power[0::2], power[1::2]
    # Without noise (an output that is always zero, say) nothing is lost.
    ratios = np.full(len(noise), NOISELESS_DB)
    noisy = noise > 0
    ratios[noisy] = np.minimum(10 * np.log10(np.maximum(signal[noisy], 1e-30) / noise[noisy]), NOISELESS_DB)
    return dict(zip(placement.convolutions, ratios.tolist(), strict=True))


def _twin_session(graph: Graph, placement: Placement, scales: Mapping[str, float]) -> tuple[Any, str]:
    """A session on the float graph that returns noise and signal power of each convolution, and its input's name."""
    import onnx
    import onnxruntime

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    by_name = {node.name: node for node in graph.nodes}
    for name in placement.convolutions:
        nodes, constants, outputs = _twin(graph, by_name[name], scales[by_name[name].input[0]])
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants)
        model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, model.graph.input[0].name


def _twin(graph: Graph, node: Any, scale: float) -> tuple[list[Any], list[Any], tuple[str, str]]:
    """The nodes and constants of one convolution's INT8 twin, and the names of its noise and signal power."""
    from onnx import helper, numpy_helper

    stem = f"{node.name}/twin"
    weights = graph.constant(node.input[1])
    assert weights is not None, "placement quantizes only constant weights"
    rounded = dequantize_channels(*quantize_channels(weights))
    constants = [
        numpy_helper.from_array(np.array(scale, np.float32), f"{stem}/scale"),
        numpy_helper.from_array(np.array(0, np.int8), f"{stem}/zero"),
        numpy_helper.from_array(rounded, f"{stem}/weights"),
    ]
    twin = type(node)()
    twin.CopyFrom(node)
    twin.name = stem
    twin.input[0], twin.input[1], twin.output[0] = f"{stem}/x", f"{stem}/weights", f"{stem}/y"
    nodes = [
        helper.make_node("QuantizeLinear", [node.input[0], f"{stem}/scale", f"{stem}/zero"], [f"{stem}/q"]),
        helper.make_node("DequantizeLinear", [f"{stem}/q", f"{stem}/scale", f"{stem}/zero"], [f"{stem}/x"]),
        twin,
        helper.make_node("Sub", [node.output[0], f"{stem}/y"], [f"{stem}/difference"]),
        helper.make_node("ReduceSumSquare", [f"{stem}/difference"], [f"{stem}/noise"], keepdims=0),
        helper.make_node("ReduceSumSquare", [node.output[0]], [f"{stem}/signal"], keepdims=0),
    ]
    return nodes, constants, (f"{stem}/noise", f"{stem}/signal")

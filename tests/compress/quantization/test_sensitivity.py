"""The noise of an INT8 twin is that of the arithmetic written out, and adds up over frames."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from small_graph import frames, small_model

from edgekd.compress.quantization.layers import layer_of
from edgekd.compress.quantization.placement import place
from edgekd.compress.quantization.sensitivity import NOISELESS_DB, OutputNoise, decibels, output_noise
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels
from edgekd.graph.view import Graph


def tensor(graph: Graph, name: str, frame: np.ndarray) -> np.ndarray:
    """What the float graph makes of a frame inside."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = frame if name == "images" else session.run([name], {"images": frame})[0]
    return found


def written_out(graph: Graph, name: str, scale: float, frame: np.ndarray) -> tuple[float, float]:
    """Noise and signal of a convolution's INT8 twin, with nothing but NumPy."""
    node = next(node for node in graph.nodes if node.name == name)
    layer = layer_of(graph, node)
    assert layer is not None
    values = tensor(graph, node.input[0], frame)
    coarse = np.clip(np.rint(values / np.float32(scale)), -127, 127) * np.float32(scale)
    rounded = dequantize_channels(*quantize_channels(layer.weights)).reshape(layer.matrices.shape)
    everywhere = np.arange(layer.count(values.shape))
    exact = layer.patches(values, everywhere) @ layer.matrices.transpose(0, 2, 1)
    twin = layer.patches(coarse, everywhere) @ rounded.transpose(0, 2, 1)
    return float(((exact - twin) ** 2).sum()), float(((exact[0] + layer.bias) ** 2).sum())


def choices_of(graph: Graph, *steps: float) -> list[dict[str, float]]:
    """One scale for all tensors, for each step; float32 numbers."""
    names = [name for group in place(graph).groups for name in group]
    return [dict.fromkeys(names, float(np.float32(step))) for step in steps]


def test_noise_and_signal_are_those_of_the_arithmetic_written_out() -> None:
    graph, (frame,) = Graph(small_model()), frames(1)
    found = output_noise(graph, place(graph), choices_of(graph, 0.01, 0.03), [frame])
    assert found.layers == ("stem", "body", "neck")
    for name in found.layers:
        expected = [written_out(graph, name, step, frame) for step in (0.01, 0.03)]
        relative = [noise / signal for noise, signal in expected]
        assert found.relative(name) == pytest.approx(relative, rel=0.02), name
        assert found.signal[found.layers.index(name)] == pytest.approx(expected[0][1], rel=1e-3)


def test_frames_add_up_and_choices_do_not_touch_each_other() -> None:
    graph, (one, two) = Graph(small_model()), frames(2)
    choices = choices_of(graph, 0.01, 0.05, 0.01)
    apart = [output_noise(graph, place(graph), choices, [frame]) for frame in (one, two)]
    both = output_noise(graph, place(graph), choices, [one, two])
    assert both.noise == pytest.approx(apart[0].noise + apart[1].noise, rel=1e-6)
    assert both.signal == pytest.approx(apart[0].signal + apart[1].signal, rel=1e-6)
    assert np.array_equal(both.noise[0], both.noise[2])
    alone = output_noise(graph, place(graph), choices[1:2], [one, two])
    assert both.noise[1] == pytest.approx(alone.noise[0], rel=1e-6)


def test_what_int8_holds_exactly_has_no_noise() -> None:
    model = small_model()
    for constant in model.graph.initializer:
        if constant.name == "stem.weight":
            codes = np.random.default_rng(0).integers(-127, 128, (8, 3, 3, 3))
            codes[:, 0, 0, 0] = 127
            constant.CopyFrom(numpy_helper.from_array((codes / 128).astype(np.float32), constant.name))
    graph, frame = Graph(model), np.rint(frames(1)[0] * 127) / np.float32(128)
    found = output_noise(graph, place(graph), choices_of(graph, 1 / 128), [frame])
    assert decibels(found.relative("stem")[0]) == NOISELESS_DB
    assert decibels(found.relative("body")[0]) < 60


def test_decibels_are_ten_times_the_logarithm() -> None:
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(2.0) == pytest.approx(-3.0103, abs=1e-4)
    assert decibels(0.0) == NOISELESS_DB


def test_a_layer_without_output_has_no_noise_either() -> None:
    silent = OutputNoise(("dead",), np.zeros((2, 1)), np.zeros(1))
    assert silent.relative("dead").tolist() == [0, 0]

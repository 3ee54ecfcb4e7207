"""Every activation of the graph without Q/DQ has an INT8 scale; what Q/DQ states is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from real_graphs import DEMO, RealGraph, real_graph
from small_graph import small_model

from edgekd.compress.quantization import activation_scales as module
from edgekd.compress.quantization.activation_scales import activation_scales
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import CompressError
from edgekd.core.formats.activations import float_activations, missing_scales
from edgekd.core.formats.calibration_cache import from_text, to_text
from edgekd.core.formats.plain_graph import PlainGraph, plain_graph
from edgekd.detectors.export import probe

FRAMES = [np.random.default_rng(seed).uniform(0, 1, (1, 3, 32, 32)).astype(np.float32) for seed in range(4)]
"""For the small network."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The small network with Q/DQ."""
    onnx.save(small_model(), tmp_path / "small.onnx")
    quantize(tmp_path / "small.onnx", tmp_path / "quantized.onnx", FRAMES, Quantize(min_snr_db=0))
    return tmp_path / "quantized.onnx"


def qdq_model(path: Path, *nodes: onnx.NodeProto, scales: dict[str, float]) -> Path:
    """A graph x float32 [1, 4, 8, 8] to y, with Q/DQ of the tensors in `scales` behind the nodes that give them."""
    constants = {"w": np.ones((4, 4, 1, 1), np.float32), "w2": np.ones((4, 2, 1, 1), np.float32)}
    constants |= {"zero": np.array(0, np.int8)}
    constants |= {f"{name}/scale": np.array(scale, np.float32) for name, scale in scales.items()}
    ordered: list[onnx.NodeProto] = []
    for node in nodes:
        ordered.append(node)
        for name in set(node.output) & scales.keys():
            ordered += [
                helper.make_node("QuantizeLinear", [name, f"{name}/scale", "zero"], [f"{name}/codes"]),
                helper.make_node("DequantizeLinear", [f"{name}/codes", f"{name}/scale", "zero"], [f"{name}/dq"]),
            ]
    graph = helper.make_graph(
        ordered,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def node(operator: str, inputs: list[str], *outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, list(outputs), outputs[0], **attributes)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolo11n.pt", "yolox_nano.onnx", DEMO)),
        *(pytest.param(name, marks=pytest.mark.release) for name in ("yolo26n.pt", "yolov8n.yaml")),
    ],
)
def test_no_activation_of_a_real_detector_is_missing(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph, quantized = real_graph(name, shared, tmp_path_factory), tmp_path / "quantized.onnx"
    images = [probe(graph.exported.spec)]
    quantize(graph.path, quantized, images, Quantize(frames=1))
    plain, scales = plain_graph(quantized.read_bytes()), activation_scales(quantized, lambda: images)
    assert missing_scales(plain.onnx, scales) == ()
    assert missing_scales(plain.onnx, plain.scales), "Q/DQ alone does not have them all"
    assert tuple(scales) == float_activations(plain.onnx), "and no others, in computing order"
    assert plain.scales.items() <= scales.items(), "bit for bit"
    assert all(0 < scale < np.inf and np.float32(scale) == scale for scale in scales.values())
    assert from_text(to_text(scales, "8.5.2")) == scales
    nodes = onnx.load_from_string(plain.onnx).graph.node
    for names in ([each.name for each in nodes], [output for each in nodes for output in each.output]):
        assert max(Counter(names).values()) == 1, "TensorRT would rename the second"
        assert all(names)


def test_the_same_frames_give_the_same_scales_however_few_tensors_a_pass_holds(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def frames() -> Iterator[np.ndarray]:
        passes.append(len(passes))
        yield from FRAMES

    whole = activation_scales(small, frames)
    assert len(passes) == 1
    monkeypatch.setattr(module, "PASS_BYTES", 4 * 8 * 16 * 16)  # as much as the largest tensor
    assert activation_scales(small, frames) == whole
    assert len(passes) > 4


def test_a_measured_scale_covers_what_the_tensor_reaches(small: Path) -> None:
    plain, scales = plain_graph(small.read_bytes()), activation_scales(small, lambda: FRAMES)
    model = onnx.load_from_string(plain.onnx)
    model.graph.output.append(onnx.ValueInfoProto(name="stem"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = max(float(np.abs(session.run(["stem"], {"images": frame})[0]).max()) for frame in FRAMES)
    assert "stem" not in plain.scales
    assert 0.4 * largest < 127 * scales["stem"] < 1.01 * largest


def test_tensors_with_the_same_values_share_a_scale(tmp_path: Path) -> None:
    source = qdq_model(
        tmp_path / "graph.onnx",
        node("Conv", ["x", "w"], "a"),
        node("MaxPool", ["a"], "pooled", kernel_shape=[1, 1]),
        node("Concat", ["a", "pooled"], "joined", axis=1),
        node("Conv", ["x", "w"], "b"),
        node("Transpose", ["b"], "turned", perm=[0, 1, 3, 2]),
        node("Concat", ["joined/dq", "turned"], "y", axis=1),
        scales={"joined": 0.25},
    )
    scales = activation_scales(source, lambda: [np.ones((1, 4, 8, 8), np.float32)])
    assert {scales[name] for name in ("a", "pooled", "joined")} == {0.25}
    assert scales["b"] == scales["turned"] == scales["y"]


def test_what_is_cut_takes_the_scale_of_its_parts_only_if_all_have_one(tmp_path: Path) -> None:
    cut = node("Split", ["whole"], "left", "right", axis=1)
    for name, read in (("one", "left/dq"), ("both", "right/dq")):
        source = qdq_model(
            tmp_path / f"{name}.onnx",
            node("Conv", ["x", "w"], "whole"),
            cut,
            node("Conv", ["left/dq", "w2"], "y1"),
            node("Conv", [read if name == "both" else "right", "w2"], "y2"),
            node("Add", ["y1", "y2"], "y"),
            scales={"left": 0.5} if name == "one" else {"left": 0.5, "right": 0.5},
        )
        scales = activation_scales(source, lambda: [np.full((1, 4, 8, 8), 100, np.float32)])
        assert scales["left"] == 0.5
        assert scales["whole"] == (0.5 if name == "both" else pytest.approx(400 / 127, rel=0.02))


def test_a_tensor_that_is_always_zero_has_the_scale_one(tmp_path: Path) -> None:
    source = qdq_model(
        tmp_path / "graph.onnx", node("Sub", ["x", "x"], "nothing"), node("Exp", ["nothing"], "y"), scales={}
    )
    scales = activation_scales(source, lambda: [np.ones((1, 4, 8, 8), np.float32)])
    assert scales["nothing"] == 1.0
    assert scales["y"] == float(np.float32(1 / 127)), "the output is not clipped"


def test_an_activation_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    source = qdq_model(tmp_path / "graph.onnx", node("Log", ["x"], "y"), scales={})
    with pytest.raises(CompressError, match=r"tensor y.*not finite"):
        activation_scales(source, lambda: [np.zeros((1, 4, 8, 8), np.float32)])


# ---------------------------------------------------------------------------------- as an engine without Q/DQ computes


def rounded(plain: PlainGraph, scales: dict[str, float], float_tensors: tuple[str, ...]) -> onnx.ModelProto:
    """The graph without Q/DQ with every activation rounded to INT8, but for the given ones."""
    model = onnx.load_from_string(plain.onnx)
    graph, nodes = model.graph, list(model.graph.node)
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero of all"))

    def pair(name: str) -> list[onnx.NodeProto]:
        graph.initializer.append(numpy_helper.from_array(np.array(scales[name], np.float32), f"{name}/s"))
        return [
            helper.make_node("QuantizeLinear", [name, f"{name}/s", "zero of all"], [f"{name}/q"]),
            helper.make_node("DequantizeLinear", [f"{name}/q", f"{name}/s", "zero of all"], [f"{name}/r"]),
        ]

    outputs = {value.name for value in graph.output}
    chosen = scales.keys() - set(float_tensors) - outputs
    del graph.node[:]
    graph.node.extend(pair(graph.input[0].name))
    for each in nodes:
        each.input[:] = [f"{name}/r" if name in chosen else name for name in each.input]
        graph.node.append(each)
        graph.node.extend(made for name in each.output if name in chosen for made in pair(name))
    return model


def run(content: bytes, frames: list[np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: frame})[0] for frame in frames])


def coco_frames(graph: RealGraph, shared: Path) -> list[np.ndarray]:
    files = sorted((shared / "data" / "coco256" / "images" / "train2017").iterdir())[:8]
    return [letterbox(cv2.imread(str(file)), graph.exported.spec.preprocess)[0] for file in files]


@pytest.mark.slow
def test_rounded_everywhere_but_in_float_layers_a_real_detector_still_detects(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph, quantized = real_graph("yolo11n.pt", shared, tmp_path_factory), tmp_path / "quantized.onnx"
    frames = coco_frames(graph, shared)
    quantize(graph.path, quantized, frames[:6], Quantize())
    plain, scales = plain_graph(quantized.read_bytes()), activation_scales(quantized, lambda: frames[:6])
    expected = run(graph.path.read_bytes(), frames[6:])

    def noise(model: onnx.ModelProto, rows: slice) -> float:
        found = run(model.SerializeToString(), frames[6:])[:, rows]
        return float(np.square(found - expected[:, rows]).sum() / np.square(expected[:, rows]).sum())

    boxes, confidences = slice(0, 4), slice(4, None)
    as_asked = rounded(plain, scales, plain.float_tensors)
    assert noise(as_asked, boxes) < 0.02
    assert noise(as_asked, confidences) < 0.4
    assert noise(rounded(plain, scales, ()), confidences) > 0.9, "joined with boxes in pixels, no confidence is left"

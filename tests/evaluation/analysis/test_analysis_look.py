"""Where to look into a network, and what is seen there: places, similarities, maps, times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import DeviceError
from edgekd.evaluation.analysis.activations import ProbedGraph, attention_maps, similarities
from edgekd.evaluation.analysis.tap_points import TapPoint, head_inputs, tap_points
from edgekd.evaluation.analysis.times import attributed, predicted, profiled
from edgekd.graph.view import Graph
from edgekd.hardware.target import load_target

SPEC = DetectorSpec(("a", "b"), Preprocess(64, 64), Head("yolo"))


@pytest.fixture
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(3)]


def write(path: Path, widths: tuple[int, int] = (8, 4), seed: int = 0, noise: float = 0.0, side: int = 64) -> Path:
    """x * sigmoid(x) behind the first layer, a box and a class head behind the second, without names of nodes."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def conv(name: str, source: str, outputs: int, inputs: int) -> onnx.NodeProto:
        value = np.random.default_rng(len(weights) + 1).normal(size=(outputs, inputs, 3, 3))
        weights[f"{name}.w"] = (value + noise * rng.normal(size=value.shape)).astype(np.float32) / 5
        return helper.make_node("Conv", [source, f"{name}.w"], [name], pads=[1, 1, 1, 1], strides=[2, 2])

    nodes = [
        conv("first", "x", widths[0], 3),
        helper.make_node("Sigmoid", ["first"], ["gate"]),
        helper.make_node("Mul", ["first", "gate"], ["first.silu"]),
        conv("second", "first.silu", widths[1], widths[0]),
        helper.make_node("Relu", ["second"], ["second.relu"]),
        conv("boxes", "second.relu", 4, widths[1]),
        conv("classes", "second.relu", 2, widths[1]),
        helper.make_node("Concat", ["boxes", "classes"], ["y"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, side // 8, side // 8])]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "looked-into", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_layer_is_shown_behind_its_activation(tmp_path: Path) -> None:
    graph = Graph(onnx.load(write(tmp_path / "a.onnx")))
    assert tap_points(graph) == (
        TapPoint("first", "first.silu", channels_last=False),
        TapPoint("second", "second.relu", channels_last=False),
        TapPoint("boxes", "boxes", channels_last=False),
        TapPoint("classes", "classes", channels_last=False),
    )


def test_heads_read_the_last_layer_that_those_of_a_level_have_in_common(tmp_path: Path, tiny_model: Path) -> None:
    assert [each.output for each in head_inputs(Graph(onnx.load(write(tmp_path / "a.onnx"))))] == ["second"]
    tiny = [each.output for each in head_inputs(Graph(onnx.load(tiny_model)))]
    assert tiny == ["cells8", "cells16", "cells32"]


def test_a_graph_is_as_itself_and_less_so_with_noise(tmp_path: Path, frames: list[np.ndarray]) -> None:
    names = ("same", "near", "far")
    others = [write(tmp_path / f"{name}.onnx", noise=noise) for name, noise in zip(names, (0, 0.05, 2), strict=True)]
    reference = ProbedGraph(write(tmp_path / "a.onnx"), SPEC)
    same, near, far = similarities(reference, [ProbedGraph(each, SPEC) for each in others], frames)
    assert list(same) == ["first", "second", "boxes", "classes"]
    for layer, value in same.items():
        assert value == pytest.approx(1.0)
        assert far[layer] < near[layer] < 1  # type: ignore[operator]


def test_a_narrower_graph_is_compared_by_the_names_of_its_tensors(tmp_path: Path, frames: list[np.ndarray]) -> None:
    reference = ProbedGraph(write(tmp_path / "a.onnx"), SPEC)
    (narrow,) = similarities(reference, [ProbedGraph(write(tmp_path / "b.onnx", widths=(5, 3)), SPEC)], frames)
    assert all(value is not None and 0 < value < 1 for value in narrow.values())


def test_maps_of_half_the_size_are_compared_and_those_that_do_not_divide_are_not(
    tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.evaluation.analysis.activations.POSITIONS", 10)
    others = []
    for side in (32, 96):
        spec = DetectorSpec(("a", "b"), Preprocess(side, side), Head("yolo"))
        others.append(ProbedGraph(write(tmp_path / f"{side}.onnx", side=side), spec))
    half, odd = similarities(ProbedGraph(write(tmp_path / "a.onnx"), SPEC), others, frames)
    assert list(half) == ["first", "second", "boxes", "classes"]
    assert all(value is not None and 0 < value < 1 for value in half.values())
    assert odd == {}
    (one,) = attention_maps(ProbedGraph(write(tmp_path / "a.onnx"), SPEC), others[0], frames[:1])
    assert one.agreement is not None


def test_many_layers_are_gathered_part_by_part(
    tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = ProbedGraph(write(tmp_path / "a.onnx"), SPEC), ProbedGraph(write(tmp_path / "b.onnx", noise=0.5), SPEC)
    at_once = similarities(sides[0], sides[1:], frames)
    monkeypatch.setattr("edgekd.evaluation.analysis.activations.MAX_SUM_BYTES", 24 * 64)
    assert similarities(sides[0], sides[1:], frames) == at_once


def test_maps_of_both_networks_at_what_heads_read(tmp_path: Path, frames: list[np.ndarray]) -> None:
    sides = ProbedGraph(write(tmp_path / "a.onnx"), SPEC), ProbedGraph(write(tmp_path / "b.onnx", noise=0.05), SPEC)
    found = list(attention_maps(*sides, frames[:2]))
    assert [(each.frame, each.layer) for each in found] == [(0, "second"), (1, "second")]
    for each in found:
        assert each.before.shape == (16, 16)
        assert each.before.max() == 255
        assert each.after is not None
        assert each.agreement is not None
        assert 0.5 < each.agreement < 1


def test_a_graph_that_cannot_run_is_an_error_of_its_own(tmp_path: Path, frames: list[np.ndarray]) -> None:
    model = onnx.load(write(tmp_path / "a.onnx"))
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, tmp_path / "b.onnx")
    reference = ProbedGraph(write(tmp_path / "a.onnx"), SPEC)
    with pytest.raises(DeviceError, match=r"b\.onnx: ONNX Runtime cannot open the graph"):
        similarities(reference, [ProbedGraph(tmp_path / "b.onnx", SPEC)], frames)


def test_times_are_predicted_for_a_target_and_profiled_here(tiny_model: Path) -> None:
    told = predicted(tiny_model, load_target("xavier"))
    assert told is not None
    assert (told.basis, set(told.us)) == ("predicted", {"cells8", "cells16", "cells32", "p3", "p4", "p5"})
    assert predicted(tiny_model, load_target("cpu")) is None
    here = profiled(tiny_model, "measured", "some CPU")
    assert set(here.us) == set(told.us)
    assert all(took > 0 for took in here.us.values())
    assert here.where.startswith("some CPU, ONNX Runtime ")


def test_a_profile_belongs_to_the_layer_with_the_longest_name_that_fits() -> None:
    def kernel(name: str, us: float) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us}

    events = [kernel("a/Conv_nchwc", 4), kernel("a/Conv_1", 2), kernel("reorder", 1), {"cat": "Session", "name": "run"}]
    assert attributed(events, ["a/Conv", "a/Conv_1"]) == ({"a/Conv": 4.0, "a/Conv_1": 2.0}, 1.0)

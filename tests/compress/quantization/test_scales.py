"""`best` takes, group by group, the range that costs the layers behind it least; the frame is never clipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graph import SIDE, frames, write

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.placement import QuantizerPlacement, place
from edgekd.compress.quantization.ranges import METHODS, MagnitudeHistogram
from edgekd.compress.quantization.scales import choose_scales, group_scales
from edgekd.graph.view import Graph

Given = tuple[Graph, QuantizerPlacement, dict[str, MagnitudeHistogram]]


def chain() -> Any:
    """Four convolutions and a head: the second reads values of equal size, the two behind it tails."""
    rng = np.random.default_rng(0)
    constants = {f"{name}.weight": rng.normal(size=(8, size, 3, 3)).astype(np.float32) for name, size in SIZES.items()}

    def conv(source: str, name: str) -> Any:
        return helper.make_node("Conv", [source, f"{name}.weight"], [name], name, pads=[1] * 4)

    nodes = [
        conv("images", "a"),
        helper.make_node("Sin", ["a"], ["even"], "even"),
        conv("even", "b"),
        conv("b", "c"),
        helper.make_node("MaxPool", ["c"], ["pooled"], "pooled", kernel_shape=[2, 2]),
        conv("pooled", "d"),
        conv("d", "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("head", TensorProto.FLOAT, [1, 8, SIDE - 1, SIDE - 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


SIZES = {"a": 3, "b": 8, "c": 8, "d": 8, "head": 8}


@pytest.fixture
def given(tmp_path: Path) -> Given:
    graph = Graph(onnx.load(write(chain(), tmp_path)))
    placement = place(graph)
    return graph, placement, observe(graph.model, placement.quantized, frames(4))


def group_noise(graph: Graph, placement: QuantizerPlacement, snr_db: dict[str, float]) -> dict[tuple[str, ...], float]:
    """Relative noise of the convolutions that read each group, summed."""
    inputs = {node.name: node.input[0] for node in graph.nodes}
    return {
        group: sum(10 ** (-snr_db[name] / 10) for name in placement.layers if inputs[name] in group)
        for group in placement.groups
    }


def test_the_best_is_never_noisier_than_any_single_method_and_none_is_the_best_everywhere(given: Given) -> None:
    graph, placement, histograms = given
    scales, snr_db = choose_scales(graph, placement, histograms, "best", frames(4))
    best = group_noise(graph, placement, snr_db)
    single = {method: choose_scales(graph, placement, histograms, method, frames(4)) for method in METHODS}
    noise = {method: group_noise(graph, placement, found[1]) for method, found in single.items()}
    for group in placement.groups:
        least = min(METHODS, key=lambda method, group=group: noise[method][group])  # type: ignore[misc]
        assert best[group] == pytest.approx(noise[least][group], rel=1e-4)
        assert scales[group[0]] == single[least][0][group[0]]
    for method in METHODS:
        assert any(noise[method][group] > 1.005 * best[group] for group in placement.groups), method


@pytest.mark.parametrize("method", METHODS)
def test_a_rare_value_is_clipped_anywhere_but_in_the_frame(method: str, given: Given) -> None:
    _, placement, _ = given
    seen = MagnitudeHistogram(1 << 30)
    seen.add(np.append(np.random.default_rng(0).normal(size=1 << 17), 7).astype(np.float32))
    scales = group_scales(placement, dict.fromkeys(placement.quantized, seen), method, "images")
    assert scales["images"] == pytest.approx(7 / 127)
    assert (scales["even"] < 6 / 127) == (method != "max")


@pytest.mark.parametrize("method", [*METHODS, "best"])
def test_a_group_has_one_scale_and_the_frame_keeps_its_range(method: str, given: Given) -> None:
    graph, placement, histograms = given
    scales, snr_db = choose_scales(graph, placement, histograms, method, frames(4))
    for group in placement.groups:
        assert len({scales[name] for name in group}) == 1
    assert scales["images"] == pytest.approx(max(frame.max() for frame in frames(4)) / 127)
    assert tuple(snr_db) == placement.layers
    assert set(scales) == {name for group in placement.groups for name in group}


def test_a_group_reaches_as_far_as_its_farthest_tensor(given: Given) -> None:
    _, placement, histograms = given
    scales = group_scales(placement, histograms, "max", "images")
    group = next(group for group in placement.groups if "pooled" in group)
    reach = max(histograms[name].largest for name in group if name in histograms)
    assert scales["pooled"] == pytest.approx(reach / 127)

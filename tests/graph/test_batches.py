"""A graph for one frame takes several: each has the output that it has alone, or the graph is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.errors import SpecError
from edgekd.data.demo import DETECTOR
from edgekd.detectors.interface import Interface, with_interface
from edgekd.detectors.onnx import describe
from edgekd.graph.batches import take_batches
from edgekd.graph.model_file import read_model
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.graph.session import copied, cpu_session
from edgekd.graph.view import Graph, inputs_of
from edgekd.hardware.compatibility import check_graph
from edgekd.hardware.target import load_target

CONSTANT = {"constant": np.ones((1, 1, 4, 4), np.float32)}


def network(nodes: Sequence[Any], constants: dict[str, np.ndarray], output: Sequence[int]) -> Any:
    """A network from x [1, 3, 4, 4] to y."""
    ends = [helper.make_tensor_value_info(*each) for each in (("x", 1, (1, 3, 4, 4)), ("y", 1, output))]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def assert_frames_are_apart(single: Any, batched: Any) -> None:
    (port,) = inputs_of(single)
    shape = (3, *(side.dim_value for side in port.type.tensor_type.shape.dim[1:]))
    rng = np.random.default_rng(1)
    is_bytes = port.type.tensor_type.elem_type == TensorProto.UINT8
    frames = rng.integers(0, 256, shape, np.uint8) if is_bytes else rng.random(shape, np.float32)
    alone, together = cpu_session(single), cpu_session(batched)
    (found,) = together.run(None, {port.name: frames})
    assert len(found) == 3
    for frame, output in zip(frames, found, strict=True):
        np.testing.assert_allclose(output, alone.run(None, {port.name: frame[None]})[0][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "interface", [Interface(), Interface("uint8", "graph"), Interface("nv12", "graph", float_bytes=True)]
)
def test_each_frame_of_a_batch_has_the_output_that_it_has_alone(interface: Interface) -> None:
    single, batched = read_model(DETECTOR), read_model(DETECTOR)
    spec = with_interface(single, describe(single, DETECTOR), interface, "demo")
    several = Interface(interface.input, interface.postprocess, interface.float_bytes, batch=4)
    assert with_interface(batched, describe(batched, DETECTOR), several, "demo").batch == 4
    assert spec.batch == 1
    onnx.checker.check_model(batched, full_check=True)
    assert next(iter(Graph(batched).inputs.values()))[0] is None
    assert_frames_are_apart(single, batched)


def test_constants_are_concatenated_with_each_frame() -> None:
    model = network([helper.make_node("Concat", ["x", "constant"], ["y"], "join", axis=1)], CONSTANT, (1, 4, 4, 4))
    single = copied(model)
    take_batches(model, "network")
    assert_frames_are_apart(single, model)


def test_reshapes_that_join_frames_with_other_sides_and_part_them_again_keep_frames_apart() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["joined"]),
        helper.make_node("Relu", ["joined"], ["positive"]),
        helper.make_node("Reshape", ["positive", "parted"], ["y"]),
    ]
    model = network(nodes, {"rows": np.array([-1, 4]), "parted": np.array([1, 12, 4])}, (1, 12, 4))
    single = copied(model)
    take_batches(model, "network")
    assert_frames_are_apart(single, model)


@pytest.mark.parametrize(
    ("nodes", "shape", "found"),
    [
        ([helper.make_node("ReduceMean", ["x"], ["y"], "mean", axes=[0], keepdims=1)], (1, 3, 4, 4), "ReduceMean mean"),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=0)], (1, 3, 4, 4), "a relative error of"),
    ],
)
def test_a_network_that_mixes_frames_is_refused_with_the_node(nodes: Any, shape: Any, found: str) -> None:
    model = network(nodes, CONSTANT, shape)
    with pytest.raises(SpecError, match=f"network: no batches.*{found}"):
        take_batches(model, "network")


def test_check_knows_that_batches_cost_single_frames_and_that_a_dla_has_none() -> None:
    model = read_model(DETECTOR)
    with_interface(model, describe(model, DETECTOR), Interface(batch=2), "demo")
    findings = check_graph(model, load_target("xavier"), dla=True)
    assert not [each for each in findings if each.level == "impossible"]
    texts = [each.what for each in findings]
    assert any(text.startswith("takes several frames at once") for text in texts)
    assert any("builds its engine for one frame" in text for text in texts)


@pytest.mark.slow
def test_tensorrt_builds_an_engine_for_one_frame_up_to_several(tmp_path: Path) -> None:
    if not TENSORRT_RTX.available().usable:
        pytest.skip("TensorRT for RTX is not here")
    model = read_model(DETECTOR)
    with_interface(model, describe(model, DETECTOR), Interface("uint8", "graph", batch=4), "demo")
    onnx.save(model, tmp_path / "graph.onnx")
    assert compile_ahead(tmp_path / "graph.onnx", ["SM86"], tmp_path / "engine.rtx", batch=4).bytes

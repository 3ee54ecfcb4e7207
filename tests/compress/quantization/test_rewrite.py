"""Rewriting changes what it says: the graph computes the same until its numbers are changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from small_graph import frames, small_model

from edgekd.compress.quantization.placement import place
from edgekd.compress.quantization.rewrite import (
    apply,
    insert_activation_pairs,
    name_nodes,
    own_parameters,
    store_weights,
    weights_pair,
)
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels
from edgekd.graph.view import Graph

CONVOLUTIONS = ("stem", "body", "neck", "boxes", "scores")


def run(model: Any, frame: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": frame})[0]
    return found


def node_of(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


def shared_model() -> Any:
    """The small network whose `body` also runs a second time with the same weights, and without a bias."""
    model = small_model()
    again = helper.make_node("Conv", ["body.relu", "body.weight"], ["again"], "again", pads=[1] * 4)
    at = [node.name for node in model.graph.node].index("sum")
    model.graph.node.insert(at, again)
    node_of(model, "sum").input[1] = "again"
    return model


def test_nodes_get_names_that_nobody_has() -> None:
    model = small_model()
    for index, node in enumerate(model.graph.node):
        node.name = "Conv_0" if index == 5 else ""
    name_nodes(model)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert names[5] == "Conv_0"
    assert all(names)


def test_shared_and_missing_parameters_become_those_of_each_convolution() -> None:
    model, (frame,) = shared_model(), frames(1)
    before = run(model, frame)
    own_parameters(model)
    assert np.array_equal(run(model, frame), before)
    parameters = [name for node in model.graph.node if node.op_type == "Conv" for name in node.input[1:]]
    assert len(set(parameters)) == len(parameters) == 13  # six convolutions with a bias, and DFL
    values = Graph(model)
    assert np.array_equal(values.constant(node_of(model, "again").input[1]), values.constant("body.weight"))
    assert values.constant(node_of(model, "again").input[2]).tolist() == [0] * 8


def test_dfl_is_left_alone() -> None:
    model = small_model()
    own_parameters(model)
    assert list(node_of(model, "dfl").input) == ["shares", "dfl.weight"]


def test_quantizers_stand_where_placement_says_and_the_graph_still_runs() -> None:
    model, (frame,) = small_model(), frames(1)
    graph = Graph(model)
    placement = place(graph)
    before = run(model, frame)
    insert_activation_pairs(graph, placement, dict.fromkeys(placement.quantized, 0.02))
    apply(graph)
    after = run(model, frame)
    assert 0 < np.abs(after - before).max() < 0.1
    changed = Graph(model)
    assert sum(node.op_type == "QuantizeLinear" for node in changed.nodes) == len(placement.quantized)
    reads = {(node.name, index) for node in changed.nodes for index, name in enumerate(node.input) if "/dq" in name}
    assert reads == set(placement.edges)


def test_stored_weights_are_codes_and_nothing_else() -> None:
    model, (frame,) = small_model(), frames(1)
    graph = Graph(model)
    weights = graph.constant("body.weight")
    assert weights is not None
    codes = quantize_channels(weights)
    store_weights(graph, {"body": codes})
    apply(graph)
    expected = small_model()
    initializer = next(each for each in expected.graph.initializer if each.name == "body.weight")
    initializer.CopyFrom(numpy_helper.from_array(dequantize_channels(*codes), "body.weight"))
    assert run(model, frame) == pytest.approx(run(expected, frame), abs=1e-5)
    assert "body.weight" not in {each.name for each in model.graph.initializer}


def test_stored_weights_of_a_product_have_their_outputs_first() -> None:
    weights = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    sides = {"images": [3, 20], "y": [3, 16]}
    described = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in sides.items()]
    node = helper.make_node("MatMul", ["images", "w"], ["y"], "product")
    made = helper.make_graph([node], "one", described[:1], described[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    frame = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
    graph, codes = Graph(model), quantize_channels(weights.T)
    store_weights(graph, {"product": codes})
    apply(graph)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()  # a product with weights alone in INT8 it would compute in INT8, too
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = frame @ dequantize_channels(*codes).T
    assert session.run(None, {"images": frame})[0] == pytest.approx(expected, abs=1e-5)
    pair = weights_pair(Graph(model), node_of(model, "product"))
    assert pair is not None
    assert np.array_equal(Graph(model).constant(pair.input[0]), codes[0])


@pytest.mark.parametrize("listed", [False, True])
def test_what_nothing_reads_is_dropped_with_its_place_among_the_inputs(listed: bool) -> None:
    """Old exporters list initializers as inputs of the graph."""
    model, (frame,) = small_model(), frames(1)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    if listed:
        for each in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    before = run(model, frame)
    apply(Graph(model))
    assert "unused" not in {each.name for each in [*model.graph.initializer, *model.graph.input]}
    assert ("stem.weight" in {each.name for each in model.graph.input}) == listed
    assert np.array_equal(run(model, frame), before)

"""Quantizers go where TensorRT wants them, on a small graph and on real detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from real_graphs import NAMES, real_graph, swept
from small_graph import small_model

from edgekd.compress.quantization.layers import is_dfl
from edgekd.compress.quantization.placement import QuantizerPlacement, float_head, place
from edgekd.graph.view import Graph


def small() -> tuple[Graph, QuantizerPlacement]:
    graph = Graph(small_model())
    return graph, place(graph)


def group_of(placement: QuantizerPlacement, tensor: str) -> set[str]:
    return next((set(group) for group in placement.groups if tensor in group), set())


def test_the_convolutions_before_the_head_are_quantized() -> None:
    _, placement = small()
    assert placement.layers == ("stem", "body", "neck")
    assert {("stem", 0), ("body", 0), ("neck", 0)} <= set(placement.edges)


def test_the_last_convolutions_and_all_behind_them_stay_float() -> None:
    graph, placement = small()
    head = float_head(graph)
    assert {"boxes", "scores", "dfl", "shares", "rows", "probabilities", "output0"} <= head
    assert {"stem", "body", "neck", "neck.relu", "joined"}.isdisjoint(head)
    assert not {name for name, _ in placement.edges} & head


def test_an_addition_reads_its_skip_branch_quantized_and_its_other_branch_not() -> None:
    graph, placement = small()
    assert [edge for edge in placement.edges if edge[0] == "sum"] == [("sum", 0)]
    assert next(node for node in graph.nodes if node.name == "sum").input[0] == "stem.relu"


def test_the_skip_branch_is_found_on_either_side() -> None:
    model = small_model()
    addition = next(node for node in model.graph.node if node.name == "sum")
    addition.input[0], addition.input[1] = addition.input[1], addition.input[0]
    assert ("sum", 1) in place(Graph(model)).edges


def test_what_a_concat_joins_shares_one_group_through_pooling() -> None:
    _, placement = small()
    assert group_of(placement, "joined") == {"joined", "sum", "pool", "stem.relu"}
    assert group_of(placement, "images") == {"images"}


def test_every_quantized_tensor_is_in_exactly_one_group() -> None:
    _, placement = small()
    for name in placement.quantized:
        assert sum(name in group for group in placement.groups) == 1


def test_the_heads_tensors_are_in_no_group() -> None:
    _, placement = small()
    assert not {"boxes", "scores", "rows", "output0", "dfl"} & {name for group in placement.groups for name in group}


def test_a_convolution_may_be_kept_float() -> None:
    placement = place(Graph(small_model()), {"body"})
    assert placement.layers == ("stem", "neck")
    assert ("body", 0) not in placement.edges
    assert "stem.relu" not in placement.quantized


def test_an_addition_of_a_constant_is_no_residual() -> None:
    model = small_model()
    addition = next(node for node in model.graph.node if node.name == "sum")
    addition.input[1] = "stem.bias"
    assert "sum" not in {name for name, _ in place(Graph(model)).edges}


def test_dfl_is_known_by_its_weights_alone() -> None:
    graph = Graph(small_model())
    assert [node.name for node in graph.nodes if node.op_type == "Conv" and is_dfl(graph, node)] == ["dfl"]
    model = small_model()
    weights = next(each for each in model.graph.initializer if each.name == "dfl.weight")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
    assert "boxes" not in float_head(Graph(model))


def test_only_the_values_a_node_moves_are_joined_not_its_shapes() -> None:
    _, placement = small()
    assert not {"flat", "wide", "deep"} & {name for group in placement.groups for name in group}


def test_what_is_left_out_by_an_empty_name_is_no_tensor() -> None:
    model = small_model()
    names = [node.name for node in model.graph.node]
    next(node for node in model.graph.node if node.name == "pool").output.append("")
    model.graph.node.insert(
        names.index("probabilities") + 1, helper.make_node("Clip", ["probabilities", "", "most"], ["clipped"], "clip")
    )
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "most"))
    model.graph.node[-1].input[1] = "clipped"
    graph = Graph(model)
    assert float_head(graph) == {*float_head(small()[0]), "clip"}
    assert group_of(place(graph), "joined") == group_of(small()[1], "joined")


def test_nodes_between_constants_are_no_obstacle() -> None:
    model = small_model()
    model.graph.node.insert(0, helper.make_node("Concat", ["stem.bias", "body.bias"], ["both"], "both", axis=0))
    assert place(Graph(model)).layers == ("stem", "body", "neck")


@pytest.mark.parametrize("weights", [np.eye(4), np.arange(16.0)[:, None]], ids=["conversion of boxes", "distances"])
def test_products_behind_the_head_that_only_convert_or_sum_are_passed_through(weights: np.ndarray) -> None:
    model = small_model()
    model.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), "fixed"))
    model.graph.node.append(helper.make_node("MatMul", ["output0", "fixed"], ["last"], "last"))
    model.graph.output[0].name = "last"
    graph = Graph(model)
    assert {"boxes", "scores", "dfl", "last"} <= float_head(graph)
    assert place(graph).layers == ("stem", "body", "neck")


def test_a_product_at_the_end_is_the_head_and_those_before_it_are_quantized() -> None:
    graph = Graph(perceptron(3))
    placement = place(graph)
    assert placement.layers == ("product0", "product1")
    assert placement.edges == (("product0", 0), ("product1", 0))
    assert "product2" in float_head(graph)


def test_a_sum_around_products_stays_float() -> None:
    model = perceptron(3)
    model.graph.node.insert(3, helper.make_node("Add", ["relu0", "y1"], ["sum"], "sum"))
    model.graph.node[4].input[0] = "sum"
    placement = place(Graph(model))
    assert "relu0" in placement.quantized, "as what the second product reads"
    assert placement.edges == (("product0", 0), ("product1", 0))


def convolutional(*nodes: onnx.NodeProto, outputs: tuple[str, ...]) -> Graph:
    """x [1, 4, 8, 8] through nodes; weights 4 -> 4 by 3x3 are called w."""
    described = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 8, 8])
    given = [numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")]
    ends = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "convolutional", [described], ends, given)
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def node(operator: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], output)


def test_a_head_with_branches_that_meet_is_followed_to_its_end() -> None:
    graph = convolutional(
        node("Conv", "x w", "stem"),
        node("Conv", "stem w", "boxes"),
        node("Conv", "stem w", "scores"),
        node("Relu", "scores", "shared"),
        node("Sigmoid", "shared", "left"),
        node("Tanh", "shared", "right"),
        node("Mul", "left right", "product"),
        outputs=("boxes", "product"),
    )
    assert float_head(graph) == {"boxes", "scores", "shared", "left", "right", "product"}


def test_a_shape_that_is_computed_shares_no_scale_with_what_is_reshaped() -> None:
    graph = convolutional(
        node("Conv", "x w", "stem"),
        node("Shape", "stem", "size"),
        node("Reshape", "stem size", "same"),
        node("Conv", "same w", "body"),
        node("Conv", "body w", "last"),
        outputs=("last",),
    )
    assert group_of(place(graph), "same") == {"stem", "same"}


def perceptron(depth: int) -> onnx.ModelProto:
    """x [1, 16] -> product0 -> relu0 -> product1 -> relu1 ... -> relu of the last."""
    nodes, weights, last = [], [], "x"
    for index in range(depth):
        weights.append(numpy_helper.from_array(np.eye(16, dtype=np.float32), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"y{index}"], f"product{index}"))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"relu{index}"], f"relu{index}"))
        last = f"relu{index}"
    described = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16])
    graph = helper.make_graph(nodes, "perceptron", [described], [onnx.ValueInfoProto(name=last)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("name", swept(*NAMES))
def test_real_detectors_keep_only_their_last_convolutions_float(
    name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = Graph(onnx.load(real_graph(name, shared, tmp_path_factory).path))
    placement = place(graph)
    floating = {n.name for n in graph.nodes if n.op_type == "Conv" and n.name not in placement.layers}
    dfl = {name for name in floating if "dfl" in name}
    assert len(dfl) == (name == "yolo11n.pt")
    if name == "yolox_nano.onnx":
        assert len(floating) == 9  # boxes, objectness and classes on three levels
    else:
        last = {
            f"/model.23/{branch}.{level}/{branch}.{level}.2/Conv" for branch in ("cv2", "cv3") for level in range(3)
        }
        assert floating - dfl == last


@pytest.mark.parametrize("name", swept(*NAMES))
def test_real_concats_that_feed_convolutions_share_one_group(
    name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = Graph(onnx.load(real_graph(name, shared, tmp_path_factory).path))
    placement = place(graph)
    concats = [node for node in graph.nodes if node.op_type == "Concat" and node.output[0] in placement.quantized]
    assert len(concats) >= 4
    for node in concats:
        assert set(node.input) <= group_of(placement, node.output[0]), node.name


@pytest.mark.parametrize("name", swept(*NAMES))
def test_real_residuals_read_a_skip_branch_that_others_read_too(
    name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = Graph(onnx.load(real_graph(name, shared, tmp_path_factory).path))
    nodes = {node.name: node for node in graph.nodes}
    residuals = [(nodes[node], index) for node, index in place(graph).edges if nodes[node].op_type != "Conv"]
    assert len(residuals) >= 3
    for node, index in residuals:
        assert node.op_type == "Add"
        assert len(graph.consumers(node.input[index])) > 1, node.name

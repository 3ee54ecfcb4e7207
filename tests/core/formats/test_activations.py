"""Activations without a scale are found without the onnx package, as ONNX's own type inference finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from real_graphs import WIDE_NAMES, real_graph, swept

from edgekd.core.formats.activations import float_activations, missing_scales
from edgekd.data.demo import DETECTOR

FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16)


def model_of(
    *nodes: onnx.NodeProto, output: int = TensorProto.FLOAT, constants: dict[str, np.ndarray] | None = None
) -> bytes:
    """A network x float32 [2, 3] to y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return content


def inferred(content: bytes) -> set[str]:
    """The floating-point tensors that nodes compute, and the inputs, by ONNX's type inference."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name for value in values if value.type.tensor_type.elem_type in FLOATING}


def constants_of(content: bytes) -> set[str]:
    """The tensors that do not depend on the input."""
    model = onnx.load_from_string(content)
    found = {each.name for each in model.graph.initializer}
    for node in model.graph.node:
        found |= set(node.output) if found.issuperset(filter(None, node.input)) else set()
    return found


def without_types(content: bytes) -> bytes:
    """The same file, without what it states of inner tensors."""
    model = onnx.load_from_string(content)
    del model.graph.value_info[:]
    stripped: bytes = model.SerializeToString()
    return stripped


@pytest.mark.parametrize("name", [*swept(*WIDE_NAMES), "shipped"])
def test_types_follow_from_operators_where_the_file_states_none(
    name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # The shipped file has the arithmetic of shapes that its export wrote.
    path = DETECTOR if name == "shipped" else real_graph(name, shared, tmp_path_factory).path
    content = without_types(path.read_bytes())
    expected = inferred(content) - constants_of(content)
    found = float_activations(content)
    assert set(found) == expected
    assert len(found) == len(expected) > 200
    assert found[0] == onnx.load_from_string(content).graph.input[0].name
    if name == "shipped":
        assert any(node.op_type == "Shape" for node in onnx.load_from_string(content).graph.node)


@pytest.mark.slow
def test_a_scale_that_is_taken_away_is_missing(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = real_graph("yolo11n.pt", shared, tmp_path_factory).path.read_bytes()
    scales = dict.fromkeys(float_activations(content), 1.0)
    assert missing_scales(content, scales) == ()
    for name in ("images", "/model.0/conv/Conv_output_0", "output0"):
        assert missing_scales(content, {other: 1.0 for other in scales if other != name}) == (name,)


def test_shapes_indices_and_constants_need_no_scale() -> None:
    node = helper.make_node
    content = model_of(
        node("Constant", [], ["one"], value=numpy_helper.from_array(np.array([1], np.int64))),
        node("Constant", [], ["half"], value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("Shape", ["x"], ["shape"]),
        node("Concat", ["one", "shape"], ["longer"], axis=0),
        node("Reshape", ["x", "longer"], ["reshaped"]),
        node("TopK", ["reshaped", "one"], ["largest", "indices"]),
        node("Cast", ["indices"], ["places"], to=TensorProto.FLOAT),
        node("Greater", ["largest", "half"], ["mask"]),
        node("Where", ["mask", "largest", "places"], ["chosen"]),
        node("Sqrt", ["half"], ["root"]),
        node("Mul", ["root", "chosen"], ["y"]),
    )
    expected = ("x", "reshaped", "largest", "places", "chosen", "y")
    assert float_activations(content) == expected
    assert set(expected) == inferred(content) - constants_of(content)


def test_an_unknown_operator_is_taken_for_floating_point() -> None:
    content = model_of(
        helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Mystery", ["shape"], ["y"], domain="somebody")
    )
    assert float_activations(content) == ("x", "y")


def test_what_the_file_states_goes_before_the_operator() -> None:
    content = model_of(helper.make_node("Mystery", ["x"], ["y"], domain="somebody"), output=TensorProto.INT32)
    assert float_activations(content) == ("x",)


def test_an_initializer_listed_as_an_input_is_a_constant() -> None:
    model = onnx.load_from_string(
        model_of(helper.make_node("Mul", ["x", "w"], ["y"]), constants={"w": np.ones(3, np.float32)})
    )
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    assert float_activations(model.SerializeToString()) == ("x", "y")


def test_a_file_without_a_graph_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="expected one graph, found 0"):
        missing_scales(b"", {})

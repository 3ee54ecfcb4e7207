"""The work read from ONNX graphs: what is one kernel, what costs nothing, and real networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from real_graphs import NAMES, real_graph, swept

from edgekd.core.errors import SpecError
from edgekd.graph.view import Graph
from edgekd.hardware.predict.graph import works_in, works_of
from edgekd.hardware.predict.work import Work, multiply_adds

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own


def works(
    nodes: Sequence[Any],
    weights: dict[str, tuple[int, ...]],
    shape: Sequence[Any] = (1, 16, 8, 8),
    outputs: Sequence[str] = ("out",),
) -> list[Work]:
    """The work in a graph with the input `in`, and constants without values."""
    constants = [TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims) for name, dims in weights.items()]
    given = helper.make_tensor_value_info("in", TensorProto.FLOAT, shape)
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("plugins", 1)]
    graph = helper.make_graph(list(nodes), "graph", [given], made, constants)
    return list(works_of(Graph(helper.make_model(graph, opset_imports=opsets)), "graph.onnx"))


def conv(source: str, weights: str, out: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", [source, weights], [out], name=out, **attributes)


def node(kind: str, sources: Sequence[str], out: str, **attributes: Any) -> Any:
    return helper.make_node(kind, list(sources), [out], name=out, **attributes)


def test_a_convolution_takes_up_what_follows_it() -> None:
    found = works(
        [
            conv("in", "w", "c"),
            node("Sigmoid", ["c"], "s"),
            node("Mul", ["c", "s"], "a"),
            node("Add", ["a", "in"], "out"),
        ],
        {"w": (16, 16, 1, 1)},
    )
    # The skip is what the convolution reads already: each tensor comes from memory once.
    assert found == [Work("c", "conv", 64, 16, 16, 1, 1, 256, read=1024, written=1024, silu=True)]


def test_a_product_with_another_sigmoid_is_no_silu() -> None:
    gate = [conv("in", "w", "c"), node("Sigmoid", ["in"], "s"), node("Mul", ["c", "s"], "out")]
    scale = [conv("in", "w", "c"), node("Sigmoid", ["c"], "s"), node("Mul", ["s", "factor"], "out")]
    for nodes in (gate, scale):
        assert not any(work.silu for work in works(nodes, {"w": (16, 16, 1, 1), "factor": (1,)}))


def test_a_sum_belongs_to_the_convolution_that_is_ready_last() -> None:
    first, second = works(
        [conv("in", "w", "a"), conv("a", "v", "b"), node("Add", ["a", "b"], "r"), node("Relu", ["r"], "out")],
        {"w": (16, 16, 1, 1), "v": (16, 16, 1, 1)},
    )
    assert (first.read, first.written) == (1024, 1024)
    assert (second.read, second.written) == (1024, 1024)


def test_mish_is_a_kernel_of_its_own_with_what_follows_it() -> None:
    nodes = [
        conv("in", "w", "c"),
        node("Softplus", ["c"], "p"),
        node("Tanh", ["p"], "t"),
        node("Mul", ["c", "t"], "m"),
        node("Add", ["m", "in"], "out"),
    ]
    found = works(nodes, {"w": (16, 16, 1, 1)})
    assert [work.kind for work in found] == ["conv", "memory"]
    assert (found[1].read, found[1].written) == (2048, 1024)


def test_a_plugin_is_known_by_its_domain() -> None:
    found = works([conv("in", "w", "c"), node("Sort", ["c"], "out", domain="plugins")], {"w": (16, 16, 1, 1)})
    assert [work.plugin for work in found] == [False, True]
    assert found[1].read == 1024


def test_quantizing_and_reshaping_cost_nothing() -> None:
    scale = helper.make_tensor("scale", TensorProto.FLOAT, (), [0.1])
    zero = helper.make_tensor("zero", TensorProto.INT8, (), [0])
    nodes = [
        node("QuantizeLinear", ["in", "scale", "zero"], "q"),
        node("DequantizeLinear", ["q", "scale", "zero"], "d"),
        node("QuantizeLinear", ["w", "scale", "zero"], "wq"),
        node("DequantizeLinear", ["wq", "scale", "zero"], "wd"),
        conv("d", "wd", "c"),
        node("Flatten", ["c"], "out"),
    ]
    constants = [TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(8, 16, 3, 3)), scale, zero]
    given = helper.make_tensor_value_info("in", TensorProto.FLOAT, (1, 16, 8, 8))
    made = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    found = works_of(Graph(model), "graph.onnx")
    assert found == (Work("c", "conv", 36, 16, 8, 9, 1, 1152, read=1024, written=288),)


def test_groups_and_depthwise_convolutions() -> None:
    grouped, depthwise = works(
        [conv("in", "w", "a", group=4), conv("a", "v", "out", group=16)], {"w": (16, 4, 1, 1), "v": (16, 1, 1, 1)}
    )
    assert (grouped.kind, grouped.multiply_adds) == ("conv", 64 * 16 * 4)
    assert (depthwise.kind, depthwise.multiply_adds) == ("depthwise", 64 * 16)


def test_a_transposed_convolution_multiplies_at_every_place_of_its_input() -> None:
    upsampling = helper.make_node("ConvTranspose", ["in", "w"], ["out"], name="u", strides=[2, 2])
    (work,) = works([upsampling], {"w": (16, 8, 2, 2)})
    assert work.multiply_adds == 64 * 16 * 8 * 4
    assert work.written == 8 * 16 * 16


def test_products_with_constants_and_between_tensors_of_the_frame() -> None:
    linear, attention = works(
        [node("MatMul", ["in", "w"], "a"), node("MatMul", ["in", "a"], "out")], {"w": (8, 8)}, (1, 2, 8, 8)
    )
    assert (linear.multiply_adds, linear.weights, linear.groups) == (2 * 8 * 8 * 8, 64, 1)
    assert (attention.multiply_adds, attention.weights, attention.groups) == (2 * 8 * 8 * 8, 0, 2)


def test_a_copy_moves_what_it_writes() -> None:
    copy = works([node("Concat", ["in", "in"], "out", axis=1)], {})
    assert copy == [Work("out", "copy", read=2048, written=2048)]


def test_a_batch_counts_for_one_frame() -> None:
    alone, many, unknown = (
        works([conv("in", "w", "out")], {"w": (8, 16, 1, 1)}, (batch, 16, 8, 8)) for batch in (1, 4, "batch")
    )
    assert alone == many == unknown


def test_a_size_that_is_not_fixed_is_refused() -> None:
    with pytest.raises(SpecError, match=r"graph\.onnx: Conv out has no fixed size.*fixed input size"):
        works([conv("in", "w", "out")], {"w": (8, 16, 1, 1)}, (1, 16, "height", 8))


@pytest.mark.parametrize(("name", "gflops"), swept(*NAMES, values=(6.5, 5.4, 1.08)))
def test_a_real_detector_has_the_operations_that_are_published_for_it(
    name: str, gflops: float, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = works_in(real_graph(name, shared, tmp_path_factory).path)
    assert 2 * multiply_adds(found) / 1e9 == pytest.approx(gflops, rel=0.04)
    assert Counter(work.kind for work in found)["conv"] > 60


def test_a_quantized_detector_is_read_as_the_float_one_that_it_stands_for(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = real_graph("yolox_nano.onnx", shared, tmp_path_factory).path
    model = onnx.load(path)
    scale = helper.make_tensor("test_scale", TensorProto.FLOAT, (), [0.1])
    zero = helper.make_tensor("test_zero", TensorProto.INT8, (), [0])
    model.graph.initializer.extend([scale, zero])
    nodes = []
    for each in list(model.graph.node):
        if each.op_type == "Conv":
            for at in (0, 1):
                name = f"{each.name}_{at}"
                nodes.append(node("QuantizeLinear", [each.input[at], "test_scale", "test_zero"], f"{name}_q"))
                nodes.append(node("DequantizeLinear", [f"{name}_q", "test_scale", "test_zero"], f"{name}_d"))
                each.input[at] = f"{name}_d"
        nodes.append(each)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    quantized = tmp_path / "quantized.onnx"
    onnx.save(model, quantized)
    assert Counter(works_in(quantized)) == Counter(works_in(path))  # the order of branches is nobody's concern

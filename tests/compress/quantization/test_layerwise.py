"""Level by level a walk computes what ONNX Runtime computes at once, and holds only what is still to be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graph import SIDE, frames, small_model

from edgekd.compress.quantization.layerwise import Walk, bytes_per_frame, levels_of
from edgekd.graph.view import Graph


def branched() -> Any:
    """All that makes an order hard: work before the first convolution, two inputs of a level, a long skip, an output
    that is read again, an early node at the end, and nodes with inputs and outputs left out."""
    rng = np.random.default_rng(0)

    def conv(source: str, name: str, inputs: int, **attributes: Any) -> Any:
        constants[f"{name}.weight"] = rng.normal(size=(4, inputs, 3, 3)).astype(np.float32) / 6
        return helper.make_node("Conv", [source, f"{name}.weight"], [name], name, pads=[1] * 4, **attributes)

    constants: dict[str, np.ndarray] = {"half": np.float32(0.5)[None], "sizes": np.array([1, 4, SIDE, SIDE])}
    nodes = [
        helper.make_node("Mul", ["images", "half"], ["scaled"], "scaled"),
        conv("scaled", "a", 3),
        conv("scaled", "b", 3, strides=[2, 2]),
        helper.make_node("Resize", ["b", "", "", "sizes"], ["wide"], "wide"),
        helper.make_node("Concat", ["a", "wide"], ["ab"], "ab", axis=1),
        conv("ab", "c", 8),
        helper.make_node("Add", ["c", "a"], ["skip"], "skip"),
        helper.make_node("MaxPool", ["skip"], ["pooled", ""], "pooled", kernel_shape=[2, 2]),
        conv("skip", "d", 4),
        helper.make_node("Concat", ["d", "scaled"], ["late"], "late", axis=1),
        helper.make_node("Resize", ["late", "", "", "late_sizes"], ["output"], "output"),
        helper.make_node("Neg", ["scaled"], ["negative"], "negative"),
    ]
    constants["late_sizes"] = np.array([1, 7, SIDE // 2, SIDE // 2])
    graph = helper.make_graph(
        nodes,
        "branched",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("skip", TensorProto.FLOAT, [1, 4, SIDE, SIDE]),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [1, 4, SIDE - 1, SIDE - 1]),
            helper.make_tensor_value_info("negative", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
            helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 7, SIDE // 2, SIDE // 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


MODELS = {"small": small_model, "branched": branched}


def expected_values(model: Any, frame: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor that a frame makes, by ONNX Runtime in one run."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"images": frame}), strict=True)) | {"images": frame}


def held(walk: Walk) -> set[str]:
    """The tensors in memory, the same for all frames."""
    (names,) = {frozenset(seen) for seen in walk._tensors}
    return set(names)


def held_bytes(walk: Walk) -> int:
    return sum(value.nbytes for seen in walk._tensors for value in seen.values())


def still_to_read(model: Any, level: int) -> set[str]:
    """What was made up to a level, and is read above it or an output of the graph."""
    graph = Graph(model)
    levels = levels_of(graph)
    made = {name for node in graph.nodes if levels[node.name] <= level for name in node.output if name} | {"images"}
    read = {name for node in graph.nodes if levels[node.name] > level for name in node.input}
    return made & (read | set(graph.outputs))


def depth(model: Any) -> int:
    return max(levels_of(Graph(model)).values())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_tensor_that_crosses_a_level_is_the_one_of_a_whole_run(make: Any) -> None:
    model, given = make(), frames(3)
    expected = [expected_values(model, frame) for frame in given]
    walk, compared = Walk(Graph(model), given), set()
    for level in range(depth(model) + 1):
        if level:
            walk.advance(level)
        for name in held(walk):
            compared.add(name)
            for found, whole in zip(walk.values(name), expected, strict=True):
                assert found == pytest.approx(whole[name], abs=1e-5), name
    assert set(Graph(model).outputs) <= compared


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_is_held_is_exactly_what_is_still_read(make: Any) -> None:
    model = make()
    walk = Walk(Graph(model), frames(2))
    assert held(walk) == still_to_read(model, 0)
    for level in range(1, depth(model) + 1):
        walk.advance(level)
        assert held(walk) == still_to_read(model, level)
    assert held(walk) == set(Graph(model).outputs)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_memory_of_a_frame_is_known_before(make: Any) -> None:
    model = make()
    walk = Walk(Graph(model), frames(1))
    sizes = [held_bytes(walk)]
    for level in range(1, depth(model) + 1):
        walk.advance(level)
        sizes.append(held_bytes(walk))
    assert bytes_per_frame(Graph(model)) == max(sizes)


def test_a_level_ends_before_the_next_convolution_on_the_longest_way() -> None:
    levels = levels_of(Graph(branched()))
    assert [levels[name] for name in ("scaled", "a", "b", "wide", "ab", "c", "skip", "d", "output")] == [
        *(0, 1, 1, 1, 1, 2, 2, 3, 3)
    ]


def test_changed_weights_are_used_from_their_level_on() -> None:
    model = branched()
    graph, given = Graph(model), frames(2)
    walk = Walk(graph, given)
    walk.advance(1)
    changed = np.random.default_rng(5).normal(size=(4, 8, 3, 3)).astype(np.float32)
    walk.replace("c.weight", changed)
    walk.advance(2)
    walk.advance(3)
    assert np.array_equal(graph.constant("c.weight"), changed)
    for found, frame in zip(walk.values("output"), given, strict=True):
        assert found == pytest.approx(expected_values(model, frame)["output"], abs=1e-4)
        assert not np.allclose(found, expected_values(branched(), frame)["output"], atol=1e-3)

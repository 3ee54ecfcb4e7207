"""Slices with a step become convolutions that give the same numbers; others stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.deploy.converters.strided import without_strided_slices
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

FAR = 2**62


def sliced(path: Path, firsts: list[int], lasts: list[int], axes: list[int], steps: list[int]) -> Path:
    """A graph of one Slice of a frame [1, 3, 8, 12]."""
    values = {"firsts": firsts, "lasts": lasts, "axes": axes, "steps": steps}
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 12])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    node = helper.make_node("Slice", ["images", *values], ["output"], "slice")
    graph = helper.make_graph([node], "sliced", [images], [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("firsts", "lasts", "axes", "steps", "count"),
    [
        ([1, 0], [FAR, FAR], [2, 3], [2, 2], 1),
        ([1], [FAR], [-1], [3], 1),
        ([3], [8], [2], [4], 1),
        ([0], [4], [2], [2], 0),  # not to the end
        ([0], [FAR], [1], [2], 0),  # of channels
        ([0], [FAR], [2], [1], 0),  # every row
        ([2], [FAR], [2], [2], 0),  # begins behind the first step
        ([0], [FAR], [2], [3], 0),  # 8 rows are no multiple of 3
    ],
)
def test_a_slice_with_a_step_gives_the_same_as_a_convolution(
    firsts: list[int], lasts: list[int], axes: list[int], steps: list[int], count: int, tmp_path: Path
) -> None:
    before, after = sliced(tmp_path / "a.onnx", firsts, lasts, axes, steps), tmp_path / "b.onnx"
    assert without_strided_slices(before, after) == count
    frame = np.random.default_rng(0).normal(size=(1, 3, 8, 12)).astype(np.float32)
    found = []
    for path in (before, after):
        with ONNXRUNTIME_CPU.load(path) as session:
            found.append(session.run(frame))
    np.testing.assert_array_equal(*found)
    assert ("Slice" in {node.op_type for node in onnx.load(after).graph.node}) == (not count)

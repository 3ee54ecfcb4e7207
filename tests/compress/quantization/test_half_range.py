"""Values that float16 cannot hold are found on calibration frames, and computed in float32 by what ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from normalized_graph import normalized_model, pictures
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.half_range import HALF_MAX, MARGIN, nodes_beyond_half, range_probe
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.core.formats.onnx_bytes import float32_nodes
from edgekd.graph.fp16 import half
from edgekd.graph.pins import pin, pinned
from edgekd.graph.session import copied
from edgekd.graph.view import Graph

STEP = Quantize(min_snr_db=-1000)


def beyond(model: Any, frames: list[np.ndarray]) -> dict[str, float]:
    graph = Graph(model)
    probe = range_probe(graph)
    return nodes_beyond_half(graph, observe(probe.model, probe.outputs, frames))


def output(model: Any, frame: np.ndarray) -> np.ndarray:
    """The output by NumPy, operator by operator: ONNX Runtime's CPU provider computes float16 in float32."""
    with np.errstate(all="ignore"):
        found: np.ndarray = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: frame})[0]
    return found


def error(model: Any, reference: Any) -> float:
    """Noise by signal on frames that were not calibrated on; infinite where a value is not finite."""
    pairs = [(output(model, frame), output(reference, frame)) for frame in pictures(4, seed=9)]
    noise = sum(float(np.square(found - wanted).sum()) for found, wanted in pairs)
    return noise / sum(float(np.square(wanted).sum()) for _, wanted in pairs) if np.isfinite(noise) else np.inf


def chain(*nodes: Any, constants: dict[str, Any] | None = None, width: int = 4) -> Any:
    """A graph from x [1, width] to y."""
    values = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in (constants or {}).items()]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in ("x", "y")]
    del ports[1].type.tensor_type.shape.dim[:]
    graph = helper.make_graph(list(nodes), "chain", ports[:1], [onnx.ValueInfoProto(name="y")], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("decomposed", [True, False])
def test_a_pin_prevents_the_collapse_of_float16(decomposed: bool, tmp_path: Path) -> None:
    size = 1e3 if decomposed else 1e5  # squares overflow, or the values themselves
    source, built, narrow = (tmp_path / name for name in ("float.onnx", "int8.onnx", "half.onnx"))
    model = normalized_model(size=size, decomposed=decomposed)
    onnx.save(model, source)
    done = quantize(source, built, pictures(8), STEP)
    quantized = onnx.load(built)
    assert pinned(quantized).keys() == done.float32.keys()
    assert {"square", "variance", "positive", "deviation"} <= done.float32.keys() or not decomposed
    assert {"stem", "norm"} <= done.float32.keys() or decomposed
    assert "head" not in done.float32

    half(built, narrow)
    with_pins = error(onnx.load(narrow), model)
    assert with_pins < 1.5 * error(quantized, model)

    pin(quantized, {})
    onnx.save(quantized, built)
    half(built, narrow)
    assert error(onnx.load(narrow), model) > 100 * with_pins


def test_ordinary_values_pin_nothing(tmp_path: Path) -> None:
    source = tmp_path / "float.onnx"
    onnx.save(normalized_model(), source)
    assert quantize(source, tmp_path / "int8.onnx", pictures(8), STEP).float32 == {}
    assert not onnx.load(tmp_path / "int8.onnx").metadata_props


def test_a_node_that_reads_or_computes_a_large_value_is_listed_and_no_other() -> None:
    model = chain(
        helper.make_node("Mul", ["x", "large"], ["a"], "grow"),
        helper.make_node("Reshape", ["a", "flat"], ["b"], "move"),
        helper.make_node("Sigmoid", ["b"], ["c"], "bound"),
        helper.make_node("Add", ["c", "c"], ["y"], "after"),
        constants={"large": 20000.0},
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([4]), "flat"))
    ones = np.ones((1, 4), np.float32)
    found = beyond(model, [ones, -ones / 2])
    assert found == {"grow": 20000.0, "move": 20000.0, "bound": 20000.0}
    small = HALF_MAX / MARGIN / 20000.0
    assert beyond(model, [0.99 * small * ones]) == {}


@pytest.mark.parametrize(
    ("node", "value", "listed"),
    [
        (helper.make_node("LayerNormalization", ["x", "scale"], ["y"], "it"), 200.0, True),  # squares: 40 000
        (helper.make_node("LayerNormalization", ["x", "scale"], ["y"], "it"), 100.0, False),
        (helper.make_node("ReduceMean", ["x"], ["y"], "it"), 5000.0, True),  # sum: 20 000
        (helper.make_node("ReduceMean", ["x"], ["y"], "it"), 4000.0, False),
        (helper.make_node("ReduceL2", ["x"], ["y"], "it"), 100.0, True),  # squares: 40 000
        (helper.make_node("Softmax", ["x"], ["y"], "it"), 100.0, False),
    ],
)
def test_values_inside_an_operator_count(node: Any, value: float, listed: bool) -> None:
    model = chain(node, constants={"scale": np.ones(4)})
    assert bool(beyond(model, [np.full((1, 4), value, np.float32)])) is listed


@pytest.mark.parametrize(("epsilon", "expected"), [(1e-12, {"add", "root", "divide"}), (1e-5, set())])
def test_a_constant_that_becomes_zero_is_listed_with_what_divides_by_it(epsilon: float, expected: set[str]) -> None:
    model = chain(
        helper.make_node("Mul", ["x", "x"], ["a"], "square"),
        helper.make_node("Add", ["a", "epsilon"], ["b"], "add"),
        helper.make_node("Sqrt", ["b"], ["c"], "root"),
        helper.make_node("Div", ["x", "c"], ["d"], "divide"),
        helper.make_node("Relu", ["d"], ["y"], "after"),
        constants={"epsilon": epsilon},
    )
    assert beyond(model, [np.ones((1, 4), np.float32)]).keys() == expected


@pytest.mark.parametrize(("mask", "listed"), [(-1e9, True), (-np.inf, False)])
def test_a_constant_beyond_the_range_is_listed_unless_it_is_infinite(mask: float, listed: bool) -> None:
    node = helper.make_node("Max", ["x", "mask"], ["y"], "it")
    assert bool(beyond(chain(node, constants={"mask": mask}), [np.ones((1, 4), np.float32)])) is listed


def test_pins_of_another_program_are_not_read() -> None:
    model = normalized_model()
    for text in ("[1]", "nonsense", '{"a": "b"}'):
        del model.metadata_props[:]
        model.metadata_props.add(key="edgekd.float32_nodes", value=text)
        assert pinned(model) == float32_nodes(model.SerializeToString()) == {}
    pin(model, {"a": 1e5})
    pin(model, {"b": 123456.0})
    assert pinned(copied(model)) == float32_nodes(model.SerializeToString()) == {"b": 123000.0}

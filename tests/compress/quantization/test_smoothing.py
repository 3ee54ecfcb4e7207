"""Smoothing changes nothing in float, and lessens the noise of products that read a LayerNorm with unequal channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from normalized_graph import normalized_model, pictures

from edgekd.compress.quantization import smoothing
from edgekd.compress.quantization.layers import ProductView
from edgekd.compress.quantization.placement import place
from edgekd.compress.quantization.quantize import prepared, quantize
from edgekd.compress.quantization.smoothing import smoothed
from edgekd.compress.steps import Quantize
from edgekd.graph.session import copied, cpu_session
from edgekd.graph.view import Graph

STEP = Quantize(min_snr_db=-1000)
SPREAD = 200.0


def output(model: Any, frame: np.ndarray) -> np.ndarray:
    found: np.ndarray = cpu_session(model).run(None, {"images": frame})[0]
    return found


def graph_of(model: Any, folder: Path) -> Graph:
    onnx.save(model, folder / "float.onnx")
    return prepared(folder / "float.onnx")


def apply(graph: Graph) -> tuple[Any, Graph]:
    """The model as it was, and the graph after smoothing."""
    return copied(graph.model), smoothed(graph, place(graph).layers, pictures(4))


@pytest.mark.parametrize(
    ("decomposed", "residual", "flat"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True), (False, True, True)],
)
def test_a_smoothed_graph_computes_the_same_in_float(
    decomposed: bool, residual: bool, flat: bool, tmp_path: Path
) -> None:
    model = normalized_model(spread=SPREAD, decomposed=decomposed, residual=residual, flat=flat)
    before, after = apply(graph_of(model, tmp_path))
    onnx.checker.check_model(after.model, full_check=True)
    (frame,) = pictures(1, seed=7)
    wanted = output(before, frame)
    np.testing.assert_allclose(output(after.model, frame), wanted, atol=1e-5 * np.abs(wanted).max())
    first = next(node for node in after.nodes if node.name == "first")
    weights = after.constant(first.input[1])
    assert weights is not None
    assert np.abs(weights - Graph(before).constant("first.weight")).max() > 0.1
    restored = [node.name for node in after.nodes if node.name.endswith("/restore")]
    assert restored == (["normal/restore"] if residual else [])


@pytest.mark.parametrize("residual", [False, True])
def test_int8_has_less_noise_where_channels_are_unequal(
    residual: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = normalized_model(spread=SPREAD, residual=residual)
    onnx.save(model, tmp_path / "float.onnx")

    def noise() -> float:
        done = quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", pictures(8), STEP)
        return float(10 ** (-done.snr_db["first"] / 10))

    with_smoothing = noise()
    monkeypatch.setattr(smoothing, "MAX_ERROR", 0.0)
    assert with_smoothing < 0.3 * noise()


def test_a_product_that_stays_float_reads_the_values_as_they_were(tmp_path: Path) -> None:
    graph = graph_of(normalized_model(spread=SPREAD), tmp_path)
    before = copied(graph.model)
    after = smoothed(graph, ["second"], pictures(4))
    assert after.model == before, "no quantized product reads the normalization"


def test_a_normalization_that_the_network_gives_stays_as_it_is(tmp_path: Path) -> None:
    model = normalized_model(spread=SPREAD)
    model.graph.output.append(onnx.helper.make_tensor_value_info("normal", onnx.TensorProto.FLOAT, [1, 64, 32]))
    before, after = apply(graph_of(model, tmp_path))
    assert after.model == before


def test_factors_move_the_range_of_a_channel_into_the_weights() -> None:
    graph = Graph(normalized_model())
    (found,) = smoothing.normalizations(graph, ["first"])
    rows = np.random.default_rng(0).normal(size=(1, 64, 32)).astype(np.float32)
    rows[..., 3] *= 50
    rows[..., 5] = 0
    factors = smoothing.best_factors(found.products, [rows])
    assert factors is not None
    assert factors.argmax() == 3
    assert factors[5] == 1


def test_equal_channels_and_silent_ones_need_no_factors() -> None:
    rng = np.random.default_rng(0)
    signs = np.sign(rng.normal(size=(32, 32))).astype(np.float32)
    rows = np.sign(rng.normal(size=(1, 64, 32))).astype(np.float32)
    product = ProductView("it", signs, np.zeros(32, np.float32), "w", None, groups=1, transposed=True)
    assert smoothing.best_factors([product], [rows]) is None
    assert smoothing.best_factors([product], [np.zeros_like(rows)]) is None


def test_a_product_in_float_behind_the_same_reshape_takes_the_factors_as_well(tmp_path: Path) -> None:
    model = normalized_model(spread=SPREAD, flat=True)
    twin = onnx.helper.make_node("MatMul", ["normal/rows", "second.weight"], ["twin"], "twin")
    model.graph.node.insert([node.name for node in model.graph.node].index("first"), twin)
    graph = graph_of(model, tmp_path)
    before = copied(graph.model)
    after = smoothed(graph, ["first"], pictures(4))
    for each in (before, after.model):
        each.graph.output.append(onnx.ValueInfoProto(name="twin"))
    (frame,) = pictures(1, seed=7)
    wanted, found = (cpu_session(each).run(["twin"], {"images": frame})[0] for each in (before, after.model))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert after.model != before

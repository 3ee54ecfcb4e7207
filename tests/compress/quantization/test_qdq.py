"""The numbers of a Q/DQ graph's convolutions come out and go back in, and nothing else of the graph changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graph import frames, small_model, write

from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.errors import CompressError
from edgekd.core.formats import fp4x
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network with INT8 weights."""
    folder = tmp_path_factory.mktemp("qdq")
    quantize(write(small_model(), folder), folder / "int8.onnx", frames(4), Quantize(min_snr_db=-1000))
    return folder / "int8.onnx"


def named(graph: Path) -> dict[str, QdqConvolution]:
    return {layer.node: layer for layer in read_layers(graph)}


def test_every_convolution_is_read(graph: Path) -> None:
    layers = named(graph)
    assert list(layers) == ["stem", "body", "neck", "boxes", "dfl", "scores"]
    stem, boxes = layers["stem"], layers["boxes"]
    assert (stem.parameter, stem.form, stem.weights.dtype, stem.weights.shape) == (
        "stem.weight",
        "int8",
        "int8",
        (8, 3, 3, 3),
    )
    assert stem.scales is not None
    assert stem.bias is not None
    assert stem.input_scale is not None
    assert stem.scales.shape == stem.bias.shape == (8,)
    assert (boxes.parameter, boxes.form, boxes.scales, boxes.input_scale) == ("boxes.weight", "float16", None, None)


def test_coded_weights_are_known_by_their_codes_with_their_step(tmp_path: Path) -> None:
    plan: dict[str, WeightFormat] = {"stem": "int8", "body": "coded", "neck": "coded"}
    step, wanted = Quantize(min_snr_db=-1000), {"body": 0.25, "neck": 0.5}
    quantize(write(small_model(), tmp_path), tmp_path / "coded.onnx", frames(4), step, plan, wanted)
    layers = named(tmp_path / "coded.onnx")
    assert {name: layer.form for name, layer in layers.items() if layer.scales is not None} == plan
    assert {name: layers[name].mean_step for name in wanted} == pytest.approx(wanted, rel=0.15)
    assert layers["stem"].coded_steps is None
    body = layers["body"]
    assert body.coded_steps is not None
    assert body.coded_steps.shape == (body.weights.shape[1], 1, 1)
    assert not (body.weights % body.coded_steps).any()


def test_what_is_read_is_what_the_engine_computes_with(graph: Path) -> None:
    stem = named(graph)["stem"]
    assert stem.scales is not None
    assert np.array_equal(stem.values, stem.weights * stem.scales[:, None, None, None])
    assert stem.values.dtype == np.float32


def test_writing_back_what_was_read_changes_nothing(graph: Path, tmp_path: Path) -> None:
    write_layers(graph, tmp_path / "same.onnx", read_layers(graph))
    assert onnx.load(tmp_path / "same.onnx") == onnx.load(graph)


def test_changed_numbers_change_initializers_only(graph: Path, tmp_path: Path) -> None:
    body = named(graph)["body"]
    assert body.bias is not None
    codes, scales = fp4x.quantize(body.values)
    write_layers(graph, tmp_path / "new.onnx", [replace(body, weights=codes, scales=scales, bias=body.bias + 1)])
    before, after = onnx.load(graph), onnx.load(tmp_path / "new.onnx")
    assert list(after.graph.node) == list(before.graph.node)
    pairs = zip(before.graph.initializer, after.graph.initializer, strict=True)
    changed = [old.name for old, new in pairs if old != new]
    assert sorted(changed) == ["body.bias", "body.weight/body/int8", "body.weight/body/scale"]
    assert named(tmp_path / "new.onnx")["body"].form == "fp4x"
    with ONNXRUNTIME_CPU.load(graph) as old, ONNXRUNTIME_CPU.load(tmp_path / "new.onnx") as new:
        assert not np.array_equal(*(session.run(next(iter(frames(1)))) for session in (old, new)))


def test_a_learned_scale_reaches_the_quantizer_of_the_activation(graph: Path, tmp_path: Path) -> None:
    stem = named(graph)["stem"]
    assert stem.input_scale is not None
    write_layers(graph, tmp_path / "new.onnx", [replace(stem, input_scale=2 * stem.input_scale)])
    assert named(tmp_path / "new.onnx")["stem"].input_scale == pytest.approx(2 * stem.input_scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": "nobody"}, "none of that name"),
        ({"weights": np.zeros((8, 3, 1, 1), np.int8)}, "weights"),
        ({"weights": np.zeros((8, 3, 3, 3), np.float32), "scales": None}, "scales"),
        ({"bias": None}, "bias"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(
    graph: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    stem = replace(named(graph)["stem"], **change)  # type: ignore[arg-type]
    with pytest.raises(CompressError, match=message):
        write_layers(graph, tmp_path / "new.onnx", [stem])
    assert not (tmp_path / "new.onnx").exists()


def test_layers_must_agree_on_the_scale_of_what_both_read(tmp_path: Path) -> None:
    model = small_model()
    twin = onnx.NodeProto()
    twin.CopyFrom(next(node for node in model.graph.node if node.name == "body"))
    twin.name, twin.output[0] = "twin", "twin"
    model.graph.node.insert(3, twin)
    add = next(node for node in model.graph.node if node.name == "body.relu")
    add.input[0] = "both"
    at = list(model.graph.node).index(add)
    model.graph.node.insert(at, onnx.helper.make_node("Add", ["body", "twin"], ["both"], "both"))
    out = tmp_path / "int8.onnx"
    quantize(write(model, tmp_path), out, frames(2), Quantize(min_snr_db=-1000))
    layers = named(out)
    assert layers["body"].input_scale == layers["twin"].input_scale
    with pytest.raises(CompressError, match="one value for all"):
        write_layers(out, tmp_path / "new.onnx", [layers["body"], replace(layers["twin"], input_scale=1.0)])

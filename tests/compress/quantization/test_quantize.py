"""The Q/DQ graph is what TensorRT expects and the plan says, computes what the float graph computes, and is the same
every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from real_graphs import RealGraph, real_graph
from small_graph import SIDE, frames, small_model, write

from edgekd.compress.quantization.calibrate import observe
from edgekd.compress.quantization.half import as_short_half
from edgekd.compress.quantization.placement import float_head
from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.quantization.quantize import QuantizationResult, quantize
from edgekd.compress.quantization.ranges import METHODS
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import Placement, letterbox
from edgekd.core.detection.types import Detections, DetectorSpec
from edgekd.core.errors import CompressError
from edgekd.core.formats import fp4x
from edgekd.core.formats.int8 import quantize_channels
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.graph.view import Graph

STEP = Quantize(min_snr_db=-1000)
"""Nothing is too noisy."""
RANGES = [*METHODS, "best"]
MIXED: Mapping[str, WeightFormat] = {"stem": "int8", "body": "fp4x", "neck": "float16"}
DETECTORS = [
    pytest.param("yolo11n.pt", marks=pytest.mark.release),
    pytest.param("yolox_nano.onnx", marks=pytest.mark.slow),
]


def quantized(
    model: Any, folder: Path, step: Quantize = STEP, plan: Mapping[str, WeightFormat] | None = None, count: int = 4
) -> tuple[Any, QuantizationResult]:
    """A small model's Q/DQ version by so many frames, and what was said of it."""
    source = write(model, folder)
    done = quantize(source, folder / "int8.onnx", frames(count), step, plan)
    return onnx.load(folder / "int8.onnx"), done


def layers_of(path: Path) -> dict[str, QdqConvolution]:
    return {layer.node: layer for layer in read_layers(path)}


def node_of(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


def change(model: Any, name: str, values: np.ndarray) -> None:
    initializer = next(each for each in model.graph.initializer if each.name == name)
    initializer.CopyFrom(numpy_helper.from_array(values, name))


def constant(model: Any, name: str) -> np.ndarray:
    found = Graph(model).constant(name)
    assert found is not None
    return found.copy()


def uncompensated(source: Path, graph: Path, out: Path, forms: Mapping[str, WeightFormat]) -> None:
    """Write `out`: the Q/DQ graph with every weight of `source` rounded to the nearest, and the biases as they were."""
    original = layers_of(source)
    changed = []
    for layer in read_layers(graph):
        weights, bias = original[layer.node].weights, original[layer.node].bias
        if layer.bias is not None:
            bias = np.zeros_like(layer.bias) if bias is None else bias
        codes, scales = weights, None
        if layer.scales is not None:
            codes, scales = (fp4x.quantize if forms[layer.node] == "fp4x" else quantize_channels)(weights)
        changed.append(replace(layer, weights=codes, scales=scales, bias=bias))
    write_layers(graph, out, changed)


def require_tensorrt_rules(model: Any) -> int:
    """Check everything that TensorRT asks of explicit quantization; return how many convolutions run in INT8."""
    graph = Graph(model)
    head = float_head(graph)
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    convolutions = 0
    for node in pairs:
        zero = graph.constant(node.input[2])
        assert zero is not None
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (graph.constant(node.input[1]) > 0).all()
        assert (
            node.op_type == "DequantizeLinear"
            or graph.producers.get(node.input[0]) is None
            or (graph.producers.get(node.input[0]).name not in head)
        )
    for node in graph.nodes:
        weights = graph.producers.get(node.input[1]) if node.op_type == "Conv" else None
        if weights is None:
            continue
        convolutions += 1
        codes, scales = graph.constant(weights.input[0]), graph.constant(weights.input[1])
        assert codes.dtype == np.int8
        assert codes.min() >= -127
        assert len(scales) == len(codes)
        assert [(entry.name, entry.i) for entry in weights.attribute] == [("axis", 0)]
        assert graph.producers.get(node.input[0]).op_type == "DequantizeLinear"
    return convolutions


def run(graph: Path, batch: np.ndarray) -> np.ndarray:
    with ONNXRUNTIME_CPU.load(graph, threads=1) as session:
        return session.run(batch)


Made = tuple[Any, QuantizationResult, dict[str, QdqConvolution]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The small network in INT8, and its layers: not to be changed."""
    folder = tmp_path_factory.mktemp("plain")
    return *quantized(small_model(), folder), layers_of(folder / "int8.onnx")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same by the plan MIXED."""
    folder = tmp_path_factory.mktemp("mixed")
    return *quantized(small_model(), folder, plan=MIXED), layers_of(folder / "int8.onnx")


def test_the_graph_keeps_tensorrts_rules(plain: Made) -> None:
    model, done, _ = plain
    assert require_tensorrt_rules(model) == 3
    assert done.int8 == ("stem", "body", "neck")
    assert done.layers == 6
    onnx.checker.check_model(model, full_check=True)


def test_weights_are_stored_as_int8_and_as_nothing_else(plain: Made) -> None:
    model, *_ = plain
    types = {constant.name: constant.data_type for constant in model.graph.initializer}
    for name in ("stem", "body", "neck"):
        assert types[f"{name}.weight/{name}/int8"] == TensorProto.INT8
        assert f"{name}.weight" not in types
    assert types["boxes.weight"] == TensorProto.FLOAT


def test_tensors_that_are_joined_have_one_scale(plain: Made) -> None:
    model, done, _ = plain
    assert done.scales["joined"] == done.scales["sum"] == done.scales["stem.relu"] == done.scales["pool"]
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    assert constants["joined/scale"] == constants["stem.relu/scale"] == np.float32(done.scales["joined"])


@pytest.mark.parametrize("ranges", RANGES)
def test_the_output_is_close_to_the_float_one_and_the_frame_is_not_clipped(ranges: Any, tmp_path: Path) -> None:
    _, done = quantized(small_model(), tmp_path, replace(STEP, ranges=ranges))
    assert done.scales["images"] == pytest.approx(max(frame.max() for frame in frames(4)) / 127)
    for frame in frames(3, seed=9):
        expected, found = (run(tmp_path / name, frame) for name in ("small.onnx", "int8.onnx"))
        assert 0 < np.abs(expected - found).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_same_input_gives_the_same_bytes_in_any_process(seed: str, tmp_path: Path) -> None:
    """The order of a set differs between processes."""
    _, done = quantized(small_model(), tmp_path, plan={"body": "fp4x"})
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from small_graph import frames\n"
        "from edgekd.compress.quantization.quantize import quantize; from edgekd.compress.steps import Quantize\n"
        "folder, step, plan = Path(sys.argv[2]), Quantize(min_snr_db=-1000), {'body': 'fp4x'}\n"
        "done = quantize(folder / 'small.onnx', folder / 'again.onnx', frames(4), step, plan)\n"
        "print(list(done.scales.items()))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parents[2]), str(tmp_path)]
    # Ultralytics sets it when it is imported; the order of sums depends on how many threads there are.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONHASHSEED"] = seed
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert again.stdout.strip() == str(list(done.scales.items()))
    one, two = ((tmp_path / name).read_bytes() for name in ("int8.onnx", "again.onnx"))
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()


def test_nodes_without_names_are_no_obstacle(tmp_path: Path) -> None:
    model = small_model()
    for node in model.graph.node:
        node.name = ""
    found, _ = quantized(model, tmp_path)
    assert require_tensorrt_rules(found) == 3


def test_a_convolution_that_would_be_too_noisy_stays_float(plain: Made, tmp_path: Path) -> None:
    _, done, _ = plain
    noisiest = min(done.snr_db, key=done.snr_db.__getitem__)
    model, kept = quantized(small_model(), tmp_path, Quantize(min_snr_db=done.snr_db[noisiest] + 1e-6))
    assert set(kept.int8) == set(done.int8) - {noisiest}
    assert kept.forms[noisiest] == "float16"
    assert require_tensorrt_rules(model) == 2


def test_where_all_would_be_too_noisy_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="too noisy"):
        quantized(small_model(), tmp_path, Quantize(min_snr_db=1000))
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["body.weight", "body.bias", "scores.weight", "scores.bias"])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_their_layer(
    name: str, bad: float, tmp_path: Path
) -> None:
    model = small_model()
    values = constant(model, name)
    values.ravel()[0] = bad
    change(model, name, values)
    with pytest.raises(CompressError, match=f"layer {name.partition('.')[0]}"):
        quantized(model, tmp_path)
    assert not (tmp_path / "int8.onnx").exists()


def test_computed_weights_are_refused_by_the_name_of_their_layer(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node.insert(0, helper.make_node("Relu", ["neck.weight"], ["computed"], "computed"))
    node_of(model, "neck").input[1] = "computed"
    with pytest.raises(CompressError, match="layer neck"):
        quantized(model, tmp_path)


def test_a_frame_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    source = write(small_model(), tmp_path)
    with pytest.raises(CompressError, match="finite"):
        quantize(source, tmp_path / "int8.onnx", [*frames(1), frames(1)[0] * np.float32(np.nan)], STEP)
    assert not (tmp_path / "int8.onnx").exists()


def test_without_frames_there_is_nothing_to_calibrate_with(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="frame"):
        quantize(write(small_model(), tmp_path), tmp_path / "int8.onnx", [], STEP)


def test_a_graph_of_a_head_alone_has_nothing_to_quantize(tmp_path: Path) -> None:
    model = small_model()
    keep = [node for node in model.graph.node if node.name == "stem"]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("stem", TensorProto.FLOAT, [1, 8, 16, 16]))
    with pytest.raises(CompressError, match="nothing to quantize"):
        quantized(model, tmp_path)


def test_a_plan_decides_how_the_weights_of_each_layer_are_stored(
    mixed: Made,
) -> None:
    model, done, layers = mixed
    assert dict(done.forms) == {**MIXED, "boxes": "float16", "scores": "float16"}
    assert done.int8 == ("stem", "body")
    assert require_tensorrt_rules(model) == 2
    assert {name: layer.form for name, layer in layers.items() if name != "dfl"} == dict(done.forms)
    assert fp4x.representable(layers["body"].weights)
    assert not fp4x.representable(layers["stem"].weights)


def test_a_layer_in_float16_reads_what_nobody_quantized_and_has_weights_that_float16_holds(
    mixed: Made,
) -> None:
    model, _, layers = mixed
    for name in ("neck", "boxes", "scores"):
        weights = layers[name].weights
        assert weights.dtype == np.float32
        assert np.array_equal(weights.astype(np.float16).astype(np.float32), weights)
        assert layers[name].input_scale is None
    assert node_of(model, "neck").input[0] == "joined"
    assert "joined" not in {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def test_a_layer_in_float16_makes_up_for_what_is_quantized_before_it(mixed: Made) -> None:
    weights, bias = mixed[2]["neck"].weights, mixed[2]["neck"].bias
    change = weights - constant(small_model(), "neck.weight").astype(np.float16)
    assert np.abs(change).max() > 0.002
    assert bias is not None
    assert np.abs(bias).max() > 0.002


def test_every_bias_is_one_that_float16_holds(mixed: Made) -> None:
    for name, layer in mixed[2].items():
        if name != "dfl":
            assert layer.bias is not None
            assert np.array_equal(layer.bias.astype(np.float16).astype(np.float32), layer.bias)


def test_without_a_word_of_the_plan_a_layer_is_int8_however_noisy(tmp_path: Path) -> None:
    _, done = quantized(small_model(), tmp_path, Quantize(min_snr_db=1000), {"body": "fp4x"})
    forms = {"stem": "int8", "body": "fp4x", "neck": "int8", "boxes": "float16", "scores": "float16"}
    assert dict(done.forms) == forms


def test_weights_that_two_layers_share_become_those_of_each(tmp_path: Path) -> None:
    """As a detection head does that is the same for every size of object."""
    model = small_model()
    node_of(model, "body").input[1] = "again.weight"
    values = constant(model, "body.weight")
    model.graph.initializer.append(numpy_helper.from_array(values, "again.weight"))
    twin = helper.make_node("Conv", ["body.relu", "again.weight"], ["twin"], "twin", pads=[1] * 4)
    model.graph.node.insert([node.name for node in model.graph.node].index("sum"), twin)
    node_of(model, "sum").input[1] = "twin"
    found, done = quantized(model, tmp_path, plan={"twin": "fp4x"})
    assert done.int8 == ("stem", "body", "twin", "neck")
    assert require_tensorrt_rules(found) == 4
    layers = layers_of(tmp_path / "int8.onnx")
    assert (layers["body"].form, layers["twin"].form) == ("int8", "fp4x")
    for name, share in (("body", 0.02), ("twin", 0.3)):
        assert np.linalg.norm(layers[name].values - values) < share * np.linalg.norm(values)


def test_a_layer_without_a_bias_gets_one(tmp_path: Path) -> None:
    model = small_model()
    del node_of(model, "body").input[2:]
    found, _ = quantized(model, tmp_path)
    assert require_tensorrt_rules(found) == 3
    bias = layers_of(tmp_path / "int8.onnx")["body"].bias
    assert bias is not None
    assert 0 < np.abs(bias).max() < 0.1


def test_an_input_or_output_that_is_left_out_by_an_empty_name_is_no_obstacle(tmp_path: Path) -> None:
    model = small_model()
    node_of(model, "body").input[2] = ""
    node_of(model, "pool").output.append("")
    found, done = quantized(model, tmp_path)
    assert done.int8 == ("stem", "body", "neck")
    assert require_tensorrt_rules(found) == 3
    assert run(tmp_path / "int8.onnx", frames(1)[0]).shape == (1, 3, 256)


def test_a_graph_inside_a_node_reads_what_is_around_it(tmp_path: Path) -> None:
    """As PyTorch writes an `if`: its branches list no inputs."""
    model = small_model()
    shape = helper.make_tensor_value_info("branch", TensorProto.FLOAT, [1, 8, 16, 16])
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["neck.relu", "shift"], ["branch"], op)], name, [], [shape]
        )
        for name, op in (("then", "Add"), ("else", "Sub"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["most"], "most", keepdims=0),
        helper.make_node("Greater", ["most", "shift"], ["bright"], "bright"),
        helper.make_node("If", ["bright"], ["either"], "either", **branches),
    ]
    at = [node.name for node in model.graph.node].index("neck.relu") + 1
    for place, node in enumerate(nodes, at):
        model.graph.node.insert(place, node)
    for head in ("boxes", "scores"):
        node_of(model, head).input[0] = "either"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "shift"))
    found, done = quantized(model, tmp_path)
    assert done.int8 == ("stem", "body", "neck")
    assert require_tensorrt_rules(found) == 3
    frame = frames(1)[0]
    expected = run(tmp_path / "small.onnx", frame)
    assert np.linalg.norm(run(tmp_path / "int8.onnx", frame) - expected) < 0.05 * np.linalg.norm(expected)


def test_dfl_is_not_touched(plain: Made) -> None:
    model, done, _ = plain
    assert "dfl" not in done.forms
    assert list(node_of(model, "dfl").input) == ["shares", "dfl.weight"]
    assert constant(model, "dfl.weight").ravel().tolist() == list(range(16))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_frames_are_enough_even_for_a_layer_that_sees_one_patch_of_each(count: int, tmp_path: Path) -> None:
    """A gate on the mean of each channel, as in squeeze-and-excitation."""
    model, rng = small_model(), np.random.default_rng(0)
    weights = rng.normal(size=(8, 8, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "gate.weight"))
    at = [node.name for node in model.graph.node].index("body")
    for node in reversed(
        [
            helper.make_node("GlobalAveragePool", ["stem.relu"], ["mean"], "mean"),
            helper.make_node("Conv", ["mean", "gate.weight"], ["gate"], "gate"),
            helper.make_node("Sigmoid", ["gate"], ["share"], "share"),
            helper.make_node("Mul", ["stem.relu", "share"], ["gated"], "gated"),
        ]
    ):
        model.graph.node.insert(at, node)
    node_of(model, "body").input[0] = "gated"
    found, done = quantized(model, tmp_path, count=count)
    assert "gate" in done.int8
    assert all(np.isfinite(numpy_helper.to_array(each)).all() for each in found.graph.initializer)
    frame = frames(1, seed=9)[0]
    expected, output = (run(tmp_path / name, frame) for name in ("small.onnx", "int8.onnx"))
    assert np.abs(expected - output).max() < 0.01 * np.abs(expected).max()


def test_ranges_come_from_all_frames_and_each_is_asked_for_once(tmp_path: Path) -> None:
    asked = iter([*frames(3), frames(1)[0] * np.float32(4)])
    done = quantize(write(small_model(), tmp_path), tmp_path / "int8.onnx", asked, replace(STEP, frames=2))
    assert next(asked, None) is None
    assert done.scales["images"] > 3 / 127


def test_weights_come_from_the_first_frames_only(tmp_path: Path) -> None:
    source, step = write(small_model(), tmp_path), replace(STEP, frames=2, ranges="max")
    first, loud = frames(2), [np.ones((1, 3, SIDE, SIDE), np.float32) * 3]
    ends = [[*loud, *frames(2, seed=7)], [*loud, *frames(2, seed=8)]]
    for index, end in enumerate(ends):
        quantize(source, tmp_path / f"{index}.onnx", [*first, *end], step)
    one, two = (layers_of(tmp_path / f"{index}.onnx")["stem"] for index in range(2))
    assert np.array_equal(one.weights, two.weights)
    assert np.array_equal(one.bias, two.bias)


def test_where_frames_are_large_fewer_are_walked_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(small_model(), tmp_path)
    quantize(source, tmp_path / "one.onnx", frames(4), replace(STEP, frames=1))
    monkeypatch.setattr("edgekd.compress.quantization.quantize.WALK_BYTES", 1)
    quantize(source, tmp_path / "many.onnx", frames(4), STEP)
    one, many = (layers_of(tmp_path / name)["neck"] for name in ("one.onnx", "many.onnx"))
    assert np.array_equal(one.bias, many.bias)


def test_padding_by_the_size_of_the_input_is_no_obstacle(plain: Made, tmp_path: Path) -> None:
    model = small_model()
    node = node_of(model, "body")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    found, _ = quantized(model, tmp_path)
    assert require_tensorrt_rules(found) == 3
    assert np.array_equal(layers_of(tmp_path / "int8.onnx")["body"].weights, plain[2]["body"].weights)


def test_a_layer_that_is_no_matrix_on_patches_stays_float(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node.insert(0, helper.make_node("Abs", ["body.bias"], ["computed"], "computed"))
    node_of(model, "body").input[2] = "computed"
    found, done = quantized(model, tmp_path)
    assert done.int8 == ("stem", "neck")
    assert require_tensorrt_rules(found) == 2
    assert node_of(found, "body").input[0] == "stem.relu"


def test_initializers_that_are_listed_as_inputs_are_no_obstacle(tmp_path: Path) -> None:
    """As old exporters do."""
    model = small_model()
    for each in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    found, _ = quantized(model, tmp_path)
    assert require_tensorrt_rules(found) == 3
    assert run(tmp_path / "int8.onnx", frames(1)[0]).shape == (1, 3, 256)


@pytest.mark.parametrize(("form", "share"), [("int8", 0.95), ("fp4x", 0.6)])
def test_compensated_weights_come_closer_to_the_float_network_than_rounded_ones(
    form: WeightFormat, share: float, tmp_path: Path
) -> None:
    """On frames that were not among those they were fitted to; smooth ones, as pictures are."""

    def smooth(count: int, seed: int) -> list[np.ndarray]:
        small = np.random.default_rng(seed).uniform(0, 1, (count, 1, 3, SIDE // 8, SIDE // 8))
        return list(small.repeat(8, axis=3).repeat(8, axis=4).astype(np.float32))

    source, out, plain = write(small_model(), tmp_path), tmp_path / "int8.onnx", tmp_path / "plain.onnx"
    plan: dict[str, WeightFormat] = dict.fromkeys(("stem", "body", "neck"), form)
    done = quantize(source, out, smooth(16, seed=0), STEP, plan)
    uncompensated(source, out, plain, done.forms)
    errors = np.zeros(2)
    for frame in smooth(4, seed=1):
        expected = run(source, frame)
        errors += [((run(graph, frame) - expected) ** 2).sum() for graph in (out, plain)]
    assert errors[0] < share * errors[1]


@pytest.mark.slow
def test_calibration_memory_does_not_grow_with_the_frames(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first frames fill the allocators; after them the process must not grow by as much as one frame's tensors."""
    graph = real_graph("yolox_nano.onnx", shared, tmp_path_factory)
    size = graph.exported.spec.preprocess
    resident: list[int] = []

    def counted() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range(60):
            yield rng.uniform(0, 255, (1, 3, size.height, size.width)).astype(np.float32)
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE"))

    model = Graph(onnx.load(graph.path))
    tensors = [node.input[0] for node in model.nodes if node.op_type == "Conv"]
    observe(onnx.load(graph.path), list(dict.fromkeys(tensors)), counted())
    assert max(resident[20:]) - max(resident[:20]) < 32 << 20


@pytest.mark.parametrize("name", DETECTORS)
def test_real_detectors_still_find_what_they_were_sure_of(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = real_graph(name, shared, tmp_path_factory)
    pictures = _pictures(shared, graph.exported.spec)
    out = tmp_path / "int8.onnx"
    done = quantize(graph.path, out, [batch for batch, _ in pictures[:8]], Quantize())
    assert require_tensorrt_rules(onnx.load(out)) == len(done.int8) > 0.8 * done.layers
    assert out.stat().st_size < 0.35 * graph.path.stat().st_size
    assert _kept(graph, out, pictures[8:]) >= 0.9
    if TENSORRT_RTX.available().usable:
        assert compile_ahead(out, ("SM86",), tmp_path / "engine").bytes > 100_000


@pytest.mark.slow
def test_a_real_detector_in_fp4x_finds_far_more_than_without_compensation(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = real_graph("yolox_nano.onnx", shared, tmp_path_factory)
    pictures = _pictures(shared, graph.exported.spec)
    source = Graph(onnx.load(graph.path))
    head = float_head(source)
    plan: dict[str, WeightFormat] = {n.name: "fp4x" for n in source.nodes if n.op_type == "Conv" and n.name not in head}
    out, plain = tmp_path / "fp4x.onnx", tmp_path / "plain.onnx"
    done = quantize(graph.path, out, [batch for batch, _ in pictures[:8]], Quantize(), plan)
    assert set(done.int8) == set(plan)
    assert all(layer.form == "fp4x" for layer in read_layers(out) if layer.scales is not None)
    uncompensated(graph.path, out, plain, done.forms)
    assert _kept(graph, out, pictures[8:]) > _kept(graph, plain, pictures[8:]) + 0.15


def _pictures(shared: Path, spec: DetectorSpec) -> list[tuple[np.ndarray, Placement]]:
    """Sixteen pictures as the detector reads them."""
    import cv2

    files = sorted((shared / "data" / "coco256" / "images" / "train2017").iterdir())[:16]
    return [letterbox(cv2.imread(str(path)), spec.preprocess) for path in files]


def _kept(graph: RealGraph, changed: Path, pictures: list[tuple[np.ndarray, Placement]]) -> float:
    """The share of what the float graph is sure of that another graph finds, too."""
    spec, kept, total = graph.exported.spec, 0, 0
    for batch, at in pictures:
        sure = decode(run(graph.path, batch), spec, at, Thresholds(confidence=0.4))
        found = decode(run(changed, batch), spec, at, Thresholds(confidence=0.2))
        total += len(sure)
        kept += sum(_finds(found, box, label) for box, label in zip(sure.boxes, sure.classes, strict=True))
    assert total > 5
    return kept / total


def _finds(found: Detections, box: np.ndarray, label: int) -> bool:
    """Whether an object is among the detections, in its class and at an IoU of 0.6 or more."""
    sides = np.minimum(box[2:], found.boxes[:, 2:]) - np.maximum(box[:2], found.boxes[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + areas - common
    return bool(((common > 0.6 * union) & (found.classes == label)).any())


def test_float_weights_have_eight_significant_bits_of_float16() -> None:
    weights = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    weights[:4] = [0, 1e9, -65504, 2.0**-24]
    short = as_short_half(weights)
    assert short.dtype == np.float32
    assert np.array_equal(short[:4], [0, 65504, -65504, 2.0**-24])
    assert np.array_equal(as_short_half(short), short)
    assert not (short[4:].astype(np.float16).view(np.uint16) & 7).any()
    assert np.square(short[4:] - weights[4:]).sum() < 10**-5.5 * np.square(weights[4:]).sum()

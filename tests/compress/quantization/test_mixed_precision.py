"""The planner's costs are those of the files that ship, and its choice is the best there is for them."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from real_graphs import RealGraph, real_graph
from small_graph import frames, small_model, write

from edgekd.compress.quantization.mixed_precision import (
    Costs,
    choices,
    corrected,
    ladder,
    measure_costs,
    packed_sizes,
    plan_for,
    solve,
)
from edgekd.compress.quantization.plan import Plan, require_fits
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.quantization.sensitivity_4bit import last_products, measure_rounded, relative_error
from edgekd.compress.steps import Quantize
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.formats.int8 import dequantize_channels
from edgekd.core.formats.packed_graph import pack
from edgekd.core.toml import parse_table
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import Graph

QUANTIZED = ("stem", "body", "neck")
HEAD = ("boxes", "scores")
STEP = Quantize(min_snr_db=-1000, formats=("int8", "fp4x"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(small_model(), tmp_path_factory.mktemp("planner"))


@pytest.fixture(scope="module")
def costs(small: Path) -> Costs:
    return measure_costs(small, frames(8), STEP)


def size(plan: Plan, source: Path, folder: Path) -> int:
    """Bytes of the graph that a plan really gives."""
    quantize(source, folder / "planned.onnx", frames(8), STEP, plan.forms, plan.steps)
    return len(pack((folder / "planned.onnx").read_bytes()))


OPTIONS = st.lists(
    st.lists(st.tuples(st.integers(0, 10**6), st.just(0.0) | st.floats(1e-9, 1)), min_size=1, max_size=3),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(OPTIONS, st.floats(0, 1))
def test_the_solution_is_the_best_of_all(options: list[list[tuple[int, float]]], share: float) -> None:
    least, most = (sum(pick(size for size, _ in each) for each in options) for pick in (min, max))
    limit = int(least + share * (most - least))
    ways = [list(zip(*way, strict=True)) for way in itertools.product(*options)]
    best = min(sum(errors) for sizes, errors in ways if sum(sizes) <= limit)
    sizes, errors = zip(*(each[at] for each, at in zip(options, solve(options, limit), strict=True)), strict=True)
    assert sum(sizes) <= limit
    assert sum(errors) <= best * (1 + 1e-9)


def test_every_convolution_has_its_options_in_graph_order(costs: Costs) -> None:
    forms = {layer.name: tuple(option.form for option in layer.options) for layer in costs.layers}
    assert list(forms) == [*QUANTIZED, *HEAD]
    assert all(forms[name] == ("int8", "fp4x") for name in QUANTIZED)
    assert all(forms[name] == ("float16",) for name in HEAD)


def test_fewer_bits_are_fewer_bytes_and_more_error(costs: Costs) -> None:
    for layer in costs.layers[: len(QUANTIZED)]:
        int8, fp4x = layer.options
        assert 0 < fp4x.bytes < int8.bytes
        assert 0 < int8.error < fp4x.error


def test_only_a_convolution_that_is_too_noisy_in_int8_may_stay_float(small: Path) -> None:
    layers = measure_costs(small, frames(4), replace(STEP, min_snr_db=1000)).layers
    assert [option.form for option in layers[0].options] == ["float16", "int8", "fp4x"]
    assert layers[0].options[0].error == 0
    assert layers[0].options[0].bytes > layers[0].options[1].bytes


@pytest.fixture(scope="module")
def coded_costs(small: Path) -> Costs:
    return measure_costs(small, frames(8), replace(STEP, formats=("int8", "coded")))


def test_coded_has_many_steps_each_smaller_and_worse_than_the_one_before(coded_costs: Costs) -> None:
    for layer in coded_costs.layers[: len(QUANTIZED)]:
        int8, *coded = layer.options
        assert (int8.form, {option.form for option in coded}) == ("int8", {"coded"})
        assert [option.step for option in coded] == sorted(option.step or 0 for option in coded)
        assert len(coded) > 8
        for finer, coarser in itertools.pairwise(coded):
            assert coarser.bytes <= finer.bytes
            assert coarser.error > finer.error > int8.error


def test_a_plan_with_coded_layers_gives_about_the_bytes_it_predicts(
    small: Path, coded_costs: Costs, tmp_path: Path
) -> None:
    whole, least = ladder(coded_costs, 2)
    plan = plan_for(coded_costs, (whole.predicted_bytes + least.predicted_bytes) // 2)
    assert "coded" in plan.forms.values()
    assert set(plan.steps) == {name for name, form in plan.forms.items() if form == "coded"}
    assert size(plan, small, tmp_path) == pytest.approx(
        plan.predicted_bytes, rel=0.15
    )  # Huffman tables beside 2,000 weights


def test_corrected_costs_predict_the_size_of_the_graph_that_corrected_them(
    small: Path, coded_costs: Costs, tmp_path: Path
) -> None:
    whole, least = ladder(coded_costs, 2)
    plan = plan_for(coded_costs, (whole.predicted_bytes + least.predicted_bytes) // 2)
    packed = size(plan, small, tmp_path)
    sizes = packed_sizes(onnx.load(tmp_path / "planned.onnx"), plan.forms)
    assert sizes.total == packed != plan.predicted_bytes
    again = corrected(coded_costs, plan, sizes)
    chosen = [
        next(option for option in layer.options if (option.form, option.step) == (planned.form, planned.step))
        for layer, planned in zip(again.layers, plan.layers, strict=True)
    ]
    assert again.rest_bytes + sum(option.bytes for option in chosen) == packed
    others = [layer.options[0].form for layer in again.layers if layer.options[0].form == "int8"]
    assert others == ["int8"] * len(QUANTIZED)


def test_costs_survive_json(costs: Costs) -> None:
    assert parse_table(Costs, json.loads(json.dumps(asdict(costs))), "costs") == costs
    with pytest.raises(SpecError, match="rest_byte"):
        parse_table(Costs, {**asdict(costs), "rest_byte": 1}, "costs")


def test_costs_are_the_same_every_time(small: Path, costs: Costs) -> None:
    assert measure_costs(small, frames(8), STEP) == costs


def test_without_frames_nothing_is_measured(small: Path) -> None:
    with pytest.raises(CompressError, match="at least one frame"):
        measure_costs(small, [], STEP)


def test_one_frame_is_enough(small: Path) -> None:
    assert [layer.name for layer in measure_costs(small, frames(1), STEP).layers] == [*QUANTIZED, *HEAD]


def test_without_a_limit_every_layer_gets_its_least_error(costs: Costs) -> None:
    plan = plan_for(costs)
    assert plan.forms == {**dict.fromkeys(QUANTIZED, "int8"), **dict.fromkeys(HEAD, "float16")}
    assert plan.max_bytes is None


def test_a_plan_keeps_its_limit_and_adds_up(costs: Costs) -> None:
    limit = plan_for(costs).predicted_bytes - 1
    plan = plan_for(costs, limit)
    assert plan.predicted_bytes <= limit == plan.max_bytes
    assert "fp4x" in plan.forms.values()
    assert "int8" in plan.forms.values()
    assert plan.predicted_bytes == costs.rest_bytes + sum(layer.bytes for layer in plan.layers)
    assert plan.predicted_error == pytest.approx(sum(layer.error for layer in plan.layers), rel=1e-3)


def test_a_limit_that_nothing_keeps_says_how_small_it_gets(costs: Costs) -> None:
    smallest = ladder(costs, 2)[-1].predicted_bytes
    with pytest.raises(CompressError, match=f"at least {smallest} bytes"):
        plan_for(costs, smallest - 1)
    assert plan_for(costs, smallest).predicted_bytes == smallest


def test_a_ladder_goes_from_the_least_error_to_the_least_size(costs: Costs) -> None:
    plans = ladder(costs, 5)
    assert len(plans) == 5
    assert plans[0] == plan_for(costs)
    assert {layer.form for layer in plans[-1].layers if layer.name in QUANTIZED} == {"fp4x"}
    for larger, smaller in itertools.pairwise(plans):
        assert smaller.predicted_bytes <= larger.predicted_bytes
        assert smaller.predicted_error >= larger.predicted_error


def test_quantizing_by_a_plan_gives_its_forms_and_about_its_size(small: Path, costs: Costs, tmp_path: Path) -> None:
    for plan in ladder(costs, 2):
        require_fits(plan, choices(small))
        done = quantize(small, tmp_path / "planned.onnx", frames(8), STEP, plan.forms)
        assert done.forms == plan.forms
        assert size(plan, small, tmp_path) == pytest.approx(plan.predicted_bytes, rel=0.1)


def test_the_head_can_only_be_float16(small: Path, costs: Costs) -> None:
    plan = plan_for(costs)
    edited = replace(plan, layers=tuple(replace(layer, form="int8") for layer in plan.layers))
    with pytest.raises(SpecError, match="layer boxes; expected float16; found int8"):
        require_fits(edited, choices(small))


def test_an_error_is_measured_as_if_the_whole_graph_had_run(small: Path, tmp_path: Path) -> None:
    model = onnx.load(small)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in HEAD)
    seen = frames(4)
    for layer in measure_rounded(Graph(onnx.load(small)), dict.fromkeys(QUANTIZED, ("fp4x",)), seen):
        changed = type(model)()
        changed.CopyFrom(model)
        assert isinstance(layer.stored, tuple)
        values = {"weight": dequantize_channels(*layer.stored), "bias": layer.bias}
        for initializer in changed.graph.initializer:
            stem, _, part = initializer.name.partition(".")
            if stem == layer.name:
                initializer.CopyFrom(numpy_helper.from_array(values[part], initializer.name))
        wanted, found = ends(model, seen[-1]), ends(changed, seen[-1])
        errors = [relative_error([wanted[name]], [found[name]]) for name in HEAD]
        assert layer.output_error == pytest.approx(np.mean(errors), rel=1e-3)
        assert layer.output_error > 0


def ends(model: onnx.ModelProto, frame: np.ndarray) -> dict[str, np.ndarray]:
    """What the head's convolutions give."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(HEAD, session.run(list(HEAD), {"images": frame}), strict=True))


def test_a_layer_that_hardly_counts_has_a_small_error(tmp_path: Path, costs: Costs) -> None:
    """`body` is added to what it reads; made a thousand times smaller, it is as noisy in itself, but not in the sum."""
    model = small_model()
    for initializer in model.graph.initializer:
        if initializer.name == "body.weight":
            initializer.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(initializer) / 1000, "body.weight"))
    quieter = measure_costs(write(model, tmp_path), frames(8), STEP)
    before, after = (next(layer for layer in each.layers if layer.name == "body") for each in (costs, quieter))
    assert after.options[1].error < before.options[1].error / 1e4
    assert plan_for(quieter, quieter.rest_bytes + 10**6).forms["body"] == "int8"
    assert plan_for(quieter, plan_for(quieter).predicted_bytes - 1).forms["body"] == "fp4x"


def test_errors_are_measured_where_the_last_convolutions_end() -> None:
    assert last_products(Graph(small_model())) == HEAD


def test_a_relative_error_does_not_depend_on_units_or_offsets() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(2, 1, 3, 8, 8))
    noise = rng.normal(size=wanted.shape) / 10
    error = relative_error(list(wanted), list(wanted + noise))
    assert error == pytest.approx(0.01, rel=0.2)
    offsets = np.array([0, 100, -1000]).reshape(1, 3, 1, 1)
    scaled = 640 * (wanted + offsets)
    assert relative_error(list(scaled), list(scaled + 640 * noise)) == pytest.approx(error)


@pytest.mark.release
def test_a_real_detector_gets_what_was_predicted_and_more_than_by_the_simple_rule(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Beside the plan: fp4x for the largest layers, until the size is the same."""
    graph = real_graph("yolox_nano.onnx", shared, tmp_path_factory)
    pictures = real_frames(shared, graph)
    costs = measure_costs(graph.path, pictures[:8], Quantize(formats=("int8", "fp4x")))
    best, middle, _ = ladder(costs, 3)
    assert "fp4x" in middle.forms.values()
    simple, left = dict(best.forms), best.predicted_bytes - middle.predicted_bytes
    for layer in sorted(costs.layers, key=lambda layer: layer.weights, reverse=True):
        sizes = {option.form: option.bytes for option in layer.options}
        if left > 0 and simple[layer.name] == "int8":
            simple[layer.name] = "fp4x"
            left -= sizes["int8"] - sizes["fp4x"]

    errors = []
    for forms in (middle.forms, simple):
        quantize(graph.path, tmp_path / "planned.onnx", pictures[:8], Quantize(), forms)
        packed = len(pack((tmp_path / "planned.onnx").read_bytes()))
        assert packed == pytest.approx(middle.predicted_bytes, rel=0.02)
        errors.append(scores_error(graph, tmp_path / "planned.onnx", pictures[8:]))
    assert errors[0] < errors[1]


def real_frames(shared: Path, graph: RealGraph) -> list[np.ndarray]:
    """Sixteen pictures as the detector reads them."""
    import cv2

    files = sorted((shared / "data" / "coco256" / "images" / "train2017").iterdir())[:16]
    return [letterbox(cv2.imread(str(path)), graph.exported.spec.preprocess)[0] for path in files]


def scores_error(graph: RealGraph, planned: Path, pictures: list[np.ndarray]) -> float:
    """Noise by signal of YOLOX's scores [1, n, 5 + classes]."""
    with ONNXRUNTIME_CPU.load(graph.path) as before, ONNXRUNTIME_CPU.load(planned) as after:
        pairs = [(before.run(each)[..., 4:], after.run(each)[..., 4:]) for each in pictures]
    return sum(float(np.square(a - b).sum()) for a, b in pairs) / sum(float(np.square(a).sum()) for a, _ in pairs)

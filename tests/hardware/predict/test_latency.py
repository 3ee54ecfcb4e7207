"""The rules of the latency model, with coefficients of round numbers and with those that ship."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.errors import SpecError
from edgekd.hardware.predict.device import GpuFigures, gpu_figures
from edgekd.hardware.predict.dla import DlaCoefficients
from edgekd.hardware.predict.energy import EnergyModel
from edgekd.hardware.predict.latency import (
    Calibration,
    Coefficients,
    LatencyModel,
    Predictor,
    scale_from,
    seconds,
    shipped,
    transfer_ms,
)
from edgekd.hardware.predict.work import Work, convolution
from edgekd.hardware.target import Figure, Target, load_target

ROUND = Coefficients(
    launch_us=1,
    graph_us=0.5,
    wave=0,
    bandwidth=1,
    cache=1,
    cuda_fp32=1,
    cuda_fp16=1,
    tensor_fp32=1,
    tensor_fp16=1,
    tensor_int8=0.5,
    copy=3,
    transfer=0.1,
)
GPU = GpuFigures(sm=8.7, precision="int8", peak=1e9, bandwidth=1e9, cache=1e-3, multiprocessors=4, clock_ghz=1)
"""With a cache that holds nothing."""
FAST = replace(GPU, peak=1e15)
LAYER = convolution("c", inputs=16, outputs=32, positions=100, kernel=9)
JETSONS = "agx-orin nano orin-nano orin-nano-super orin-nx thor tx2 xavier xavier-nx".split()


def test_a_kernel_is_the_longer_of_arithmetic_and_traffic_and_its_launch() -> None:
    arithmetic = 2 * LAYER.multiply_adds / (1e9 * 0.5)
    memory = (1600 + 3200 + 16 * 32 * 9) / 1e9
    assert seconds(LAYER, GPU, ROUND) == pytest.approx(arithmetic + 1e-6)
    assert seconds(LAYER, FAST, ROUND) == pytest.approx(memory + 1e-6)


def test_weights_are_read_once_for_a_batch() -> None:
    one, four = (seconds(LAYER, FAST, ROUND, batch) for batch in (1, 4))
    assert four - one == pytest.approx(3 * 4800 / 1e9)


def test_small_layers_wait_for_the_last_wave() -> None:
    waiting = seconds(LAYER, GPU, replace(ROUND, wave=1000)) - seconds(LAYER, GPU, ROUND)
    assert waiting == pytest.approx(2 * 16 * 9 * 1000 * 4 / 0.5e9)


def test_launches_go_with_the_clock_and_are_given_or_fitted() -> None:
    nothing = Work("n", "memory")
    assert seconds(nothing, GPU, ROUND) == pytest.approx(1e-6)
    assert seconds(nothing, replace(GPU, clock_ghz=2.0), ROUND) == pytest.approx(0.5e-6)
    assert seconds(nothing, GPU, ROUND, launch_us=ROUND.graph_us) == pytest.approx(0.5e-6)


def test_tensors_that_fit_in_the_cache_pass_at_its_bandwidth() -> None:
    pooling = Work("p", "memory", read=1000, written=1000)
    large, half = (seconds(pooling, replace(GPU, cache=size), ROUND) for size in (1e9, 1000))
    assert large == pytest.approx(2000 / (64 * 4 * 1e9) + 1e-6)
    assert half == pytest.approx(1000 / (64 * 4 * 1e9) + 1000 / 1e9 + 1e-6)


@pytest.mark.parametrize(
    ("sm", "precision", "fused"), [(8.7, "fp16", True), (7.2, "fp16", False), (8.7, "int8", False)]
)
def test_silu_is_a_kernel_of_its_own_in_int8_and_before_ampere(sm: float, precision: Any, fused: bool) -> None:
    device = replace(FAST, sm=sm, precision=precision)
    size = 1 if precision == "int8" else 2
    gated = seconds(replace(LAYER, silu=True), device, ROUND) - seconds(LAYER, device, ROUND)
    assert gated == pytest.approx(0 if fused else 2 * size * 3200 / 1e9 + 1e-6)


def test_depthwise_convolutions_cost_bytes_and_copies_cost_time() -> None:
    depthwise = convolution("d", 16, 16, 100, 9, depthwise=True)
    assert seconds(depthwise, GPU, ROUND) == pytest.approx((3200 + 144) / 1e9 + 1e-6)
    assert seconds(Work("c", "copy", read=500, written=500), GPU, ROUND) == pytest.approx(3 * (1e-6 + 1e-6))


def test_a_plugin_takes_float32_with_a_conversion_on_either_side() -> None:
    plugin = Work("p", "memory", read=500, written=500, plugin=True)
    assert seconds(plugin, GPU, ROUND) == pytest.approx(1000 * (4 + 5) / 1e9 + 3e-6)
    exact = replace(GPU, precision="fp32")
    assert seconds(plugin, exact, ROUND) == pytest.approx(1000 * 4 / 1e9 + 1e-6)


@pytest.mark.parametrize(
    ("precision", "multiple", "unit"),
    [("fp32", 4, "tensor_fp32"), ("fp16", 8, "tensor_fp16"), ("int8", 16, "tensor_int8")],
)
def test_channels_are_padded_to_what_tensor_cores_take(precision: Any, multiple: int, unit: str) -> None:
    device = replace(GPU, peak=1e12, precision=precision, bandwidth=1e18)
    assert device.unit == unit
    widths = [seconds(convolution("c", width, 32, 100, 9), device, ROUND) for width in range(5, 33)]
    steps = {width for width, (now, more) in enumerate(pairwise(widths), 6) if more > now * 1.001}
    assert steps == {width for width in range(6, 33) if width % multiple == 1}


def test_images_have_kernels_of_their_own() -> None:
    fast = replace(GPU, peak=1e12, bandwidth=1e18)
    times = [seconds(convolution("c", width, 32, 10000, 9), fast, ROUND) for width in (1, 3, 4, 5)]
    assert times[0] == pytest.approx(times[1], rel=1e-6)
    assert times[1] == pytest.approx(times[2], rel=1e-6)
    assert times[3] > 2 * times[2]


def test_arrays_give_what_layers_give() -> None:
    works = [
        LAYER,
        convolution("d", 16, 16, 100, 9, depthwise=True),
        Work("p", "memory", read=5, written=7, plugin=True),
    ]

    class Columns:
        pass

    columns = Columns()
    for name in vars(LAYER):
        setattr(columns, name, np.array([getattr(work, name) for work in works]))
    assert seconds(columns, GPU, ROUND, 2) == pytest.approx([seconds(work, GPU, ROUND, 2) for work in works])


@settings(max_examples=200, deadline=None)
@given(
    target=st.sampled_from(JETSONS),
    precision=st.sampled_from(["fp32", "fp16", "int8"]),
    inputs=st.integers(1, 512),
    outputs=st.integers(1, 512),
    more=st.integers(1, 64),
    positions=st.integers(1, 100_000),
    kernel=st.sampled_from([1, 9, 25]),
    depthwise=st.booleans(),
)
def test_more_channels_are_never_faster(
    target: str, precision: str, inputs: int, outputs: int, more: int, positions: int, kernel: int, depthwise: bool
) -> None:
    chosen = load_target(target)
    if precision not in chosen.precisions.conv.value:
        return
    predictor = Predictor(chosen, precision)  # type: ignore[arg-type]

    def time(a: int, b: int) -> float:
        return predictor.layer_us(convolution("c", a, a if depthwise else b, positions, kernel, depthwise=depthwise))

    assert time(inputs, outputs) <= time(inputs + more, outputs)
    assert time(inputs, outputs) <= time(inputs, outputs + more)


# Predictions


def model(**calibration: Any) -> LatencyModel:
    """A model of round numbers."""
    usual = {"measured_margin": 1.1, "margin": 1.5, "wide_margin": 2.0, "scaled_margin": 1.2}
    usual |= {"seen": ((8.7, "int8"), (8.7, "fp16")), "multiply_adds": (1000, 10**9)}
    energy, dla = EnergyModel(0.5, 0.5, 1.5, (7.2,)), DlaCoefficients(0.5, 0.5, 1, 1, 0.75, 1.5)
    return LatencyModel(ROUND, {"agx-orin": {"int8": 2.0}}, Calibration(**usual | calibration), energy, dla)


def test_a_target_that_was_measured_is_corrected_and_surer() -> None:
    corrected = Predictor(load_target("agx-orin"), "int8", model()).predict([LAYER, LAYER])
    plain = Predictor(load_target("agx-orin"), "int8", replace(model(), corrections={})).predict([LAYER, LAYER])
    assert corrected.latency_ms == pytest.approx(2 * plain.latency_ms)
    assert corrected.high_ms == pytest.approx(1.1 * corrected.latency_ms)
    assert plain.low_ms == pytest.approx(plain.latency_ms / 1.5)
    assert plain.fps == pytest.approx(1000 / plain.latency_ms)
    assert [layer.us for layer in plain.layers] == pytest.approx([plain.latency_ms * 500] * 2)
    assert corrected.doubts == plain.doubts == ()


def test_a_batch_takes_longer_and_is_more_frames_a_second() -> None:
    predictor = Predictor(load_target("xavier"), "int8", model())
    one, four = predictor.predict([LAYER]), predictor.predict([LAYER], {replace(LAYER, name=""): 7.0}, batch=4)
    assert four.latency_ms == pytest.approx(predictor.layer_us(LAYER, 4) / 1e3)  # what was timed is of one frame
    assert one.latency_ms < four.latency_ms < 4 * one.latency_ms
    assert four.fps == pytest.approx(4000 / four.latency_ms)
    assert one.energy_mj
    assert four.energy_mj
    assert four.energy_mj < one.energy_mj


def test_a_cuda_graph_launches_faster() -> None:
    one, graph = (Predictor(load_target("xavier"), "int8", model(), cuda_graph=graph) for graph in (False, True))
    assert one.layer_us(LAYER) - graph.layer_us(LAYER) == pytest.approx(0.5 / 1.377)


def test_copies_take_a_share_of_the_bandwidth() -> None:
    copied = transfer_ms(1000, load_target("xavier"), 2, model())
    assert copied == pytest.approx(4 * 1000 * 2 / (136.5e9 * 0.1) * 1e3)
    assert transfer_ms(1000, load_target("cpu")) is None


@pytest.mark.parametrize(
    ("target", "precision", "doubt"),
    [
        ("xavier", "int8", "no device of compute capability 7.2"),
        ("agx-orin", "fp32", "fp32 was not measured on compute capability 8.7"),
        ("tx2", "fp16", "memory.bandwidth_gbs"),
    ],
)
def test_what_was_not_measured_or_not_verified_widens_the_range(target: str, precision: Any, doubt: str) -> None:
    found = Predictor(load_target(target), precision, model()).predict([LAYER])
    assert any(doubt in each for each in found.doubts)
    assert found.high_ms == pytest.approx(2.0 * found.latency_ms)


def test_a_network_of_another_size_than_was_measured_is_doubtful() -> None:
    predictor = Predictor(load_target("agx-orin"), "int8", model(multiply_adds=(10**9, 10**10)))
    assert "0.00 billion multiply-adds; networks of 1.0 to 10.0" in predictor.predict([LAYER]).doubts[0]


def test_measurements_of_the_device_scale_narrow_and_replace() -> None:
    target = load_target("xavier")
    plain = Predictor(target, "int8", model()).predict([LAYER, LAYER])
    scaled = Predictor(target, "int8", model(), scale=3.0)
    found = scaled.predict([LAYER, LAYER])
    assert found.latency_ms == pytest.approx(3 * plain.latency_ms)
    assert found.high_ms == pytest.approx(1.2 * found.latency_ms)
    assert found.doubts == ()
    other = replace(LAYER, inputs=64)
    known = scaled.predict([LAYER, other], {replace(LAYER, name=""): 7.0})
    assert [layer.us for layer in known.layers] == [7.0, scaled.layer_us(other)]


def test_the_median_of_measurements_scales() -> None:
    assert scale_from([8.0, 1.0, 2.0]) == pytest.approx(2.0)
    assert scale_from([8.0, 2.0]) == pytest.approx(4.0)


# Targets


@pytest.mark.parametrize("name", JETSONS)
def test_every_jetson_can_be_predicted_in_what_it_convolves_in(name: str) -> None:
    target = load_target(name)
    for precision in ("fp32", "fp16", "int8"):
        if precision in target.precisions.conv.value:
            assert Predictor(target, precision).layer_us(LAYER) > 0  # type: ignore[arg-type]


def test_cuda_cores_compute_where_there_are_no_tensor_cores_for_it() -> None:
    units = {name: gpu_figures(load_target(name), precision).unit for name, precision in
             (("nano", "fp16"), ("xavier", "fp32"), ("xavier-nx", "int8"), ("orin-nx", "fp32"))}  # fmt: skip
    assert units == {"nano": "cuda_fp16", "xavier": "cuda_fp32", "xavier-nx": "tensor_int8", "orin-nx": "tensor_fp32"}


def test_a_cpu_is_to_be_measured() -> None:
    with pytest.raises(SpecError, match=r"cannot be predicted in int8.*memory\.bandwidth_gbs.*edgekd bench"):
        Predictor(load_target("cpu"), "int8")


def test_a_target_without_figures_says_which() -> None:
    with pytest.raises(SpecError, match=r"found none for memory\.l2_mib, multiprocessors, clock_ghz.*\.toml"):
        Predictor(load_target("rtx-40"), "fp16")


@pytest.mark.parametrize(("precision", "said"), [("int8", "no convolutions in int8"), ("in8", "did you mean 'int8'")])
def test_a_precision_that_is_not_there_is_refused(precision: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Predictor(load_target("nano"), precision)


# Energy


def kit(watts: float | None) -> Target:
    target = load_target("xavier")
    assert target.power
    modes = tuple(replace(mode, watts=Figure(watts, "a test", True) if watts else None) for mode in target.power.modes)
    return replace(target, power=replace(target.power, modes=modes))


def test_a_kit_draws_a_share_of_its_largest_mode_and_more_when_busy() -> None:
    energy = EnergyModel(idle=0.5, busy=0.5, margin=1.5, seen=(8.7,))
    assert energy.millijoules(kit(20), GPU, 0, latency_ms=10) == pytest.approx(100)
    assert energy.millijoules(kit(20), GPU, 5e6, latency_ms=10) == pytest.approx(150)
    assert energy.millijoules(kit(20), GPU, 1e9, latency_ms=10) == pytest.approx(200)


def test_there_is_no_energy_without_a_basis() -> None:
    energy = EnergyModel(idle=0.5, busy=0.5, margin=1.5, seen=(8.7,))
    assert energy.millijoules(kit(None), GPU, 0, 10) is None
    assert energy.millijoules(kit(20), replace(GPU, sm=11.0), 0, 10) is None
    assert energy.millijoules(load_target("a100"), GPU, 0, 10) is None
    found = Predictor(load_target("thor"), "fp16").predict([LAYER])
    assert (found.energy_mj, found.low_mj, found.high_mj) == (None, None, None)


def test_what_ships_knows_its_own_limits() -> None:
    limits = shipped().calibration
    assert 1 < limits.measured_margin <= limits.margin <= limits.wide_margin
    assert set(shipped().corrections) <= set(JETSONS)

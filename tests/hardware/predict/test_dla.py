"""The rules of the model of a DLA, with coefficients of round numbers and with those that ship."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekd.core.errors import SpecError
from edgekd.hardware.predict.dla import DlaCoefficients, DlaFigures, dla_figures, dla_seconds
from edgekd.hardware.predict.latency import predict_dla, shipped
from edgekd.hardware.predict.work import Work, convolution
from edgekd.hardware.target import load_target

ROUND = DlaCoefficients(share=0.5, bandwidth=0.1, layer_us=1, silu_ns=2, sparse=0.75, margin=1.5)
CORE = DlaFigures(peak=1e9, bandwidth=1e12)
NARROW = DlaFigures(peak=1e15, bandwidth=1e9)
LAYER = convolution("c", inputs=16, outputs=32, positions=100, kernel=9)


def test_a_layer_is_the_longer_of_arithmetic_and_traffic_and_its_start() -> None:
    assert dla_seconds(LAYER, CORE, ROUND) == pytest.approx(2 * LAYER.multiply_adds / 0.5e9 + 1e-6)
    assert dla_seconds(LAYER, NARROW, ROUND) == pytest.approx((1600 + 3200 + 4608) / 1e8 + 1e-6)


def test_a_batch_reads_weights_once() -> None:
    assert dla_seconds(LAYER, NARROW, ROUND, 3) == pytest.approx((3 * 4800 + 4608) / 1e8 + 1e-6)


def test_sparsity_saves_arithmetic_and_bytes_of_weights() -> None:
    arithmetic = 2 * LAYER.multiply_adds / 0.5e9
    assert dla_seconds(LAYER, CORE, ROUND, sparse=True) == pytest.approx(0.75 * arithmetic + 1e-6)
    assert dla_seconds(LAYER, NARROW, ROUND, sparse=True) == pytest.approx((4800 + 4608 * 5 / 8) / 1e8 + 1e-6)


def test_silu_takes_time_for_each_number_and_plugins_none() -> None:
    gated = dla_seconds(replace(LAYER, silu=True), CORE, ROUND, 2) - dla_seconds(LAYER, CORE, ROUND, 2)
    assert gated == pytest.approx(2 * 3200 * 2e-9)
    assert dla_seconds(Work("n", "memory", read=9, written=9, plugin=True), CORE, ROUND) == 0


def test_a_prediction_is_of_one_core() -> None:
    orin = load_target("agx-orin")
    found = predict_dla([LAYER, LAYER], orin, 2, model=replace(shipped(), dla=ROUND))
    assert orin.dla
    assert orin.dla.int8_tops
    core = DlaFigures(orin.dla.int8_tops.value / 2 * 1e12, 204.8e9)
    assert found.latency_ms == pytest.approx(2e3 * dla_seconds(LAYER, core, ROUND, 2))
    assert found.high_ms == pytest.approx(1.5 * found.latency_ms)
    assert found.fps == pytest.approx(2000 / found.latency_ms)
    assert "edgekd check --dla" in found.doubts[0]
    assert "generation 1" in predict_dla([LAYER], load_target("xavier")).doubts[1]


@pytest.mark.parametrize(
    ("target", "sparse", "said"), [("nano", False, "has no DLA"), ("xavier", True, "2:4 sparsity")]
)
def test_what_a_target_has_not_is_refused(target: str, sparse: bool, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        dla_figures(load_target(target), sparse=sparse)

"""What candidates are thought to cost, and who is refused for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekd.builds.search.cost_filter import BaseGraph, Cost, CostFilter, excesses, predicted, scaled_layer
from edgekd.builds.search.space import FLOAT, INT8, Candidate, DetectorFacts, space_for
from edgekd.hardware.budget import Budget
from edgekd.hardware.predict.work import convolution, multiply_adds
from edgekd.hardware.target import load_target

TARGET = load_target("xavier")
WORKS = tuple(convolution(str(at), 128, 128, 6400, 9) for at in range(20))
SPACE = space_for(DetectorFacts(640, trains=True, resizes=True, quant_aware=True), TARGET, 30)
WHOLE = Candidate(None, 640)


@pytest.fixture
def found() -> CostFilter:
    return CostFilter(SPACE, {None: BaseGraph(640, WORKS)}, 100_000, TARGET)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_thinner_layer_has_its_share_of_weights_and_multiply_adds(share: float) -> None:
    dense, deep = WORKS[0], convolution("dw", 128, 128, 6400, 9, depthwise=True)
    for work in (dense, deep):
        less = scaled_layer(work, share, 1.0)
        left = share if work is dense else share**0.5
        assert less.weights / work.weights == pytest.approx(left, rel=0.02)
        assert less.multiply_adds / work.multiply_adds == pytest.approx(left, rel=0.02)
        assert scaled_layer(work, 1.0, 0.25).multiply_adds * 4 == work.multiply_adds
    assert less.groups == less.inputs == less.outputs


def test_fewer_bits_fewer_channels_and_a_smaller_input_cost_less(found: CostFilter) -> None:
    whole = found.cost(WHOLE)
    assert found.cost(replace(WHOLE, bits=5.5)).bytes < whole.bytes < found.cost(replace(WHOLE, bits=FLOAT)).bytes
    for change in ({"image_size": 320}, {"ratio": 0.5}):
        assert found.cost(replace(WHOLE, **change)).latency_ms < whole.latency_ms
    assert found.cost(replace(WHOLE, image_size=320)).bytes == whole.bytes
    assert found.cost(replace(WHOLE, ratio=0.5)).bytes < 0.6 * whole.bytes
    assert whole.energy_mj > 0
    assert found.cost(replace(WHOLE, bits=FLOAT)).latency_ms > whole.latency_ms


def test_what_cannot_fit_is_refused_with_the_reason(found: CostFilter) -> None:
    whole = found.cost(WHOLE)
    assert found.refusal(WHOLE, Budget()) is None
    assert found.refusal(WHOLE, Budget(max_bytes=int(whole.bytes / 1.05))) is None, "an estimate may be off"
    assert "size would be at least 1.82 times" in str(found.refusal(WHOLE, Budget(max_bytes=int(whole.bytes / 2))))
    assert "time a frame would be at least 2.91" in str(found.refusal(WHOLE, Budget(min_fps=3000 / whole.latency_ms)))
    assert "energy" in str(found.refusal(WHOLE, Budget(max_energy_mj=whole.energy_mj / 2)))


def test_what_was_tried_corrects_what_is_alike(found: CostFilter) -> None:
    pruned, other = replace(WHOLE, ratio=0.5), replace(WHOLE, ratio=0.5, image_size=320)
    before = [found.cost(each) for each in (pruned, other, WHOLE)]
    real = Cost(before[0].bytes * 1.5, before[0].latency_ms * 2, None)
    found.learn(pruned, real)
    after = [found.cost(each) for each in (pruned, other, WHOLE)]
    assert after[0].bytes == pytest.approx(real.bytes)
    assert after[1].latency_ms == pytest.approx(2 * before[1].latency_ms)
    assert after[2] == before[2]
    assert after[0].energy_mj == before[0].energy_mj


def test_a_target_without_figures_is_not_predicted_and_its_time_not_limited() -> None:
    cpu = load_target("cpu")
    assert predicted(WORKS, cpu, True) == (None, None)
    found = CostFilter(space_for(DetectorFacts(640), cpu, 0), {None: BaseGraph(640, WORKS)}, 0, cpu)
    assert found.cost(WHOLE).latency_ms is None
    assert found.refusal(WHOLE, Budget(min_fps=1e9)) is None
    assert excesses(found.cost(WHOLE), Budget(min_fps=1e9)) == {}


def test_arithmetic_agrees_with_the_network(found: CostFilter) -> None:
    weights = sum(work.weights for work in WORKS)
    assert found.cost(WHOLE).bytes == pytest.approx(100_000 + 0.9 * weights)
    assert found.cost(replace(WHOLE, bits=4.75)).bytes == pytest.approx(100_000 + 4.75 / 8 * weights)
    assert multiply_adds(WORKS) == 20 * 6400 * 9 * 128 * 128
    assert INT8 in SPACE.bits


def test_what_pruning_leaves_is_unsure_until_one_was_pruned_as_much(found: CostFilter) -> None:
    pruned, other = replace(WHOLE, ratio=0.5), replace(WHOLE, ratio=0.5, bits=5.5)
    thought = found.cost(pruned)
    budget = Budget(max_bytes=int(thought.bytes / 1.9))
    assert found.refusal(pruned, budget) is None
    found.learn(other, found.cost(other))
    assert "size would be at least 1.46" in str(found.refusal(pruned, budget))
    found.learn(pruned, thought)
    assert "size would be at least 1.86" in str(found.refusal(pruned, budget))

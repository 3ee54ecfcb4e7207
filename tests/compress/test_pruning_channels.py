"""Choosing channels: the least important for what they save, in steps, until enough is gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.builds.stages.prune import part_of
from edgekd.compress.pruning import (
    Convolution,
    Goal,
    Unit,
    choose,
    isomorphic,
    least_important,
    multiply_adds,
)
from edgekd.compress.pruning import _least as least
from edgekd.compress.steps import Prune
from edgekd.core.errors import CompressError

# Four layers in a row, the last of which keeps what it writes: three units between them.
CHAIN = (
    Convolution(inputs=3, outputs=32, positions=400, kernel=9),
    Convolution(inputs=32, outputs=64, positions=100, kernel=9),
    Convolution(inputs=64, outputs=64, positions=25, kernel=1),
    Convolution(inputs=64, outputs=10, positions=25, kernel=1),
)


def chain(*importance: np.ndarray) -> list[Unit]:
    rows = [np.atleast_2d(each).astype(np.float64) for each in importance]
    return [Unit(f"layer.{at}", row, {at: 1}, {at + 1: 1}) for at, row in enumerate(rows)]


def even() -> list[Unit]:
    return chain(np.ones(32), np.ones(64), np.ones(64))


def less(ratio: float, convolutions: Sequence[Convolution] = CHAIN) -> Goal:
    """So much of the multiply-adds gone."""
    return Goal(multiply_adds(convolutions) * (1 - ratio))


def narrower(gone: dict[str, int]) -> list[Convolution]:
    """The chain with so many channels less."""
    fewer = [gone[f"layer.{at}"] for at in range(3)]
    return [
        Convolution(each.inputs - before, each.outputs - after, each.positions, each.kernel)
        for each, before, after in zip(CHAIN, [0, *fewer], [*fewer, 0], strict=True)
    ]


def test_multiply_adds_are_counted_and_depthwise_ones_by_channel() -> None:
    assert multiply_adds([Convolution(3, 32, 400, 9)]) == 3 * 32 * 400 * 9
    assert multiply_adds([Convolution(32, 32, 400, 9, depthwise=True)]) == 32 * 400 * 9


@given(
    seed=st.integers(0, 10**6),
    ratio=st.floats(0.05, 0.7),
    multiple=st.sampled_from([1, 4, 8, 16]),
    most=st.floats(0.7, 0.95),
)
@settings(max_examples=60, deadline=None)
def test_what_is_left_is_small_enough_and_keeps_its_rules(seed: int, ratio: float, multiple: int, most: float) -> None:
    draw = np.random.default_rng(seed)
    units = chain(*(draw.exponential(size=count) for count in (32, 64, 64)))
    try:
        gone = choose(units, CHAIN, less(ratio), Prune(multiple=multiple, most=most))
    except CompressError:
        assert ratio > 0.4, "so much can always go"
        return
    assert multiply_adds(narrower(gone)) <= multiply_adds(CHAIN) * (1 - ratio)
    for unit in units:
        left = unit.channels - gone[unit.name]
        assert left % multiple == 0
        assert left >= max(unit.channels * (1 - most), multiple)


def test_the_unimportant_go_and_the_important_stay() -> None:
    units = chain(np.full(32, 1e6), np.full(64, 1e6), np.full(64, 1e-6))
    gone = choose(units, CHAIN, less(0.02), Prune(multiple=8))
    assert gone["layer.0"] == gone["layer.1"] == 0
    assert gone["layer.2"] > 0


def test_of_equal_importance_what_saves_most_goes_first() -> None:
    gone = choose(even(), CHAIN, less(0.1), Prune(multiple=8))
    assert gone["layer.0"] > 0, "its layers look at the most places"
    assert gone["layer.2"] == 0


def test_not_much_more_goes_than_was_asked_for() -> None:
    for ratio in (0.1, 0.3, 0.5):
        left = multiply_adds(narrower(choose(even(), CHAIN, less(ratio), Prune(multiple=1)))) / multiply_adds(CHAIN)
        assert 0.96 - ratio < left <= 1 - ratio


def test_an_uneven_width_goes_down_to_a_multiple_first() -> None:
    units = [Unit("layer", np.ones((1, 20)), {0: 1}, {1: 1})]
    convolutions = (Convolution(3, 20, 100, 9), Convolution(20, 4, 100, 1))
    assert choose(units, convolutions, less(0.01, convolutions), Prune(multiple=8)) == {"layer": 4}


def test_groups_of_a_unit_lose_as_many_each_and_count_together() -> None:
    halves = np.stack([np.arange(1, 17), np.full(16, 100.0)])
    unit = Unit("halves", halves, {0: 2}, {1: 2})
    assert unit.losses()[2] == pytest.approx(1 + 2 + 200)
    convolutions = (Convolution(3, 32, 100, 1), Convolution(32, 8, 100, 1))
    assert choose([unit], convolutions, less(0.2, convolutions), Prune(multiple=4)) == {"halves": 4}
    assert multiply_adds(convolutions) * 0.8 >= multiply_adds((Convolution(3, 24, 100, 1), Convolution(24, 8, 100, 1)))


def test_more_than_may_go_is_refused_with_what_can() -> None:
    with pytest.raises(CompressError, match=r"no less than \d+% of the multiply-adds.*10% of the multiply-adds"):
        choose(even(), CHAIN, less(0.9), Prune(multiple=16, most=0.5))


def test_the_least_important_are_named_in_order() -> None:
    assert least_important(np.array([3.0, 0.5, 2.0, 0.5]), 3) == [1, 2, 3]
    assert least_important(np.array([1.0, 1.0]), 0) == []


def test_ranks_are_among_units_built_alike() -> None:
    strong, weak = np.array([[10.0, 20.0]]), np.array([[1.0, 2.0]])
    units = [Unit("a.0.conv", strong, {}, {}), Unit("a.1.conv", weak, {}, {}), Unit("b.0.conv", weak, {}, {})]
    ranked = isomorphic(units)
    assert [unit.name for unit in ranked] == [unit.name for unit in units]
    assert ranked[0].importance.tolist() == [[0.75, 1.0]]
    assert ranked[1].importance.tolist() == [[0.25, 0.5]]
    assert ranked[2].importance.tolist() == [[0.5, 1.0]], "nothing else is built like it"


def test_weights_can_be_the_goal() -> None:
    whole = sum(each.weights for each in CHAIN)
    left = narrower(choose(even(), CHAIN, Goal(weights=whole / 2), Prune(multiple=8)))
    assert 0.35 * whole < sum(each.weights for each in left) <= whole / 2
    with pytest.raises(CompressError, match=r"10% of the weights"):
        choose(even(), CHAIN, Goal(weights=whole / 10), Prune(multiple=16, most=0.5))


def test_the_cost_that_is_given_decides_what_saves_most() -> None:
    def late(layer: Convolution) -> float:
        """Only the layers that look at few places take time."""
        return float(layer.inputs * layer.outputs) if layer.positions == 25 else 0.0

    assert choose(even(), CHAIN, less(0.1), Prune(multiple=8))["layer.2"] == 0
    gone = choose(even(), CHAIN, less(0.01), Prune(multiple=8), late)
    assert gone["layer.2"] > 0
    assert gone["layer.0"] == 0, "it saves nothing"


def test_a_depthwise_layer_reads_as_many_channels_as_it_writes() -> None:
    layers = (CHAIN[0], Convolution(32, 32, 400, 9, depthwise=True), Convolution(32, 10, 400, 1))
    seen: list[Convolution] = []

    def cost(layer: Convolution) -> float:
        seen.append(layer)
        return layer.multiply_adds

    unit = Unit("layer", np.ones((1, 32)), {0: 1, 1: 1}, {2: 1})
    assert choose([unit], layers, less(0.3, layers), Prune(multiple=8), cost) == {"layer": 16}
    widths = {(layer.inputs, layer.outputs) for layer in seen if layer.depthwise}
    assert {(32, 32), (24, 24), (16, 16)} <= widths
    assert all(inputs == outputs for inputs, outputs in widths)


def test_layers_are_capped_in_rounds_as_in_one() -> None:
    """A round's part of a small cap is less than a step of channels, and no round's part is all of it."""
    units, cap = chain(np.ones(32), np.ones(64), np.ones(64)), {"layer.1": 0.25}
    for rounds in (1, 2, 3, 4):
        step, widths = Prune(multiple=16, most=0.8, caps=cap, rounds=rounds), {}
        left = {unit.name: unit.channels for unit in units}
        for number in range(rounds, 0, -1):
            part = part_of(step, number, widths)
            now = [Unit(each.name, each.importance[:, : left[each.name]], each.writes, each.reads) for each in units]
            gone = {unit.name: unit.channels - least(unit, part) for unit in now}
            left = {name: left[name] - count // 16 * 16 for name, count in gone.items()}
            widths = {unit.name: (unit.channels, left[unit.name]) for unit in units}
            assert all(left[unit.name] >= unit.channels * (1 - step.cap(unit.name)) for unit in units)
        assert left == {"layer.0": 16, "layer.1": 48, "layer.2": 16}, rounds


@pytest.mark.parametrize(("channels", "cap"), [(160, 0.7), (64, 0.25), (80, 0.8), (48, 1 / 3)])
def test_a_cap_is_that_share_and_no_channel_less(channels: int, cap: float) -> None:
    unit = Unit("layer", np.ones((1, channels)), {0: 1}, {1: 1})
    assert least(unit, Prune(multiple=16, most=cap)) == max(round(channels * (1 - cap)), 16)


def test_a_step_that_saves_nothing_goes_on_to_one_that_does() -> None:
    def padded(layer: Convolution) -> float:
        """A device that always computes whole blocks of 32 channels."""
        return float(-(-layer.inputs // 32) * -(-layer.outputs // 32))

    gone = choose(even(), CHAIN, less(0.05), Prune(multiple=8), padded)
    assert all((unit.channels - gone[unit.name]) % 32 == 0 for unit in even())
    assert any(gone.values())


def test_layers_may_be_capped_by_name() -> None:
    units = even()
    free = choose(units, CHAIN, less(0.2), Prune(multiple=8))
    assert free["layer.0"] > 0
    caps = {"layer.0": 0.0, "layer.1*": 0.25}
    capped = choose(units, CHAIN, less(0.2), Prune(multiple=8, caps=caps))
    assert capped["layer.0"] == 0
    assert capped["layer.1"] == 16, "a quarter and no more"
    with pytest.raises(CompressError, match="raise `most`"):
        choose(units, CHAIN, less(0.4), Prune(multiple=8, caps=caps))

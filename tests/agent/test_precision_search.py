"""Which layers are left in float: names, times, minimum cuts, and a search on a model of a machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdq_models import conv_pair

from edgekd.agent.precision_search import (
    LayerGraph,
    PrecisionSearch,
    Profile,
    cheapest,
    connected,
    layer_graph,
    profile_of,
)
from edgekd.agent.runtimes.types import Layer
from edgekd.agent.tuning import fastest
from edgekd.core.formats.qdq_graph import QdqGraph

BYTES = 1000
BUILDS = 4


@dataclass(frozen=True)
class Machine:
    """A machine on which a layer takes its time in INT8 or in float, and each change between the two another one."""

    graph: LayerGraph
    int8_ms: tuple[int, ...]
    float_ms: tuple[int, ...]
    conversion_ms: int

    def layers_ms(self, floating: Iterable[str]) -> dict[str, float]:
        """Return the time of each layer, without conversions."""
        chosen = set(floating)
        pairs = zip(self.graph.names, self.int8_ms, self.float_ms, strict=True)
        return {name: float(slow if name in chosen else quick) for name, quick, slow in pairs}

    def conversions(self, floating: Iterable[str]) -> list[tuple[str, str]]:
        """Return the links that lead from one precision to the other."""
        chosen = set(floating)
        return [(first, second) for first, second in self.graph.links if (first in chosen) != (second in chosen)]

    def total_ms(self, floating: Iterable[str]) -> float:
        """Return the time of one run."""
        return sum(self.layers_ms(floating).values()) + self.conversion_ms * len(self.conversions(floating))

    def profile(self, floating: Iterable[str]) -> Profile:
        """Return what a profiler says: each conversion belongs to the layer after it."""
        ms, links = self.layers_ms(floating), self.conversions(floating)
        for _, second in links:
            ms[second] += self.conversion_ms
        written = dict.fromkeys(self.graph.names, BYTES)
        return Profile(ms, written, float(self.conversion_ms * len(links)), BYTES * len(links))


def searched(machine: Machine, builds: int = BUILDS) -> list[tuple[str, ...]]:
    """Return the sets of layers that a search builds on a machine."""
    shipped, floating = machine.profile(()), machine.profile(machine.graph.names)
    search, built = PrecisionSearch(machine.graph, shipped, floating), []
    while len(built) < builds and (names := search.propose()) is not None:
        built.append(names)
        search.add(names, shipped, machine.profile(names))
    return built


def chain(count: int) -> LayerGraph:
    """Return layers one after the other."""
    names = tuple(f"layer{index}" for index in range(count))
    return LayerGraph(names, tuple(itertools.pairwise(names)), {name: (name,) for name in names})


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Draw a machine with a network in which a layer reads up to three earlier ones."""
    count = draw(st.integers(1, 7))
    names = tuple(f"layer{index}" for index in range(count))
    pairs = [(names[first], names[second]) for second in range(count) for first in range(max(0, second - 3), second)]
    links = tuple(pair for pair in pairs if draw(st.booleans()))
    times = st.lists(st.integers(0, 20), min_size=count, max_size=count).map(tuple)
    graph = LayerGraph(names, links, {name: (name,) for name in names})
    return Machine(graph, draw(times), draw(times), draw(st.integers(0, 6)))


@given(machines())
@settings(max_examples=200, deadline=None)
def test_the_cut_takes_least_of_all_assignments_and_the_fewest_layers(machine: Machine) -> None:
    names = machine.graph.names
    rate = machine.conversion_ms / BYTES
    found = cheapest(machine.graph, machine.layers_ms(()), machine.profile(names), rate)
    every = [subset for size in range(len(names) + 1) for subset in itertools.combinations(names, size)]
    least = min(map(machine.total_ms, every))
    assert machine.total_ms(found) == pytest.approx(least)
    assert len(found) == min(len(subset) for subset in every if machine.total_ms(subset) == pytest.approx(least))


@given(machines())
@settings(max_examples=200, deadline=None)
def test_a_search_is_bounded_repeatable_and_never_worse_than_both_controls(machine: Machine) -> None:
    built = searched(machine)
    assert built == searched(machine)
    assert len(built) == len(set(built)) <= BUILDS
    controls = [(), machine.graph.names]
    assert not set(map(frozenset, built)) & set(map(frozenset, controls)), "those are built anyway"
    forms = [*controls, *built]
    rounds = [np.full(20, machine.total_ms(form) + 1) for form in forms]
    chosen = fastest(rounds, [True] * len(forms))
    assert chosen is not None
    # Less than the least gain is left lying: the engine as shipped stays then.
    assert (machine.total_ms(forms[chosen]) + 1) * 0.98 <= min(machine.total_ms(form) + 1 for form in controls)


def test_a_region_whose_borders_cost_more_than_it_gains_stays_in_int8() -> None:
    """What a conversion takes is known from the first engine that has one; the next one goes back."""
    machine = Machine(chain(5), (10, 10, 12, 10, 10), (20, 20, 10, 20, 20), 5)
    assert searched(machine) == [("layer2",)]
    wide = Machine(chain(6), (10, 30, 30, 30, 10, 10), (20, 10, 10, 10, 20, 9), 5)
    first, *more = searched(wide)
    assert first == ("layer1", "layer2", "layer3", "layer5")
    assert ("layer1", "layer2", "layer3") in more, "without the island"


def test_regions_are_what_links_connect() -> None:
    assert connected(chain(6), ["layer0", "layer1", "layer3"]) == [
        frozenset({"layer0", "layer1"}),
        frozenset({"layer3"}),
    ]


def test_without_times_nothing_is_proposed() -> None:
    assert PrecisionSearch(chain(3), Profile({}), Profile({})).propose() is None


# ----------------------------------------------------------------------------------- names of a builder's fused layers


@pytest.fixture
def pair() -> LayerGraph:
    """Two convolutions with Q/DQ, and a Relu between them."""
    return layer_graph(QdqGraph(conv_pair().SerializeToString()))


def test_layers_with_qdq_and_what_lies_between_them(pair: LayerGraph) -> None:
    assert pair.names == ("first", "second")
    assert pair.links == (("first", "second"),)
    owners = {name: pair.owners[name] for name in ("relu", "hidden/quantize", "hidden/dq", "x/dq", "second/int8")}
    assert owners == {
        "relu": ("first",),
        "hidden/quantize": ("second",),
        "hidden/dq": ("second",),
        "x/dq": ("first",),
        "second/int8": ("second",),
    }


@pytest.mark.parametrize(
    ("name", "owners"),
    [
        ("first", ["first"]),
        ("first + relu", ["first"]),
        ("second/int8 + second/quantize + second", ["second"]),
        ("Reformatting CopyNode for Input Tensor 0 to second", ["second"]),
        ("{ForeignNode[first...second]}", ["first", "second"]),
        ("first/WithoutBiases + Multiply_7 + first", ["first"]),
        ("relu/QuickGeluFusion/", ["first"]),
        ("hidden/quantize_abcd_acdb_second/WithoutBiases", ["second"]),
    ],
)
def test_times_go_to_the_layers_that_a_name_stands_for(pair: LayerGraph, name: str, owners: Sequence[str]) -> None:
    found = profile_of([Layer(name, "", "int8", ms=2.0)], pair)
    assert found.ms == {owner: 2.0 / len(owners) for owner in owners}


def test_layers_without_a_name_of_the_graph_belong_to_those_beside_them(pair: LayerGraph) -> None:
    layers = [
        Layer("reorder_1", "", "reformat", activation_bytes=8, ms=1.0),
        Layer("first", "", "int8", activation_bytes=4, ms=10.0),
        Layer("VariadicSplit_7", "", "fp32", ms=100.0),
        Layer("hidden/quantize", "Subgraph", "fp32", activation_bytes=2, ms=1000.0),
        Layer("second", "", "int8", ms=10000.0),
    ]
    found = profile_of(layers, pair)
    assert found.ms == {"first": 111.0, "second": 11000.0}
    assert (found.copied_ms, found.copied_bytes) == (1001.0, 10), (
        "a node of Q/DQ alone is a copy, whatever it is called"
    )
    assert found.written == {"first": 4, "second": 0}


# ---------------------------------------------------------------------------------------------------- which is fastest


def rounds(ms: float, spread: float = 0.01, seed: int = 0) -> np.ndarray:
    """Return medians of rounds around a time."""
    return ms * np.random.default_rng(seed).normal(1, spread, 40)


def test_the_fastest_that_passed_is_chosen() -> None:
    found = [rounds(10.0, seed=1), rounds(12.0, seed=2), rounds(9.0, seed=3), rounds(8.0, seed=4)]
    assert fastest(found, [True, True, True, True]) == 3
    assert fastest(found, [True, True, True, False]) == 2
    assert fastest(found, [False, True, False, False]) == 1
    assert fastest(found, [False, False, False, False]) is None


@pytest.mark.parametrize("ms", [10.0, 9.9, 10.5])
def test_what_is_not_faster_beyond_doubt_leaves_the_shipped_one(ms: float) -> None:
    assert fastest([rounds(10.0, 0.05, 1), rounds(ms, 0.05, 2)], [True, True]) == 0


def test_noise_seldom_takes_the_shipped_ones_place() -> None:
    """Of eight equal engines none is better; without a correction every third run would choose one."""
    wrong = 0
    for seed in range(60):
        equal = [rounds(10.0, 0.2, 100 * seed + index) for index in range(8)]
        wrong += fastest(equal, [True] * 8) != 0
    assert wrong <= 6

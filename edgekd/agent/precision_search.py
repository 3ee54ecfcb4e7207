"""Search for the layers of a network that are faster in float, by the profiles of its engines. Pure.

A layer with Q/DQ takes a time in INT8 and another in float, and a tensor between layers of different types costs a
conversion: the cheapest assignment is a minimum cut. The cost of conversions is known once an engine with them is
built, so that candidates are built and profiled, and the next one keeps the regions that gained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.agent.runtimes.fused_names import fused_nodes, operand_names
from edgekd.agent.runtimes.precision import REFORMAT

if TYPE_CHECKING:
    from edgekd.agent.runtimes.types import Layer
    from edgekd.core.formats.qdq_graph import QdqGraph

WEIGHTS = (1.0, 3.0, 10.0)
"""Factors on the measured cost of conversions: the larger, the fewer islands."""
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class LayerGraph:
    """The layers of a network that have a precision, and their links.

    names: of the layers with Q/DQ, in graph order; links: pairs of layers, of which the second reads the output of the
    first, directly or through nodes without a precision; owners: by the name of a node or of weights, the layers that
    its time is added to; copies: names of Q/DQ nodes.
    """

    names: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    owners: Mapping[str, tuple[str, ...]]
    copies: frozenset[str] = frozenset()

    def neighbours(self, names: Iterable[str]) -> set[str]:
        """Return the layers that share a link with these."""
        inside = set(names)
        return {end for link in self.links if not inside.isdisjoint(link) for end in link} - inside


@dataclass(frozen=True)
class Profile:
    """Times and output bytes of an engine's layers.

    ms: by layer, with its share of copies and of other nodes; written: bytes of a layer's output; copied_ms,
    copied_bytes: of all copies.
    """

    ms: Mapping[str, float]
    written: Mapping[str, int] = field(default_factory=dict)
    copied_ms: float = 0.0
    copied_bytes: int = 0

    def total_ms(self, names: Iterable[str]) -> float:
        """Return the sum of the layers' times, in milliseconds."""
        return sum(self.ms.get(name, 0.0) for name in names)


def layer_graph(graph: QdqGraph) -> LayerGraph:
    """Return the layers of a Q/DQ graph. Those that compute without Q/DQ are in links, but not in names."""
    from edgekd.core.formats.qdq_graph import COMPUTING, is_pair  # NumPy, which most commands do without

    sources: dict[str, tuple[str, ...]] = {}  # the layers that a tensor comes from
    owners: dict[str, tuple[str, ...]] = {}
    names, links = [], []
    for node in graph.nodes:
        before = _distinct(source for name in node.inputs for source in sources.get(name, ()))
        copies = is_pair(node)
        quantized = not copies and any(name in graph.dequantizers for name in node.inputs)
        after = before
        if quantized or node.operator in COMPUTING:
            links += [(source, node.name) for source in before]
            after = (node.name,)
        if quantized:
            names.append(node.name)
            for name in operand_names(graph, node):
                owners[name] = _distinct((*owners.get(name, ()), node.name))
        if not copies:
            owners[node.name] = after
        sources.update(dict.fromkeys(node.outputs, after))
    all_copies = frozenset(node.name for node in graph.nodes if is_pair(node))
    return LayerGraph(tuple(names), tuple(links), owners, all_copies)


def profile_of(layers: Sequence[Layer], graph: LayerGraph) -> Profile:
    """Return the times of an engine's layers, which are in execution order, by layer of the network.

    An engine's layer without a name of the graph belongs to the one before it, a copy to the one after it.
    """
    positions = {name: index for index, name in enumerate(graph.owners)}
    nodes = [fused_nodes(layer.name, positions) for layer in layers]
    copies = [
        layer.precision == REFORMAT or (bool(names) and graph.copies.issuperset(names))
        for layer, names in zip(layers, nodes)  # noqa: B905
    ]
    owners = [_distinct(owner for name in each for owner in graph.owners[name]) for each in nodes]
    last: tuple[str, ...] = ()
    for index in range(len(layers)):
        if not owners[index] and copies[index]:
            owners[index] = next(filter(None, owners[index + 1 :]), ())
        last = owners[index] = owners[index] or last
    ms: dict[str, float] = {}
    written: dict[str, int] = {}
    copied_ms, copied_bytes = 0.0, 0
    for layer, names, is_copy in zip(layers, owners, copies):  # noqa: B905
        duration = layer.ms or 0.0
        for name in names:
            ms[name] = ms.get(name, 0.0) + duration / len(names)
            if not is_copy:
                written[name] = max(written.get(name, 0), layer.activation_bytes)
        if is_copy and duration:
            copied_ms, copied_bytes = copied_ms + duration, copied_bytes + layer.activation_bytes
    return Profile(ms, written, copied_ms, copied_bytes)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class PrecisionSearch:
    """Proposes sets of layers to leave in float, one after the other, by the profiles of earlier engines.

    shipped, floating: profiles of the engines with all layers in INT8, and with none.
    """

    def __init__(self, graph: LayerGraph, shipped: Profile, floating: Profile) -> None:
        self._graph, self._shipped, self._floating = graph, shipped, floating
        self._copied = [(each.copied_ms, each.copied_bytes) for each in (shipped, floating)]
        self._gained: list[frozenset[str]] = []
        self._proposed: set[frozenset[str]] = {frozenset(), frozenset(graph.names)}

    def propose(self) -> tuple[str, ...] | None:
        """Return the layers to leave in float next, in graph order; None where no proposal is new."""
        for names in self._proposals():
            if names not in self._proposed:
                self._proposed.add(names)
                return tuple(name for name in self._graph.names if name in names)
        return None

    def add(self, names: Iterable[str], before: Profile, after: Profile) -> None:
        """Add the profile of an engine with these layers in float, and of the shipped one beside it."""
        self._copied.append((after.copied_ms, after.copied_bytes))
        regions = connected(self._graph, names)
        self._gained.append(frozenset().union(*(each for each in regions if self._gains(each, before, after))))

    def _gains(self, region: frozenset[str], before: Profile, after: Profile) -> bool:
        around = (*region, *self._graph.neighbours(region))
        return after.total_ms(around) < before.total_ms(around)

    def _proposals(self) -> Iterator[frozenset[str]]:
        yield from reversed(self._gained)
        copied_bytes = sum(count for _, count in self._copied)
        ms_per_byte = sum(ms for ms, _ in self._copied) / copied_bytes if copied_bytes else 0.0
        for weight in WEIGHTS:
            yield cheapest(self._graph, self._shipped.ms, self._floating, weight * ms_per_byte)


def cheapest(graph: LayerGraph, int8_ms: Mapping[str, float], floating: Profile, ms_per_byte: float) -> frozenset[str]:
    """Return the layers to leave in float for the least total of layers and conversions; of equals, the fewest.

    int8_ms: by layer; ms_per_byte: of a conversion of the output of a link's first layer in float. The times in INT8
    include conversions before layers without Q/DQ.
    """
    movable = set(graph.names)
    cut = _MinimumCut()
    for name in graph.names:
        cut.add(_INT8, name, _nanoseconds(floating.ms.get(name, 0.0)))
        cut.add(name, _FLOAT, _nanoseconds(int8_ms.get(name, 0.0)))
    for first, second in graph.links:
        if {first, second} <= movable:
            conversion = _nanoseconds(ms_per_byte * floating.written.get(first, 0))
            cut.add(first, second, conversion)
            cut.add(second, first, conversion)
    return frozenset(cut.last_side(_INT8, _FLOAT) & movable)


def connected(graph: LayerGraph, names: Iterable[str]) -> list[frozenset[str]]:
    """Return the connected regions of layers, in graph order."""
    remaining = set(names)
    regions = []
    for name in graph.names:
        if name not in remaining:
            continue
        region, new = {name}, {name}
        while new:
            new = (graph.neighbours(new) & remaining) - region
            region |= new
        remaining -= region
        regions.append(frozenset(region))
    return regions


_INT8, _FLOAT = "\0int8", "\0float"
"""Terminals of the cut network, which no layer has as its name."""


def _nanoseconds(ms: float) -> int:
    """Return an integer, so that sums are exact and the result is the same everywhere."""
    return round(ms * _NS_PER_MS)


class _MinimumCut:
    """Minimum cut by the algorithm of Edmonds and Karp, for some hundred layers."""

    def __init__(self) -> None:
        self._left: dict[str, dict[str, int]] = {}

    def add(self, source: str, goal: str, capacity: int) -> None:
        """Add to the capacity from one node to another."""
        self._left.setdefault(source, {}).setdefault(goal, 0)
        self._left.setdefault(goal, {}).setdefault(source, 0)
        self._left[source][goal] += capacity

    def last_side(self, source: str, goal: str) -> set[str]:
        """Return the nodes on the goal's side of the minimum cut that has the fewest of them there."""
        while True:
            came_from = self._search(source)
            if goal not in came_from:
                break
            path = [goal]
            while path[-1] != source:
                path.append(came_from[path[-1]])
            steps = list(zip(path[1:], path))  # noqa: B905
            flow = min(self._left[first][second] for first, second in steps)
            for first, second in steps:
                self._left[first][second] -= flow
                self._left[second][first] += flow
        return self._leading_to(goal)

    def _search(self, source: str) -> dict[str, str]:
        """Return by node that is reachable from the source its predecessor on a shortest path."""
        came_from, front = {source: source}, [source]
        while front:
            reached = []
            for first in front:
                for second, left in self._left.get(first, {}).items():
                    if left and second not in came_from:
                        came_from[second] = first
                        reached.append(second)
            front = reached
        return came_from

    def _leading_to(self, goal: str) -> set[str]:
        leading, front = {goal}, [goal]
        while front:
            node = front.pop()
            for other in self._left.get(node, {}):
                if other not in leading and self._left[other][node]:
                    leading.add(other)
                    front.append(other)
        return leading

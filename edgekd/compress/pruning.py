"""Which channels a network can best do without: rules on numbers, whatever framework the network is written in.

Convolutions are tied together: what one writes another reads, and what a residual adds must be as wide. Channels that
can only go together are a group. Groups from which as many channels must go each, such as the two halves of what a
block splits, are a unit. Units are cut in steps, so that widths stay multiples of what a device likes, always the step
that loses the least importance for what it saves: multiply-adds, or time on a device. What saves nothing is not taken.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekd.core.errors import CompressError

if TYPE_CHECKING:
    from edgekd.builds.recipe import Prune


@dataclass(frozen=True)
class Convolution:
    """One layer. positions: places in its output, height * width; kernel: weights for a pair of channels.

    stride: places in its input for each in its output, along each side.
    """

    inputs: int
    outputs: int
    positions: int
    kernel: int
    depthwise: bool = False
    stride: int = 1

    @property
    def weights(self) -> int:
        """How many numbers it has, its biases aside."""
        return self.kernel * (self.outputs if self.depthwise else self.inputs * self.outputs)

    @property
    def multiply_adds(self) -> int:
        """Of one frame."""
        return self.positions * self.weights


Cost = Callable[[Convolution], float]
"""What it takes to run a layer once, in any unit: multiply-adds, or microseconds on a device."""


@dataclass(frozen=True)
class Goal:
    """What may be left at most, of all convolutions: multiply-adds of a frame, and weights."""

    multiply_adds: float = inf
    weights: float = inf


@dataclass(frozen=True, eq=False)
class Unit:
    """Channels that are removed in the same number from one or more groups.

    name: of a layer that writes them; importance: float64 [groups, channels]; writes, reads: how many channels of a
    convolution, by its index, each step of one channel takes away on either side.
    """

    name: str
    importance: NDArray[np.float64]
    writes: Mapping[int, int]
    reads: Mapping[int, int]

    @property
    def channels(self) -> int:
        """How many each of its groups has."""
        return int(self.importance.shape[1])

    def losses(self) -> NDArray[np.float64]:
        """The importance that goes with the least important 0, 1, ... channels of each group: [channels + 1]."""
        return np.concatenate([[0.0], np.sort(self.importance, axis=1).sum(axis=0).cumsum()])

    @property
    def kind(self) -> str:
        """The same for units that are built alike: the name without numbers."""
        return re.sub(r"\d+", "#", self.name)


def multiply_adds(convolutions: Sequence[Convolution]) -> int:
    """Of one frame, over all convolutions."""
    return sum(each.multiply_adds for each in convolutions)


def isomorphic(units: Sequence[Unit]) -> list[Unit]:
    """The units with importance replaced by rank among the channels of units built alike: (0, 1], 1 the most important.

    Layers of one kind are then cut alike however large their gradients are. Isomorphic pruning: Fang and others,
    arXiv 2407.04616.
    """
    kinds: dict[str, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    ranked: dict[str, Unit] = {}
    for alike in kinds.values():
        everything = np.sort(np.concatenate([unit.importance.ravel() for unit in alike]))
        for unit in alike:
            share = np.searchsorted(everything, unit.importance, side="right") / len(everything)
            ranked[unit.name] = Unit(unit.name, share, unit.writes, unit.reads)
    return [ranked[unit.name] for unit in units]


MULTIPLE = 16
"""What widths stay multiples of where neither step nor target says: vectors of 16 numbers are common."""
NOTHING = 1e-9
"""The share of a network's cost that counts as no saving."""
ROUNDING = 1e-9
"""The part of a channel by which shares of whole channels may be off: 30 % of 160 are 48, and no fraction more."""


def choose(
    units: Sequence[Unit], convolutions: Sequence[Convolution], goal: Goal, step: Prune, cost: Cost | None = None
) -> dict[str, int]:
    """How many channels each unit loses, by its name: at least importance for what it saves, step by step.

    step: of which `multiple`, `most` and `caps` count; each cut brings a unit to its next multiple, or where that saves
    nothing to a further one. cost: of what the goal limits if None, first multiply-adds. Which channels go in a group:
    `least_important`.
    Raises CompressError where all that may go is not enough.
    """
    multiple = step.multiple or MULTIPLE
    usual = _weights if goal.multiply_adds == inf else _multiply_adds
    network = _Network(convolutions, cost or usual)
    left = {unit.name: unit.channels for unit in units}
    losses = {unit.name: unit.losses() for unit in units}
    least = {unit.name: _least(unit, step) for unit in units}

    def price(unit: Unit) -> tuple[float, int] | None:
        """Importance by cost of the next cut, and its channels; None where there is no further one."""
        now = left[unit.name]
        gone = unit.channels - now
        for fewer in range(now % multiple or multiple, now - least[unit.name] + 1, multiple):
            if (saved := network.saved(unit, fewer)) > NOTHING * network.cost:
                return (losses[unit.name][gone + fewer] - losses[unit.name][gone]) / saved, fewer
        return None

    waiting = [(found[0], at) for at, unit in enumerate(units) if (found := price(unit))]
    heapq.heapify(waiting)
    while not network.within(goal):
        if not waiting:
            raise _unreachable(network, convolutions, goal)
        _, at = heapq.heappop(waiting)
        found = price(units[at])
        if found and (not waiting or found[0] <= waiting[0][0]):  # else it saves less since others were cut
            network.cut(units[at], found[1])
            left[units[at].name] -= found[1]
            found = price(units[at])
        if found:
            heapq.heappush(waiting, (found[0], at))
    return {unit.name: unit.channels - left[unit.name] for unit in units}


def _multiply_adds(layer: Convolution) -> float:
    return layer.multiply_adds


def _weights(layer: Convolution) -> float:
    return layer.weights


def _least(unit: Unit, step: Prune) -> int:
    """The channels that a unit keeps in any case."""
    multiple = step.multiple or MULTIPLE
    rest = int(np.ceil(unit.channels * (1 - step.cap(unit.name)) - ROUNDING))
    return max(rest, multiple if unit.channels >= multiple else 1)


def _unreachable(network: _Network, before: Sequence[Convolution], goal: Goal) -> CompressError:
    all_adds, all_weights = multiply_adds(before), sum(each.weights for each in before)
    return CompressError(
        "pruning: so much cannot go",
        expected=f"no less than {network.multiply_adds / all_adds:.0%} of the multiply-adds to be left, "
        f"and {network.weights / all_weights:.0%} of the weights",
        found=", ".join(
            f"{limit / whole:.0%} of the {name}"
            for name, limit, whole in (
                ("multiply-adds", goal.multiply_adds, all_adds),
                ("weights", goal.weights, all_weights),
            )
            if limit < inf
        ),
        fix="ask for less, or raise most",
    )


def least_important(importance: NDArray[np.float64], count: int) -> list[int]:
    """The indices of the channels of one group [channels] that go, in ascending order; of equal ones the first."""
    return sorted(np.argsort(importance, kind="stable")[:count].tolist())


class _Network:
    """The widths of convolutions while units are cut, and what they come to."""

    def __init__(self, convolutions: Sequence[Convolution], cost: Cost) -> None:
        self._layers = list(convolutions)
        self._cost = cost
        self.multiply_adds = multiply_adds(convolutions)
        self.weights = sum(each.weights for each in convolutions)
        self.cost = sum(map(cost, convolutions))

    def within(self, goal: Goal) -> bool:
        """Whether no more is left than may be."""
        return self.multiply_adds <= goal.multiply_adds and self.weights <= goal.weights

    def saved(self, unit: Unit, channels: int) -> float:
        """The cost that goes with so many channels of a unit."""
        return sum(self._cost(self._layers[at]) - self._cost(new) for at, new in self._narrower(unit, channels))

    def cut(self, unit: Unit, channels: int) -> None:
        """Take so many channels away."""
        self.cost -= self.saved(unit, channels)
        for at, new in self._narrower(unit, channels):
            old, self._layers[at] = self._layers[at], new
            self.multiply_adds -= old.multiply_adds - new.multiply_adds
            self.weights -= old.weights - new.weights

    def _narrower(self, unit: Unit, channels: int) -> list[tuple[int, Convolution]]:
        """What becomes of the convolutions that a unit's channels are written and read by."""
        found = []
        for at in sorted({*unit.writes, *unit.reads}):
            old = self._layers[at]
            inputs, outputs = (
                width - channels * side.get(at, 0)
                for width, side in ((old.inputs, unit.reads), (old.outputs, unit.writes))
            )
            # A depthwise one reads what it writes, and is told of once.
            found.append((at, replace(old, inputs=outputs if old.depthwise else inputs, outputs=outputs)))
        return found

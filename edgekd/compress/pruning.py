"""Selection of the channels to prune, from importance and cost alone: independent of the network's framework.

Convolutions are coupled: one reads another's outputs, and the summands of a residual are equally wide. Channels that
can only be removed together are a group. Groups that must lose equally many channels, such as the two halves of a split
block, are a unit. Units are cut in steps, so that widths stay multiples of the number that the device prefers. The next
cut is always the one with the lowest importance per saving, in multiply-adds or time on a device. Cuts that save
nothing are skipped.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekd.core.errors import CompressError

if TYPE_CHECKING:
    from edgekd.compress.steps import Prune


@dataclass(frozen=True)
class Convolution:
    """Sizes of a convolution.

    positions: height * width of its output; kernel: weights per pair of channels, kh * kw; stride: the same along both
    axes.
    """

    inputs: int
    outputs: int
    positions: int
    kernel: int
    depthwise: bool = False
    stride: int = 1

    @property
    def weights(self) -> int:
        """Number of weights, without biases."""
        return self.kernel * (self.outputs if self.depthwise else self.inputs * self.outputs)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one frame."""
        return self.positions * self.weights


CostFunction = Callable[[Convolution], float]
"""Cost of running a layer once, in any unit: multiply-adds, or microseconds on a device."""


@dataclass(frozen=True)
class Goal:
    """Limits over all convolutions: multiply-adds of a frame, and weights."""

    multiply_adds: float = inf
    weights: float = inf


@dataclass(frozen=True, eq=False)
class Unit:
    """Channels that are removed in the same number from one or more groups.

    name: name of a layer that writes them; importance: float64 [groups, channels]; writes, reads: output or input
    channels that a convolution loses for each removed channel of the unit, by the convolution's index.
    """

    name: str
    importance: NDArray[np.float64]
    writes: Mapping[int, int]
    reads: Mapping[int, int]

    @property
    def channels(self) -> int:
        """Number of channels of each group."""
        return int(self.importance.shape[1])

    def losses(self) -> NDArray[np.float64]:
        """Return the summed importance of each group's 0, 1, ... least important channels: float64 [channels + 1]."""
        return np.concatenate([[0.0], np.sort(self.importance, axis=1).sum(axis=0).cumsum()])


def multiply_adds(convolutions: Sequence[Convolution]) -> int:
    """Return the multiply-adds of one frame, over all convolutions."""
    return sum(each.multiply_adds for each in convolutions)


def isomorphic(units: Sequence[Unit]) -> list[Unit]:
    """Replace importance by its rank among the channels of units with the same structure: (0, 1], 1 for the highest.

    Different kinds of layers are then pruned alike, whatever the size of their gradients. Isomorphic pruning: Fang and
    others, arXiv 2407.04616.
    """
    kinds: dict[str, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(re.sub(r"\d+", "#", unit.name), []).append(unit)  # equal for units of the same structure
    ranked: dict[str, Unit] = {}
    for alike in kinds.values():
        ordered = np.sort(np.concatenate([unit.importance.ravel() for unit in alike]))
        for unit in alike:
            share = np.searchsorted(ordered, unit.importance, side="right") / len(ordered)
            ranked[unit.name] = replace(unit, importance=share)
    return [ranked[unit.name] for unit in units]


DEFAULT_MULTIPLE = 16
"""Widths are multiples of this if neither step nor target sets one: vectors of 16 numbers are common."""
MIN_SAVING = 1e-9
"""Smallest saving that counts, as a share of a network's cost."""
ROUNDING = 1e-9
"""Tolerance for rounding errors when a share is converted to channels: 30 % of 160 is 48, not 49."""


def choose(
    units: Sequence[Unit],
    convolutions: Sequence[Convolution],
    goal: Goal,
    step: Prune,
    cost: CostFunction | None = None,
) -> dict[str, int]:
    """Return the number of channels to remove from each unit, by name: greedily, by the lowest importance per saving.

    step: only `multiple`, `most` and `caps` are used; a cut reduces a unit to the next lower multiple, or further if
    that saves nothing. cost: the cost that cuts save; by default the limited quantity, multiply-adds if both are
    limited. `least_important` selects the channels of each group.
    Raises CompressError if the goal cannot be met within these limits.
    """
    multiple = step.multiple or DEFAULT_MULTIPLE
    limited: CostFunction = attrgetter("weights" if goal.multiply_adds == inf else "multiply_adds")
    network = _Network(convolutions, cost or limited)
    left = {unit.name: unit.channels for unit in units}
    losses = {unit.name: unit.losses() for unit in units}
    least = {unit.name: _least(unit, step) for unit in units}

    def price(unit: Unit) -> tuple[float, int] | None:
        """Return the importance per saving of the next cut, and its number of channels; None if there is none."""
        now = left[unit.name]
        gone = unit.channels - now
        for fewer in range(now % multiple or multiple, now - least[unit.name] + 1, multiple):
            if (saved := network.saved(unit, fewer)) > MIN_SAVING * network.cost:
                return (losses[unit.name][gone + fewer] - losses[unit.name][gone]) / saved, fewer
        return None

    waiting = [(cut[0], index) for index, unit in enumerate(units) if (cut := price(unit))]
    heapq.heapify(waiting)
    while not network.within(goal):
        if not waiting:
            raise _unreachable(network, convolutions, goal)
        _, index = heapq.heappop(waiting)
        cut = price(units[index])
        if cut and (not waiting or cut[0] <= waiting[0][0]):  # else it saves less now, because other units were cut
            network.cut(units[index], cut[1])
            left[units[index].name] -= cut[1]
            cut = price(units[index])
        if cut:
            heapq.heappush(waiting, (cut[0], index))
    return {unit.name: unit.channels - left[unit.name] for unit in units}


def _least(unit: Unit, step: Prune) -> int:
    """Return the minimum number of channels that a unit keeps."""
    multiple = step.multiple or DEFAULT_MULTIPLE
    rest = int(np.ceil(unit.channels * (1 - step.cap(unit.name)) - ROUNDING))
    return max(rest, multiple if unit.channels >= multiple else 1)


def _unreachable(network: _Network, before: Sequence[Convolution], goal: Goal) -> CompressError:
    all_adds, all_weights = multiply_adds(before), sum(each.weights for each in before)
    return CompressError(
        "pruning: so many channels cannot be removed",
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
        fix="lower the goal, or raise `most`",
    )


def least_important(importance: NDArray[np.float64], count: int) -> list[int]:
    """Return the indices of a group's `count` least important channels, ascending; ties go to the lower index."""
    return sorted(np.argsort(importance, kind="stable")[:count].tolist())


class _Network:
    """The widths of convolutions while units are cut, and their totals."""

    def __init__(self, convolutions: Sequence[Convolution], cost: CostFunction) -> None:
        self._layers = list(convolutions)
        self._cost = cost
        self.multiply_adds = multiply_adds(convolutions)
        self.weights = sum(each.weights for each in convolutions)
        self.cost = sum(map(cost, convolutions))

    def within(self, goal: Goal) -> bool:
        """Return whether the totals are within the goal's limits."""
        return self.multiply_adds <= goal.multiply_adds and self.weights <= goal.weights

    def saved(self, unit: Unit, channels: int) -> float:
        """Return the cost saved by removing this number of channels from each group of a unit."""
        return sum(self._cost(self._layers[index]) - self._cost(new) for index, new in self._after_cut(unit, channels))

    def cut(self, unit: Unit, channels: int) -> None:
        """Remove this number of channels from each group of a unit."""
        self.cost -= self.saved(unit, channels)
        for index, new in self._after_cut(unit, channels):
            old, self._layers[index] = self._layers[index], new
            self.multiply_adds -= old.multiply_adds - new.multiply_adds
            self.weights -= old.weights - new.weights

    def _after_cut(self, unit: Unit, channels: int) -> list[tuple[int, Convolution]]:
        """Return the convolutions that write or read a unit's channels after the cut, with their indices."""
        layers = []
        for index in sorted({*unit.writes, *unit.reads}):
            old = self._layers[index]
            outputs = old.outputs - channels * unit.writes.get(index, 0)
            # A depthwise convolution has as many inputs as outputs, and is listed in `writes` only.
            inputs = outputs if old.depthwise else old.inputs - channels * unit.reads.get(index, 0)
            layers.append((index, replace(old, inputs=inputs, outputs=outputs)))
        return layers

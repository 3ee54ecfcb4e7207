"""Which channels a network can best do without: rules on numbers, whatever framework the network is written in.

Convolutions are tied together: what one writes another reads, and what a residual adds must be as wide. Channels that
can only go together are a group. Groups from which as many channels must go each, such as the two halves of what a
block splits, are a unit. Units are cut in steps, so that widths stay multiples of what a device likes, always the step
that costs the least importance for what it saves.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import CompressError

if TYPE_CHECKING:
    from edgekd.spec import Prune


@dataclass(frozen=True)
class Convolution:
    """One layer. positions: places in its output, height * width; kernel: weights for a pair of channels."""

    inputs: int
    outputs: int
    positions: int
    kernel: int
    depthwise: bool = False


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
    return sum(
        each.positions * each.kernel * _pairs(each.inputs, each.outputs, each.depthwise) for each in convolutions
    )


def _pairs(inputs: int, outputs: int, depthwise: bool) -> int:
    return outputs if depthwise else inputs * outputs


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


def choose(units: Sequence[Unit], convolutions: Sequence[Convolution], step: Prune) -> dict[str, int]:
    """How many channels each unit loses, by its name: at least importance for multiply-adds saved, step by step.

    step: of which `ratio`, `multiple` and `most` count; each cut brings a unit to its next multiple. Which channels
    go in a group: the least important (`least_important`).
    Raises CompressError where all that may go is not enough.
    """
    network = _Network(convolutions)
    left = {unit.name: unit.channels for unit in units}
    limit = multiply_adds(convolutions) * (1 - step.ratio)
    losses = {unit.name: unit.losses() for unit in units}

    def price(unit: Unit) -> tuple[float, int] | None:
        """Importance by multiply-adds of the next cut, and its channels; None where there is no further one."""
        now = left[unit.name]
        fewer = now % step.multiple or step.multiple
        if now - fewer < max(unit.channels * (1 - step.most), step.multiple if unit.channels >= step.multiple else 1):
            return None
        gone = unit.channels - now
        lost = losses[unit.name][gone + fewer] - losses[unit.name][gone]
        return lost / max(network.saved(unit, fewer), 1), fewer

    waiting = [(found[0], at) for at, unit in enumerate(units) if (found := price(unit))]
    heapq.heapify(waiting)
    while network.multiply_adds > limit:
        if not waiting:
            raise CompressError(
                f"pruning: {step.ratio:.0%} of the multiply-adds cannot go",
                expected=f"a ratio of at most {1 - network.multiply_adds / multiply_adds(convolutions):.0%}",
                fix="lower ratio, or raise most",
            )
        _, at = heapq.heappop(waiting)
        found = price(units[at])
        assert found is not None, "only being cut brings a unit to its end"
        if not waiting or found[0] <= waiting[0][0]:  # else it saves less since others were cut
            network.cut(units[at], found[1])
            left[units[at].name] -= found[1]
        if (again := price(units[at])) is not None:
            heapq.heappush(waiting, (again[0], at))
    return {unit.name: unit.channels - left[unit.name] for unit in units}


def least_important(importance: NDArray[np.float64], count: int) -> list[int]:
    """The indices of the channels of one group [channels] that go, in ascending order; of equal ones the first."""
    return sorted(np.argsort(importance, kind="stable")[:count].tolist())


class _Network:
    """The widths of convolutions while units are cut."""

    def __init__(self, convolutions: Sequence[Convolution]) -> None:
        self._convolutions = convolutions
        self._inputs = [each.inputs for each in convolutions]
        self._outputs = [each.outputs for each in convolutions]
        self.multiply_adds = multiply_adds(convolutions)

    def saved(self, unit: Unit, channels: int) -> int:
        """Multiply-adds that go with so many channels of a unit."""
        touched = {*unit.writes, *unit.reads}
        return sum(self._cost(at, 0, 0) for at in touched) - sum(
            self._cost(at, channels * unit.reads.get(at, 0), channels * unit.writes.get(at, 0)) for at in touched
        )

    def cut(self, unit: Unit, channels: int) -> None:
        """Take so many channels away."""
        self.multiply_adds -= self.saved(unit, channels)
        for at, times in unit.writes.items():
            self._outputs[at] -= channels * times
        for at, times in unit.reads.items():
            self._inputs[at] -= channels * times

    def _cost(self, at: int, fewer_inputs: int, fewer_outputs: int) -> int:
        each = self._convolutions[at]
        pairs = _pairs(self._inputs[at] - fewer_inputs, self._outputs[at] - fewer_outputs, each.depthwise)
        return each.positions * each.kernel * pairs

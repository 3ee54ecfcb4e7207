"""Results of what families of detectors do: of training, pruning, its scan, and factorization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.compress.low_rank import Ranks


@dataclass(frozen=True)
class TrainingRun:
    """A finished training.

    updates: steps of the optimizer in all epochs; losses: the mean of each loss in each epoch, by name; seconds: spent.
    """

    epochs: int
    updates: int
    losses: tuple[Mapping[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class DistillationRecord(TrainingRun):
    """A finished distillation.

    weights: in each epoch the mean weight of each loss; `teacher` and `disagreement`, the means over the teacher's
    objects of its share and of what that follows from. parameters, teacher_parameters: numbers in each network.
    """

    weights: tuple[Mapping[str, float], ...]
    parameters: int
    teacher_parameters: int


@dataclass(frozen=True)
class PruningRecord:
    """A pruned detector. parameters, multiply_adds: before and after, of one frame in the detector's size.

    widths: channels of each unit before and after, by the name of a layer that writes them; importance: the share of
    each unit's importance that stays.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    widths: Mapping[str, tuple[int, int]]
    importance: Mapping[str, float]
    seconds: float


SCANNED_SHARES = (0.25, 0.5, 0.75)
"""Shares of a unit's channels that a scan removes, one after the other."""


@dataclass(frozen=True)
class Sensitivity:
    """The growth of a loss when a single unit loses channels.

    loss: mean of a batch with all channels; units: by name, the loss without each of SCANNED_SHARES of its channels.
    """

    loss: float
    units: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class LowRankProduct:
    """The product in a layer's place. ranks: channels between its parts; kept: share of the output's variance."""

    ranks: Ranks
    kept: float


@dataclass(frozen=True)
class FactorizationRecord:
    """A factorized detector. parameters, multiply_adds: before and after, of one frame in the detector's size.

    layers: the product in the place of each replaced convolution, by its name.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    layers: Mapping[str, LowRankProduct]
    seconds: float

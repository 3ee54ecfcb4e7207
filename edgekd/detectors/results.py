"""Results of training, pruning, scans of sensitivity, and factorization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.compress.low_rank import Ranks


@dataclass(frozen=True)
class TrainingRun:
    """A finished training.

    updates: steps of the optimizer in all epochs; losses: the mean of each loss in each epoch, by name; seconds:
    duration.
    """

    epochs: int
    updates: int
    losses: tuple[Mapping[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class DistillationRecord(TrainingRun):
    """A finished distillation.

    weights: for each epoch the mean weight of each loss, and the means over the teacher's objects of its share
    (`teacher`) and of the disagreement that determines it. parameters, teacher_parameters: number in each network.
    """

    weights: tuple[Mapping[str, float], ...]
    parameters: int
    teacher_parameters: int


@dataclass(frozen=True)
class PruningRecord:
    """A pruned detector. parameters, multiply_adds: before and after; multiply-adds of one frame of its input size.

    widths: channels of each unit before and after, by the name of a layer that writes them; importance: the kept share
    of each unit's importance; seconds: duration.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    widths: Mapping[str, tuple[int, int]]
    importance: Mapping[str, float]
    seconds: float


SCANNED_SHARES = (0.25, 0.5, 0.75)
"""Shares of a unit's channels that a scan removes, each separately."""


@dataclass(frozen=True)
class Sensitivity:
    """The increase of a loss when a single unit loses channels.

    loss: mean per batch with all channels; units: the losses without each of SCANNED_SHARES of a unit's channels, by
    its name.
    """

    loss: float
    units: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class LowRankProduct:
    """The product that replaces a layer. ranks: channels between its parts; kept: share of the output's variance."""

    ranks: Ranks
    kept: float


@dataclass(frozen=True)
class FactorizationRecord:
    """A factorized detector. parameters, multiply_adds: before and after; multiply-adds of one frame of its input size.

    layers: the products that replace convolutions, by name of the convolution; seconds: duration.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    layers: Mapping[str, LowRankProduct]
    seconds: float

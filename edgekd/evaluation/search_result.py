"""The result of a search for a recipe, as `search.json` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from edgekd.core.documents import Result
from edgekd.hardware.budget import Budget


@dataclass(frozen=True)
class Rung:
    """A level of thoroughness of trials.

    Args:
        images: Number of held-out images: those that are scored, or on which the noise of untrained networks is
            measured.
        trained: True where candidates are trained.
    """

    images: int
    trained: bool


@dataclass(frozen=True)
class SearchSetup:
    """The setup of a search.

    Args:
        identity: SHA-256 of all that trials depend on.
        model: File name of the detector.
        target: Name of the target.
        budget: The limits as given; null where there is none.
        basis: Source of `latency_ms` and `energy_mj`: `measured` where this machine is the target, or boards were
            timed, `rehearsed` on a null device, else `predicted`.
        held_out: Number of training images that nothing was trained or calibrated on.
        rungs: Levels of thoroughness of trials, the least thorough first.
    """

    identity: str
    model: str
    target: str
    budget: Budget
    basis: Literal["measured", "rehearsed", "predicted"]
    held_out: int
    rungs: tuple[Rung, ...]


@dataclass(frozen=True)
class SearchCounts:
    """Statistics of a search.

    Args:
        reason: Why it stopped; null while it goes on.
        seconds: Duration of its trials when they were made, shared among the workers.
        candidates: Number of candidates.
        refused: Number of candidates that were not tried, because they miss the budget by calculation or prediction.
        tried: Number of candidates that were tried.
        thorough: Number of those tried in full.
        trainings: Number of full trainings.
        trainings_saved: Number of candidates with a training that were refused, or beaten before it.
        rank_correlation: Spearman's rank correlation of the accuracy of candidates that was estimated before their full
            trial and the measured one; null with fewer than four.
    """

    reason: str | None
    seconds: float
    candidates: int
    refused: int
    tried: int
    thorough: int
    trainings: int
    trainings_saved: int
    rank_correlation: float | None


@dataclass(frozen=True)
class CandidateSettings:
    """The settings of a candidate.

    Args:
        student: Detector that is trained in place of the given one; null for the given one itself.
        image_size: Side of the input in pixels.
        ratio: Share of the multiply-adds that pruning removes.
        bits: Mean stored bits of a weight; 8: INT8, 32: float.
        recovery: Epochs of the training with the given detector as teacher.
        quant_aware: Epochs of the training of the quantized graph.
    """

    student: str | None
    image_size: int
    ratio: float
    bits: float
    recovery: int
    quant_aware: int


@dataclass(frozen=True)
class CandidateEstimate(CandidateSettings):
    """A candidate that was not tried, with estimates.

    Args:
        kept: Estimated share of the detector's mAP50-95 on held-out training images; null where it is not known.
        bytes: Estimated size of the bundle; null where it is not known.
        latency_ms: Latency of a frame; null where it is not known.
        energy_mj: Predicted energy of a frame; null where it is not known.
        text: The candidate as text.
    """

    kept: float | None
    bytes: int | None
    latency_ms: float | None
    energy_mj: float | None
    text: str


@dataclass(frozen=True)
class TriedCandidate(CandidateSettings):
    """A candidate that was tried.

    Args:
        rung: Index in `rungs` of its most thorough trial.
        kept: Share of the detector's mAP50-95 on held-out training images, estimated on the first rung; null where the
            trial failed.
        bytes: Size of the bundle; null where the trial failed.
        latency_ms: Latency of a frame; null where it is not known.
        energy_mj: Predicted energy of a frame; null where it is not known.
        noise: Noise-to-signal ratio at the last convolutions of its network before training, relative to the given
            detector with the same input size; null for a student.
        seconds: Duration of the trial when it was made.
        error: Why the trial failed; null where it did not.
        text: The candidate as text.
    """

    rung: int
    kept: float | None
    bytes: int | None
    latency_ms: float | None
    energy_mj: float | None
    noise: float | None
    seconds: float
    error: str | None
    text: str


@dataclass(frozen=True)
class FrontCandidate(TriedCandidate):
    """A candidate that was tried, compared with the others.

    Args:
        front: True where none of the most thorough trials beats it in accuracy, size, time and energy at once.
    """

    front: bool


@dataclass(frozen=True)
class ChoiceEffect:
    """Cost and gain of a setting of the winner compared with the least compressing one, estimated from all trials.

    Args:
        choice: Name of the setting.
        value: Value of the winner.
        instead_of: Least compressing value.
        kept: Share of the accuracy that it keeps.
        bytes_saved: Bytes of the bundle that it saves.
        ms_saved: Milliseconds of a frame that it saves; null where they are not known.
    """

    choice: Literal["student", "image_size", "ratio", "bits"]
    value: str | int | float
    instead_of: str | int | float | None
    kept: float
    bytes_saved: int
    ms_saved: float | None


@dataclass(frozen=True)
class SearchResult(SearchCounts, SearchSetup, Result):
    """A search for a recipe.

    Args:
        winner: The best under the budget; null where every trial failed.
        lacking: Share by which the winner misses each limit, by its name.
        why: Reasons for the winner, in sentences.
        parts: Effect of each choice of the winner.
        next: Candidates that would be tried next.
        points: All that were tried, the most thorough and accurate first.
    """

    winner: TriedCandidate | None
    lacking: Mapping[str, float] | None
    why: tuple[str, ...]
    parts: tuple[ChoiceEffect, ...]
    next: tuple[CandidateEstimate, ...]
    points: tuple[FrontCandidate, ...]

    @property
    def counts(self) -> SearchCounts:
        """Return the statistics of the search."""
        return SearchCounts(**{entry.name: getattr(self, entry.name) for entry in fields(SearchCounts)})

"""The search space: candidates, which of them make sense, and the recipe of each. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import PurePath
from typing import Any

from edgekd.builds.recipe import Recipe
from edgekd.compress.steps import (
    DISTILL_STAGES,
    Distill,
    DistillStage,
    Prune,
    QuantAwareDistill,
    Quantize,
    Resize,
    Step,
)
from edgekd.evaluation.search_result import Teaching
from edgekd.hardware.target import Target

NAME = "searched"
"""What recipes are called that a search has found."""
FLOAT, INT8 = 32.0, 8.0
"""Bits of a weight in a float graph, and in one that is INT8 throughout."""
BITS = (INT8, 5.5, 4.0, 3.25)
"""Below INT8 a planner stores layers in coded INT8 until the file is as small: 1/6, 1/8, 1/10 of the float file."""
SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)
"""Of the side of the input that a detector was made for."""
RATIOS = (0.0, 0.2, 0.35, 0.5, 0.65)
"""Of the multiply-adds, that pruning removes."""
MOST_ABOVE_RATIO = 0.1
"""Least share of a unit that may go, above that of the multiply-adds: many units keep all of their channels."""
PLANNED = Quantize("best", frames=48, int8_rounding="feedback", formats=("int8", "coded", "float16"))
"""How below INT8 is quantized, bits aside: as by the recipe mixed."""
QUANT_AWARE = 3
"""The part of a full training's epochs, one in so many, that a quantized graph is trained for."""

TEACHINGS: Mapping[Teaching, tuple[DistillStage, ...]] = {
    "all": DISTILL_STAGES,
    "predictions": (replace(DISTILL_STAGES[1], share=1.0),),
}
"""What the teacher says: maps and predictions one after the other, or predictions alone, which takes less time."""


@dataclass(frozen=True)
class Candidate:
    """One point of a space.

    student: what is trained in the detector's place, None for itself; image_size: side of the input in pixels; ratio:
    of the multiply-adds that pruning removes; bits: of a weight as it is stored, on average, FLOAT for none quantized;
    recovery: epochs of a training beside the detector as it was given; teaching: what it says there; quant_aware:
    epochs of a training of the quantized graph.
    """

    student: str | None
    image_size: int
    ratio: float = 0.0
    bits: float = INT8
    recovery: int = 0
    teaching: Teaching = "all"
    quant_aware: int = 0

    @property
    def trains(self) -> bool:
        """True if the candidate has a training."""
        return self.recovery > 0 or self.quant_aware > 0

    @property
    def epochs(self) -> int:
        """Sum of all trainings: a student that is pruned is trained before and after."""
        return self.recovery * (2 if self.student and self.ratio else 1) + self.quant_aware

    def text(self) -> str:
        """In words, for people."""
        parts = [f"{self.image_size} pixels"]
        if self.student:
            parts.insert(0, f"student {PurePath(self.student).name}")
        if self.ratio:
            parts.append(f"{self.ratio:.0%} pruned")
        if self.recovery:
            parts.append(f"{_epochs(self.recovery)} of recovery, taught {self.teaching}")
        parts.append("float" if self.bits == FLOAT else "INT8" if self.bits == INT8 else f"{self.bits:g} bits a weight")
        if self.quant_aware:
            parts.append(f"{_epochs(self.quant_aware)} quantized")
        return ", ".join(parts)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


FIELDS = tuple(entry.name for entry in fields(Candidate))


@dataclass(frozen=True)
class DetectorFacts:
    """Properties of a detector that decide which choices it has.

    image_size: side of its input in pixels; stride: what sides are multiples of; trains: it is a checkpoint that can be
    pruned and trained; resizes, quant_aware: its family can have another size, and be trained as a quantized graph.
    students: smaller detectors that may take its place once they are trained.
    """

    image_size: int
    stride: int = 32
    trains: bool = False
    resizes: bool = False
    quant_aware: bool = False
    students: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """The choices of each kind, the gentlest first."""

    student: tuple[str | None, ...]
    image_size: tuple[int, ...]
    ratio: tuple[float, ...]
    bits: tuple[float, ...]
    recovery: tuple[int, ...]
    teaching: tuple[Teaching, ...]
    quant_aware: tuple[int, ...]

    def level(self, candidate: Candidate, name: str) -> int:
        """How far from the gentlest choice of a kind a candidate is."""
        return int(getattr(self, name).index(getattr(candidate, name)))

    def at(self, levels: Mapping[str, int]) -> Candidate:
        """The candidate with these choices, as far as they make sense together: each stands for one that does."""
        return self.sensible(Candidate(**{name: getattr(self, name)[levels[name]] for name in FIELDS}))

    def sensible(self, candidate: Candidate) -> Candidate:
        """The candidate without what has no use, as is training of what lost nothing.

        A student is always trained: nobody says that it knows these classes.
        """
        if candidate.student is not None:
            candidate = replace(candidate, recovery=candidate.recovery or max(self.recovery))
        elif candidate.ratio == 0 and candidate.image_size == self.image_size[0]:
            candidate = replace(candidate, recovery=0)
        if candidate.recovery == 0:
            candidate = replace(candidate, teaching=self.teaching[0])
        return replace(candidate, quant_aware=0) if candidate.bits == FLOAT else candidate

    def candidates(self) -> tuple[Candidate, ...]:
        """All that make sense, each once, always in the same order."""
        return tuple(dict.fromkeys(self.sensible(Candidate(*values)) for values in self._products()))

    @property
    def gentlest(self) -> Candidate:
        """The one that changes least."""
        return self.at(dict.fromkeys(FIELDS, 0))

    def _products(self) -> Iterator[tuple[Any, ...]]:
        return product(*(getattr(self, name) for name in FIELDS))


def space_for(facts: DetectorFacts, target: Target, epochs: int) -> Space:
    """Build the search space of a detector on a target; epochs: of a full training, 0 to train nothing."""
    able = target.precisions.conv.value
    trains = facts.trains and epochs > 0
    sides = [facts.stride * max(round(facts.image_size * share / facts.stride), 1) for share in SHARES]
    return Space(
        student=(None, *(facts.students if trains else ())),
        image_size=tuple(dict.fromkeys((facts.image_size, *sides[1:]))) if facts.resizes else (facts.image_size,),
        ratio=RATIOS if facts.trains else RATIOS[:1],
        bits=(FLOAT, *BITS) if "int8" in able else (FLOAT,),
        recovery=(epochs, 0) if trains else (0,),
        teaching=("all", "predictions") if trains else ("all",),
        quant_aware=(max(epochs // QUANT_AWARE, 1), 0) if trains and facts.quant_aware and "int8" in able else (0,),
    )


def recipe_of(candidate: Candidate, space: Space, share: float = 1.0) -> Recipe:
    """Return the recipe of a candidate; share: of the epochs of its trainings, of which there is one at least."""
    steps: list[Step] = []
    if candidate.student is None and candidate.image_size != space.image_size[0]:
        steps.append(Resize(candidate.image_size))
    if candidate.student is not None:
        steps.append(replace(_taught(candidate, share), student=candidate.student))
    if candidate.ratio:
        steps.append(Prune(ratio=candidate.ratio, most=max(Prune.most, candidate.ratio + MOST_ABOVE_RATIO)))
    if candidate.recovery and (candidate.ratio or candidate.student is None):
        steps.append(_taught(candidate, share))
    if candidate.bits == INT8:
        steps.append(Quantize(ranges="best"))
    elif candidate.bits < INT8:
        steps.append(replace(PLANNED, bits=candidate.bits))
    if candidate.quant_aware:
        steps.append(QuantAwareDistill(epochs=_part(candidate.quant_aware, share)))
    return Recipe(NAME, tuple(steps), candidate.text())


def _taught(candidate: Candidate, share: float) -> Distill:
    epochs = _part(candidate.recovery, share)
    stages, close = TEACHINGS[candidate.teaching], min(Distill.close_mosaic, epochs // 3)
    return Distill(epochs=epochs, image_size=candidate.image_size, stages=stages, close_mosaic=close)


def _part(epochs: int, share: float) -> int:
    return max(round(epochs * share), 1)


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate as results have it."""
    return asdict(candidate)

"""The search space: sensible candidates, and the recipe of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import PurePath

from edgekd.builds.recipe import Recipe
from edgekd.compress.steps import Distill, Prune, QuantAwareDistill, Quantize, Recover, Resize, Step
from edgekd.hardware.target import Target

NAME = "searched"
"""Name of recipes that a search has found."""
FLOAT, INT8 = 32.0, 8.0
"""Bits of a weight in a float graph, and in one that is INT8 throughout."""
BITS = (INT8, 5.5, 4.0, 3.25)
"""Bits per weight. Below INT8 a plan uses coded INT8 to reach the mean: about 1/6, 1/8, 1/10 of the float file."""
SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)
"""Sides of the input, as shares of the detector's."""
RATIOS = (0.0, 0.2, 0.35, 0.5, 0.65)
"""Shares of the multiply-adds that pruning removes."""
MOST_ABOVE_RATIO = 0.1
"""`Prune.most` is at least this much above the ratio, because many units keep all of their channels."""
PLANNED = Quantize("best", frames=48, int8_rounding="feedback", formats=("int8", "coded", "float16"))
"""Settings below INT8, except bits: those of the recipe `mixed`."""
QUANT_AWARE = 3
"""Quantization-aware training takes a full training's epochs divided by this."""


@dataclass(frozen=True)
class Candidate:
    """One point of a search space.

    student: smaller detector that replaces the given one, None for none; image_size: side of the input in pixels;
    ratio: share of the multiply-adds that pruning removes; bits: mean stored bits per weight, FLOAT if not quantized;
    recovery: epochs of training with the given detector as teacher; quant_aware: epochs of quantization-aware training.
    """

    student: str | None
    image_size: int
    ratio: float = 0.0
    bits: float = INT8
    recovery: int = 0
    quant_aware: int = 0

    @property
    def untrained(self) -> Candidate:
        """The candidate without its trainings."""
        return replace(self, recovery=0, quant_aware=0)

    @property
    def shape(self) -> tuple[str | None, int, float]:
        """The choices that determine the shapes of its layers."""
        return self.student, self.image_size, self.ratio

    @property
    def trains(self) -> bool:
        """True if the candidate has a training."""
        return self.recovery > 0 or self.quant_aware > 0

    @property
    def epochs(self) -> int:
        """Epochs of all trainings; a student that is pruned is trained before and after."""
        return self.recovery * (2 if self.student and self.ratio else 1) + self.quant_aware

    def text(self) -> str:
        """Return a description for people."""
        parts = [f"{self.image_size} pixels"]
        if self.student:
            parts.insert(0, f"student {PurePath(self.student).name}")
        if self.ratio:
            parts.append(f"{self.ratio:.0%} pruned")
        if self.recovery:
            parts.append(f"{_epochs(self.recovery)} of {'distillation' if self.student else 'recovery'}")
        parts.append("float" if self.bits == FLOAT else "INT8" if self.bits == INT8 else f"{self.bits:g} bits a weight")
        if self.quant_aware:
            parts.append(f"{_epochs(self.quant_aware)} quantized")
        return ", ".join(parts)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


CHOICES = ("student", "image_size", "ratio", "bits", "quant_aware")
"""Fields of a candidate that are chosen; they determine `recovery`."""


@dataclass(frozen=True)
class DetectorFacts:
    """Properties of a detector that determine its choices.

    image_size: longer side of its input in pixels; stride: sides are multiples of it; trains: it is a checkpoint that
    can be pruned and trained; resizes: its input can have another size; recovers: it can be trained on cached
    predictions; quant_aware: it supports quantization-aware training; students: smaller detectors that may replace it.
    """

    image_size: int
    stride: int = 32
    trains: bool = False
    resizes: bool = False
    recovers: bool = False
    quant_aware: bool = False
    students: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """The choices of each kind, the gentlest first.

    recovery: epochs of the training of a student, and after pruning; 0 for none; recovers: training after pruning
    without a student uses cached predictions (`recover`), else it is distillation.
    """

    student: tuple[str | None, ...]
    image_size: tuple[int, ...]
    ratio: tuple[float, ...]
    bits: tuple[float, ...]
    quant_aware: tuple[int, ...]
    recovery: int
    recovers: bool = True

    def level(self, candidate: Candidate, name: str) -> int:
        """Return the level of a candidate's choice of a kind, 0 for the gentlest."""
        return int(getattr(self, name).index(getattr(candidate, name)))

    def at(self, levels: Mapping[str, int]) -> Candidate:
        """Return the sensible candidate with the choices at these levels."""
        return self.sensible(Candidate(**{name: getattr(self, name)[levels[name]] for name in CHOICES}))

    def sensible(self, candidate: Candidate) -> Candidate:
        """Return the candidate with recovery only where it needs it, and quantization-aware training only if quantized.

        Students and pruned detectors need recovery. After a smaller input alone, the detector would be its own teacher.
        """
        needs_recovery = candidate.student is not None or candidate.ratio > 0
        candidate = replace(candidate, recovery=self.recovery if needs_recovery else 0)
        return replace(candidate, quant_aware=0) if candidate.bits == FLOAT else candidate

    def candidates(self) -> tuple[Candidate, ...]:
        """Return all sensible candidates, each once, in a fixed order."""
        every = product(*(getattr(self, name) for name in CHOICES))
        chosen = (Candidate(**dict(zip(CHOICES, values, strict=True))) for values in every)
        return tuple(dict.fromkeys(map(self.sensible, chosen)))

    @property
    def gentlest(self) -> Candidate:
        """The candidate that changes least."""
        return self.at(dict.fromkeys(CHOICES, 0))


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
        quant_aware=(max(epochs // QUANT_AWARE, 1), 0) if trains and facts.quant_aware and "int8" in able else (0,),
        recovery=epochs if trains else 0,
        recovers=facts.recovers,
    )


def recipe_of(candidate: Candidate, space: Space) -> Recipe:
    """Return the recipe of a candidate."""
    steps: list[Step] = []
    if candidate.student is not None:
        steps.append(replace(_distill(candidate), student=candidate.student))
    elif candidate.image_size != space.image_size[0]:
        steps.append(Resize(candidate.image_size))
    if candidate.ratio:
        steps.append(Prune(ratio=candidate.ratio, most=max(Prune.most, candidate.ratio + MOST_ABOVE_RATIO)))
    if candidate.ratio and candidate.recovery:
        cached = candidate.student is None and space.recovers
        steps.append(Recover(epochs=candidate.recovery) if cached else _distill(candidate))
    if candidate.bits == INT8:
        steps.append(Quantize(ranges="best"))
    elif candidate.bits < INT8:
        steps.append(replace(PLANNED, bits=candidate.bits))
    if candidate.quant_aware:
        steps.append(QuantAwareDistill(epochs=candidate.quant_aware))
    return Recipe(NAME, tuple(steps), candidate.text())


def _distill(candidate: Candidate) -> Distill:
    epochs = candidate.recovery
    close = min(Distill.close_mosaic, epochs // 3)
    return Distill(epochs=epochs, image_size=candidate.image_size, close_mosaic=close)

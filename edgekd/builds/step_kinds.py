"""Declarations of compression steps: their requirements, their order in a recipe, and the table of all steps.

A step is the dataclass of its settings (`edgekd.compress.steps`) and one `StepKind`, which declares the rest. A package
outside edgekd adds a step by an entry point of the group `edgekd.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.builds.stage_store import StageKind
from edgekd.compress.steps import Step
from edgekd.core.entry_points import registered
from edgekd.core.errors import SpecError

GROUP = "edgekd.steps"
"""The group of entry points that name steps of other packages."""
BUILT_IN = (
    "edgekd.builds.steps:RESIZE",
    "edgekd.builds.steps:PRUNE",
    "edgekd.builds.steps:FACTORIZE",
    "edgekd.builds.steps:RECOVER",
    "edgekd.builds.steps:DISTILL",
    "edgekd.builds.steps:QUANTIZE",
    "edgekd.builds.steps:QUANT_AWARE_DISTILL",
)


@dataclass(frozen=True)
class StepKind:
    """The declaration of a compression step.

    Args:
        settings: The dataclass of its settings; `settings.kind` is its name in recipes.
        order: Its position in a recipe, whose steps are in rising order.
        effect: The change it makes, as the end of a message that begins with `recipe NAME`.
        apply: Runs it: called with the step, the `BuildRecord`, the `Dataset` and the `StageContext`, returns the
            record after the step.
        stages: Kinds of the stages that no other step runs.
        trains: It needs a checkpoint, and labelled training data of which no image is scored.
        capability: Attribute of `edgekd.detectors.family.Family` that it needs in the family of the detector after the
            steps before it.
        given_capability: Attribute that it needs in the family of the detector that the build was given.
        fix: Remedy if a family lacks one of them.
        repeats: A recipe may have it several times in succession.
        requires: Name of a step that a recipe must have before it.
        out_of_order: Called with the names of the steps before and after it; returns whether it may be there although
            the step before it has a higher order.
        out_of_order_text: The same in words, for messages.
        refuse: Called with the step, the recipe and the `Budget`, before anything runs; raises SpecError.
        command: The command of edgekd that runs only this step.
    """

    settings: type[Step]
    order: int
    effect: str
    apply: Callable[..., Any]
    stages: tuple[StageKind[Any], ...] = ()
    trains: bool = False
    capability: str | None = None
    given_capability: str | None = None
    fix: str | None = None
    repeats: bool = False
    requires: str | None = None
    out_of_order: Callable[[Sequence[str], Sequence[str]], bool] | None = None
    out_of_order_text: str = ""
    refuse: Callable[..., None] | None = None
    command: str | None = None

    @property
    def name(self) -> str:
        """Its name in recipes."""
        return self.settings.kind


def step_kinds() -> tuple[StepKind, ...]:
    """Return the steps of edgekd and of other packages, in their order in recipes.

    Raises SpecError if two packages declare the same step.
    """
    kinds: dict[str, StepKind] = {}
    for kind in sorted(registered(GROUP, BUILT_IN), key=lambda kind: kind.order):
        if kinds.setdefault(kind.name, kind) is not kind:
            modules = f"{kinds[kind.name].apply.__module__} and {kind.apply.__module__}"
            raise SpecError(f"step {kind.name} is declared twice", found=modules, fix="remove one of the packages")
    return tuple(kinds.values())


def kind_of(step: Step) -> StepKind:
    """Return the declaration of a step. Raises SpecError for a step that no package declares."""
    found = next((kind for kind in step_kinds() if kind.settings is type(step)), None)
    if found is None:
        where = f"an entry point of {GROUP} with its StepKind"
        raise SpecError(f"step {step.kind} is not declared", expected=where, found=type(step).__qualname__)
    return found


def in_order(kinds: Sequence[StepKind]) -> bool:
    """Return whether steps of these kinds may follow one another in a recipe."""
    names = [kind.name for kind in kinds]
    for index, kind in enumerate(kinds):
        before, after = names[:index], names[index + 1 :]
        if kind.requires is not None and kind.requires not in before:
            return False
        if not before or kinds[index - 1].order < kind.order or (kind.repeats and before[-1] == kind.name):
            continue
        if kind.out_of_order is None or not kind.out_of_order(before, after):
            return False
    return True


def order_text() -> str:
    """Return the orders that `in_order` allows, for messages."""
    kinds = step_kinds()
    names = [f"{kind.name} (any number of times)" if kind.repeats else kind.name for kind in kinds]
    required = [f"{kind.name} after {kind.requires} only" for kind in kinds if kind.requires]
    others = [kind.out_of_order_text for kind in kinds if kind.out_of_order_text]
    return "; ".join([f"in this order, at most once each: {', '.join(names)}", *required, *others])

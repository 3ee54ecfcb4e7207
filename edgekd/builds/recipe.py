"""Recipe and budget, as frozen dataclasses from TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from edgekd.compress.steps import (
    DISTILL_STAGES,
    HALF,
    STEPS,
    Distill,
    DistillStage,
    LowRank,
    Prune,
    QuantAwareDistill,
    Quantize,
    Resize,
    Step,
    Weights,
)
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.toml import parse_table, read_toml

__all__ = [
    "DISTILL_STAGES",
    "HALF",
    "Distill",
    "DistillStage",
    "LowRank",
    "Prune",
    "QuantAwareDistill",
    "Quantize",
    "Recipe",
    "Resize",
    "Step",
    "Weights",
    "load_recipe",
    "recipe_from",
    "recipe_names",
]


S = TypeVar("S", bound=Step)
_BY_KIND: dict[str, type[Step]] = {step.kind: step for step in STEPS}


@dataclass(frozen=True)
class Recipe:
    """Compression steps in the order in which they run; their settings: docs/recipes.md."""

    name: str
    steps: tuple[Step, ...]
    description: str = ""

    @property
    def precision(self) -> str:
        """Precision of the layers in the graph that ships."""
        return "int8" if self.quantize else "fp32"

    @property
    def quantize(self) -> Quantize | None:
        """The step that quantizes; None in a recipe that ships the float graph."""
        return self.first(Quantize)

    @property
    def trains(self) -> bool:
        """True where a step needs a checkpoint and labelled training data."""
        return any(step.trains for step in self.steps)

    @property
    def quant_aware(self) -> bool:
        """True where the quantized graph is trained."""
        return self.first(QuantAwareDistill) is not None

    @property
    def distill(self) -> Distill | None:
        """The first step that trains beside the given detector; None without any."""
        return self.first(Distill)

    def first(self, kind: type[S]) -> S | None:
        """Return the first step of a kind; None without any."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    def only(self, kind: type[S]) -> S:
        """Return the recipe's only step, of that kind. Raises SpecError."""
        if len(self.steps) == 1 and isinstance(self.steps[0], kind):
            return self.steps[0]
        fix = f"pass --recipe {kind.kind}, or one with that step alone; `edgekd build` runs further steps"
        raise SpecError(f"recipe {self.name} is not one step of kind {kind.kind}", fix=fix)

    def with_plan(self, plan: Path) -> Recipe:
        """Return the recipe with the plan in a file in place of its own choice.

        Raises SpecError where it does not quantize.
        """
        if self.quantize is None:
            raise SpecError(f"--plan {plan}: recipe {self.name} quantizes nothing", fix="pass --recipe mixed or ptq")
        return replace(
            self, steps=tuple(replace(s, plan=str(plan)) if isinstance(s, Quantize) else s for s in self.steps)
        )

    def with_settings(self, kind: type[Step], **settings: Any) -> Recipe:
        """Return the recipe with these settings, unless they are None, of its first step of that kind.

        Raises SpecError where it has no such step.
        """
        changed = self.first(kind)
        if changed is None:
            raise SpecError(f"recipe {self.name} has no step {kind.kind}", fix=f"pass --recipe {kind.kind}")
        changes = {name: value for name, value in settings.items() if value is not None}
        steps = tuple(replace(step, **changes) if step is changed else step for step in self.steps)
        return replace(self, steps=steps)


def load_recipe(name: str | Path | Mapping[str, Any]) -> Recipe:
    """Return a shipped recipe by name, one from a `.toml` file, or one from a table with `name` and `steps`.

    Raises SpecError naming what is wrong and where. What steps may say: docs/recipes.md.
    """
    if isinstance(name, Mapping):
        return recipe_from(dict(name), "recipe")
    name = str(name)
    if name.endswith(".toml"):
        recipe, folder = recipe_from(read_toml(Path(name)), name), Path(name).parent
        plan = recipe.quantize.plan if recipe.quantize else None
        recipe = recipe.with_plan(folder / plan) if plan else recipe
        return replace(recipe, steps=tuple(_from_folder(step, folder) for step in recipe.steps))
    names = recipe_names()
    if name not in names:
        raise SpecError(
            f"--recipe {name}: no such recipe",
            expected=", ".join(names) + ", or a .toml file",
            fix=did_you_mean(name, names),
        )
    with resources.as_file(resources.files("edgekd.builds.recipes") / f"{name}.toml") as path:
        return recipe_from(read_toml(path), name)


def _from_folder(step: Step, folder: Path) -> Step:
    """Return the step with the files of its training relative to the recipe's folder."""
    if isinstance(step, Prune) and step.recovery:
        return replace(step, recovery=_beside(step.recovery, folder))
    return _beside(step, folder) if isinstance(step, Distill) else step


def _beside(step: Distill, folder: Path) -> Distill:
    """Return the step with its files relative to a folder; a student may also be the name of a model."""
    student = folder / step.student if step.student else None
    return replace(
        step,
        student=str(student) if student and student.is_file() else step.student,
        unlabelled=str(folder / step.unlabelled) if step.unlabelled else None,
    )


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes."""
    files = resources.files("edgekd.builds.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@dataclass(frozen=True)
class _Head:
    name: str
    description: str = ""


def recipe_from(table: dict[str, Any], source: str) -> Recipe:
    """Return the recipe in a TOML table. Raises SpecError with the key."""
    steps = table.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise SpecError(f"{source}: not a recipe", expected="`name` and [[steps]]", found=", ".join(table) or "nothing")
    head = parse_table(_Head, {key: value for key, value in table.items() if key != "steps"}, source)
    found = tuple(_step(step, f"{source}: step {number}") for number, step in enumerate(steps, start=1))
    if not _in_order([type(step) for step in found]):
        kinds = ", ".join(str(step["kind"]) for step in steps)
        expected = "resize, prune, factorize, distill and quantize at most once each and in this order, then "
        expected += "quant_aware_distill; distill before prune for a student that is pruned; or quantize, prune, "
        expected += "quant_aware_distill"
        raise SpecError(f"{source}: steps", expected=expected, found=kinds)
    return Recipe(head.name, found, head.description)


def _in_order(kinds: list[type[Step]]) -> bool:
    """Return whether steps of these kinds may follow one another."""
    if kinds[:2] == [Quantize, Prune]:  # channels ranked by their effect on the quantized detector
        return kinds[2:] != [] and set(kinds[2:]) == {QuantAwareDistill}
    if kinds[:2] == [Distill, Prune]:  # a student, pruned once it is trained
        kinds = kinds[1:]
    order = [STEPS.index(kind) for kind in kinds]
    repeated = any(kinds.count(kind) > 1 for kind in kinds if not kind.repeats)
    return order == sorted(order) and not repeated and (QuantAwareDistill not in kinds or Quantize in kinds)


def _step(table: dict[str, Any], where: str) -> Step:
    kind = table.get("kind")
    if kind not in _BY_KIND:
        raise SpecError(f"{where}: `kind`", expected=" or ".join(_BY_KIND), found=str(kind))
    return parse_table(_BY_KIND[kind], {key: value for key, value in table.items() if key != "kind"}, where)

"""Recipes: compression steps from TOML, and checks that a detector and a budget support them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from edgekd.builds.step_kinds import in_order, kind_of, order_text, step_kinds
from edgekd.compress.steps import Distill, QuantAwareDistill, Quantize, Step
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.toml import parse_table, read_toml
from edgekd.core.typed_values import value_text
from edgekd.detectors.family import family_of, offering, student_family
from edgekd.detectors.interface import Postprocess
from edgekd.hardware.budget import Budget

S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Recipe:
    """Compression steps in the order in which they run; their settings: docs/reference/recipe-settings.md."""

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
        """True if a step needs a checkpoint and labelled training data."""
        return any(kind_of(step).trains for step in self.steps)

    @property
    def quant_aware(self) -> bool:
        """True if the quantized graph is trained."""
        return self.first(QuantAwareDistill) is not None

    def first(self, kind: type[S]) -> S | None:
        """Return the first step of a kind; None without any."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    def only(self, kind: type[S]) -> S:
        """Return the recipe's only step. Raises SpecError if it has several, or one of another kind."""
        if len(self.steps) == 1 and isinstance(self.steps[0], kind):
            return self.steps[0]
        fix = f"pass --recipe {kind.kind}, or one with that step alone; `edgekd build` runs further steps"
        raise SpecError(f"recipe {self.name} is not one step of kind {kind.kind}", fix=fix)

    def with_plan(self, plan: Path) -> Recipe:
        """Return the recipe with the quantization plan in a file. Raises SpecError if it does not quantize."""
        if self.quantize is None:
            raise SpecError(f"--plan {plan}: recipe {self.name} quantizes nothing", fix="pass --recipe mixed or ptq")
        return self.with_settings(Quantize, plan=str(plan))

    def with_settings(self, kind: type[Step], **settings: Any) -> Recipe:
        """Return the recipe with these settings in its first step of that kind; None leaves a setting as it is.

        Raises SpecError if it has no such step.
        """
        changed = self.first(kind)
        if changed is None:
            raise SpecError(f"recipe {self.name} has no step {kind.kind}", fix=f"pass --recipe {kind.kind}")
        changes = {name: value for name, value in settings.items() if value is not None}
        steps = tuple(replace(step, **changes) if step is changed else step for step in self.steps)
        return replace(self, steps=steps)


def load_recipe(name: str | Path | Mapping[str, Any]) -> Recipe:
    """Return a shipped recipe by name, one from a `.toml` file, or one from a table with `name` and `steps`.

    Raises SpecError naming the problem and its place. Settings of steps: docs/reference/recipe-settings.md.
    """
    if isinstance(name, Mapping):
        return recipe_from(dict(name), "recipe")
    name = str(name)
    if name.endswith(".toml"):
        recipe = recipe_from(read_toml(Path(name)), name)
        return replace(recipe, steps=tuple(step.beside(Path(name).parent) for step in recipe.steps))
    names = recipe_names()
    if name not in names:
        raise SpecError(
            f"--recipe {name}: no such recipe",
            expected=", ".join(names) + ", or a .toml file",
            fix=did_you_mean(name, names),
        )
    with resources.as_file(resources.files("edgekd.builds.recipes") / f"{name}.toml") as path:
        return recipe_from(read_toml(path), name)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the shipped recipes."""
    files = resources.files("edgekd.builds.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@dataclass(frozen=True)
class _RecipeTable:
    name: str
    steps: tuple[dict[str, Any], ...]
    description: str = ""


def recipe_from(table: dict[str, Any], source: str) -> Recipe:
    """Return the recipe in a TOML table. Raises SpecError naming the key. source: name for messages."""
    recipe = parse_table(_RecipeTable, table, source)
    found = tuple(_step(step, f"{source}: step {number}") for number, step in enumerate(recipe.steps, start=1))
    if not in_order([kind_of(step) for step in found]):
        names = ", ".join(step.kind for step in found)
        raise SpecError(f"{source}: steps", expected=order_text(), found=names)
    return Recipe(recipe.name, found, recipe.description)


def _step(table: dict[str, Any], where: str) -> Step:
    by_name = {kind.name: kind.settings for kind in reversed(step_kinds())}
    name = table.get("kind")
    if not isinstance(name, str) or name not in by_name:
        raise SpecError(f"{where}: `kind`", expected=" or ".join(reversed(by_name)), found=value_text(name))
    return parse_table(by_name[name], {key: value for key, value in table.items() if key != "kind"}, where)


def refuse_task(recipe: Recipe, spec: DetectorSpec, postprocess: Postprocess = "host") -> None:
    """Raise SpecError if a detector does not support a recipe, or postprocessing in the graph."""
    if spec.head.masks and postprocess == "graph":
        raise SpecError("--postprocess graph", expected="a detector without masks", found="one with masks")
    if not spec.head.beside_boxes:
        return
    for kind in map(kind_of, recipe.steps):
        if kind.capability:
            raise SpecError(
                f"recipe {recipe.name} {kind.effect}",
                expected="a detector of boxes alone",
                found=f"one with {spec.head.beside_boxes}",
                fix="pass a recipe without training, such as ptq or mixed",
            )


def refuse_recipe(recipe: Recipe, budget: Budget, model: Path) -> None:
    """Raise SpecError if a recipe lacks a limit to plan for, or the model does not support its steps."""
    family, name = family_of(model), model.name
    if recipe.trains and (family is None or family.is_graph):
        raise SpecError(
            f"recipe {recipe.name} trains the detector",
            expected="the .pt checkpoint that it was exported from, and labelled training data",
            found=name,
            fix="pass the checkpoint, or a recipe without training such as mixed",
        )
    given = (family, name)
    for step in recipe.steps:
        kind = kind_of(step)
        if kind.refuse:
            kind.refuse(step, recipe, budget)
        if isinstance(step, Distill) and step.student:
            family, name = student_family(step.student), step.student
        for capability, (owner, found) in ((kind.given_capability, given), (kind.capability, (family, name))):
            if capability and (owner is None or getattr(owner, capability) is None):
                by = f"a detector by {offering(capability)}"
                raise SpecError(f"recipe {recipe.name} {kind.effect}", expected=by, found=found, fix=kind.fix)

"""What a user asks for: recipe and budget. TOML and text in, frozen dataclasses out. No I/O beyond the TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from edgekd.compress.steps import (
    DISTILL_STAGES,
    HALF,
    Distill,
    DistillStage,
    LowRank,
    Prune,
    QuantAwareDistill,
    Quantize,
    Resize,
    Weights,
)
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.toml import parse_table, read_toml

__all__ = [
    "DISTILL_STAGES",
    "HALF",
    "Budget",
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
    "kind_of",
    "load_recipe",
    "recipe_from",
    "recipe_names",
]


Step = Quantize | QuantAwareDistill | Distill | LowRank | Prune | Resize
"""The compression steps a recipe may hold."""
S = TypeVar("S", Distill, LowRank, Prune)

_STEPS: dict[str, type[Step]] = {
    "resize": Resize,
    "prune": Prune,
    "factorize": LowRank,
    "distill": Distill,
    "quantize": Quantize,
    "quant_aware_distill": QuantAwareDistill,
}


def kind_of(kind: type[Step]) -> str:
    """What a TOML file calls a step."""
    return next(name for name, known in _STEPS.items() if known is kind)


@dataclass(frozen=True)
class Recipe:
    """Compression steps in the order they run; the order is data.

    What steps may say, in a file, a table or as dataclasses of `edgekd.builds.recipe`: docs/recipes.md.
    """

    name: str
    steps: tuple[Step, ...]
    description: str = ""

    @property
    def precision(self) -> str:
        """The precision of the layers in the graph that ships."""
        return "int8" if self.quantize else "fp32"

    @property
    def quantize(self) -> Quantize | None:
        """The step that quantizes; None in a recipe that ships the float graph."""
        return next((step for step in self.steps if isinstance(step, Quantize)), None)

    @property
    def trains(self) -> bool:
        """Whether a step needs a checkpoint and labelled training data."""
        return any(isinstance(step, (Prune, LowRank, Distill, QuantAwareDistill)) for step in self.steps)

    @property
    def resize(self) -> Resize | None:
        """The step that changes the size of the input; None in a recipe that keeps it."""
        return next((step for step in self.steps if isinstance(step, Resize)), None)

    @property
    def prune(self) -> Prune | None:
        """The step that removes channels; None in a recipe that keeps them all."""
        return next((step for step in self.steps if isinstance(step, Prune)), None)

    @property
    def factorize(self) -> LowRank | None:
        """The step that replaces convolutions by products; None in a recipe that keeps them."""
        return next((step for step in self.steps if isinstance(step, LowRank)), None)

    @property
    def quant_aware(self) -> bool:
        """Whether the quantized graph is trained."""
        return any(isinstance(step, QuantAwareDistill) for step in self.steps)

    @property
    def distill(self) -> Distill | None:
        """The first step that trains beside the given detector, its student if it names one; None without any."""
        return next((step for step in self.steps if isinstance(step, Distill)), None)

    def only(self, kind: type[S]) -> S:
        """The recipe's step, which is of that kind and its only one. Raises SpecError."""
        if len(self.steps) == 1 and isinstance(self.steps[0], kind):
            return self.steps[0]
        name = kind_of(kind)
        fix = f"pass --recipe {name}, or one with that step alone; `edgekd build` runs further steps"
        raise SpecError(f"recipe {self.name} is not one step of kind {name}", fix=fix)

    def with_plan(self, plan: Path) -> Recipe:
        """The recipe with the plan in this file in place of its own choice. Raises SpecError where it has none."""
        if self.quantize is None:
            raise SpecError(f"--plan {plan}: recipe {self.name} quantizes nothing", fix="pass --recipe mixed or ptq")
        return replace(
            self, steps=tuple(replace(s, plan=str(plan)) if isinstance(s, Quantize) else s for s in self.steps)
        )

    def with_settings(self, kind: type[Distill] | type[LowRank] | type[Prune], **settings: Any) -> Recipe:
        """The recipe with these settings of its first step of that kind, but for those that are None.

        Raises SpecError where it has no such step.
        """
        at = next((at for at, step in enumerate(self.steps) if isinstance(step, kind)), None)
        if at is None:
            raise SpecError(f"recipe {self.name} has no step {kind_of(kind)}", fix=f"pass --recipe {kind_of(kind)}")
        changes = {name: value for name, value in settings.items() if value is not None}
        return replace(self, steps=(*self.steps[:at], replace(self.steps[at], **changes), *self.steps[at + 1 :]))


@dataclass(frozen=True)
class Budget:
    """What a build must reach; None where anything goes.

    max_bytes: of the bundle; min_retention: share of the detector's own mAP50-95, 0 to 1; min_fps: frames a second,
    one after the other, from frame to detections; max_energy_mj: millijoules a frame, of the whole device.
    """

    max_bytes: int | None = None
    min_retention: float | None = None
    min_fps: float | None = None
    max_energy_mj: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return any(limit is not None for limit in vars(self).values())


def load_recipe(name: str | Path | Mapping[str, Any]) -> Recipe:
    """A shipped recipe by name, one from a `.toml` file, or one in a table such as a file holds: `name` and `steps`.

    Raises SpecError naming what is wrong and where. What steps may say: docs/recipes.md.
    """
    if isinstance(name, Mapping):
        return recipe_from(dict(name), "recipe")
    name = str(name)
    if name.endswith(".toml"):
        recipe = recipe_from(read_toml(Path(name)), name)
        plan = recipe.quantize.plan if recipe.quantize else None
        recipe = recipe.with_plan(Path(name).parent / plan) if plan else recipe
        folder = Path(name).parent
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
    """The step with the files of its training taken from the recipe's own folder."""
    if isinstance(step, Prune) and step.recovery:
        return replace(step, recovery=_beside(step.recovery, folder))
    return _beside(step, folder) if isinstance(step, Distill) else step


def _beside(step: Distill, folder: Path) -> Distill:
    """The step with its files taken from the recipe's own folder; a student may also be a model's name."""
    student = folder / step.student if step.student else None
    return replace(
        step,
        student=str(student) if student and student.is_file() else step.student,
        unlabelled=str(folder / step.unlabelled) if step.unlabelled else None,
    )


def recipe_names() -> tuple[str, ...]:
    """The names of the shipped recipes."""
    files = resources.files("edgekd.builds.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@dataclass(frozen=True)
class _Head:
    name: str
    description: str = ""


def recipe_from(table: dict[str, Any], source: str) -> Recipe:
    """The recipe in a TOML table. Raises SpecError naming the key."""
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
    """Whether steps of these kinds make sense one after the other."""
    if kinds[:2] == [Quantize, Prune]:  # what a quantized detector can do without, before it is trained as one
        return kinds[2:] != [] and set(kinds[2:]) == {QuantAwareDistill}
    if kinds[:2] == [Distill, Prune]:  # a student, pruned once it is trained
        kinds = kinds[1:]
    order = [list(_STEPS.values()).index(kind) for kind in kinds]
    repeated = any(kinds.count(kind) > 1 for kind in (Resize, Prune, LowRank, Distill, Quantize))
    return order == sorted(order) and not repeated and (QuantAwareDistill not in kinds or Quantize in kinds)


def _step(table: dict[str, Any], where: str) -> Step:
    kind = table.get("kind")
    if kind not in _STEPS:
        raise SpecError(f"{where}: `kind`", expected=" or ".join(_STEPS), found=str(kind))
    return parse_table(_STEPS[kind], {key: value for key, value in table.items() if key != "kind"}, where)

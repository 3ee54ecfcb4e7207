"""What a missed limit is due to, and what to try next. Pure but for reading the stages of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.builds.budget import Line, size_text
from edgekd.builds.recipe import Recipe
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import PLAN
from edgekd.builds.stages.plan import costs_of, plan_within
from edgekd.core.errors import BudgetError

STEPS = 16
"""Sizes, evenly from the plan's to the largest that gains anything, among which one that would do is looked for."""


def costliest(errors: Mapping[str, float], count: int = 3) -> list[tuple[str, float]]:
    """The layers that are thought to cost most, and the share of each, most first."""
    total = sum(errors.values())
    listed = sorted(errors.items(), key=lambda entry: -entry[1])[:count]
    return [(name, error / total) for name, error in listed if total and error > 0]


def require_met(
    lines: Sequence[Line], recipe: Recipe, stages: Sequence[Stage], report: Any, else_: str | None = None
) -> None:
    """Raise BudgetError where a limit is missed: each number with its limit, the layers, and the next lever.

    else_: what helps against any.
    """
    missed = [line for line in lines if line.met is False]
    if not missed:
        return
    what = "; ".join(f"{line.label} is {line.text(line.value)}, limit {line.text(line.limit)}" for line in missed)
    if any(line.is_accuracy for line in missed) and (layers := costliest(_errors(stages))):
        what += "; most is lost in " + ", ".join(f"{name} ({share:.0%})" for name, share in layers)
    fixes = [lever(line, recipe, stages) for line in missed] + ([else_] if else_ else [])
    raise BudgetError(f"budget missed: {what}", report=report, fix="; ".join(fixes))


def lever(line: Line, recipe: Recipe, stages: Sequence[Stage]) -> str:
    """What to try next where a line is missed."""
    step = recipe.quantize
    if line.name in ("min_fps", "max_energy_mj"):
        return "a smaller model of the family, or a smaller input size"
    if line.is_size:
        if step is None or not step.planned:
            smaller = "recipe mixed, which stores layers in 4 bits, " if step else "recipe ptq or mixed, "
            return f"{smaller}a smaller model of the family, or a larger --max-size"
        return f"a smaller model of the family, or a --max-size of at least {line.text(line.value)}"
    levers = []
    if step is None or not step.planned:
        levers.append("more calibration images (--calibration), a higher min_snr_db in a recipe")
    elif more := _more_bytes(line, stages):
        levers.append(f"a --max-size larger by about {size_text(more)}")
    if line.name == "min_retention" and not recipe.quant_aware:
        levers.append("recipe qad, which trains a .pt checkpoint")
    return ", ".join([*levers, "or a lower --keep"])


def _errors(stages: Sequence[Stage]) -> Mapping[str, float]:
    """What each layer of the last quantization is thought to cost; nothing where training changed it since."""
    last = [stage for stage in stages if "forms" in stage.results]
    return last[-1].results.get("errors", {}) if last else {}


def _more_bytes(line: Line, stages: Sequence[Stage]) -> int | None:
    """By how much a plan must grow until its predicted error is as much smaller as the loss has to be; None: never."""
    from edgekd.compress.quantization.plan import load_plan

    costs = [stage for stage in stages if stage.name == "plan"]
    made = [stage for stage in stages if PLAN in stage.files and "forms" in stage.results]
    if not costs or not made or line.value is None or line.value >= 1:
        return None
    plan = load_plan(made[-1].path / PLAN)
    measured = costs_of(costs[-1])
    most = plan_within(measured, None).predicted_bytes
    wanted = plan.predicted_error * (1 - line.limit) / (1 - line.value)
    for step in range(1, STEPS + 1):
        size = plan.predicted_bytes + (most - plan.predicted_bytes) * step // STEPS
        if plan_within(measured, size).predicted_error <= wanted:
            return size - plan.predicted_bytes
    return None

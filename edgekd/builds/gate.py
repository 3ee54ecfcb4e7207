"""Errors for missed limits, with values, costliest layers, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.builds.recipe import Recipe
from edgekd.builds.stage_store import AnyStage
from edgekd.builds.stages.base import GraphResult
from edgekd.builds.stages.plan import costs_of, plan_within
from edgekd.builds.stages.quantize import PLAN, CostsResult, QuantizedResult, QuantizeResult
from edgekd.compress.quantization.plan import load_plan
from edgekd.core.errors import BudgetError
from edgekd.hardware.budget import LimitResult, size_text

SIZES = 16
"""Number of sizes that are tried, evenly spaced from the plan's to the largest useful one."""


def costliest(errors: Mapping[str, float], count: int = 3) -> list[tuple[str, float]]:
    """Return the layers with the largest estimated cost, and the share of each in the total, 0 to 1."""
    total = sum(errors.values())
    listed = sorted(errors.items(), key=lambda entry: -entry[1])[:count]
    return [(name, error / total) for name, error in listed if total and error > 0]


def require_met(
    lines: Sequence[LimitResult], recipe: Recipe, stages: Sequence[AnyStage], report: Any, fallback: str | None = None
) -> None:
    """Raise BudgetError if a limit is missed, with values and limits, the costliest layers, and what to try next.

    report: Result that the error carries. fallback: A further remedy for any limit.
    """
    missed = [line for line in lines if line.met is False]
    if not missed:
        return
    what = "; ".join("{} is {}, limit {}".format(line.label, *line.texts) for line in missed)
    if any(line.is_accuracy for line in missed) and (layers := costliest(_errors(stages))):
        what += "; most is lost in " + ", ".join(f"{name} ({share:.0%})" for name, share in layers)
    fixes = [lever(line, recipe, stages) for line in missed] + ([fallback] if fallback else [])
    raise BudgetError(f"budget missed: {what}", report=report, fix="; ".join(fixes))


def lever(line: LimitResult, recipe: Recipe, stages: Sequence[AnyStage]) -> str:
    """Return what to try next for a missed limit."""
    step = recipe.quantize
    if line.name in ("min_fps", "max_energy_mj"):
        return "a smaller model of the family, or a smaller input size"
    if line.is_size:
        if step is None or not step.planned:
            smaller = "recipe mixed, which stores layers in 4 bits, " if step else "recipe ptq or mixed, "
            return f"{smaller}a smaller model of the family, or a larger --max-size"
        return f"a smaller model of the family, or a --max-size of at least {_size_above(line.value or 0)}"
    levers = []
    if step is None or not step.planned:
        levers.append("more calibration images (--calibration), a higher min_snr_db in a recipe")
    elif more := _more_bytes(line, stages):
        levers.append(f"a --max-size larger by about {size_text(more)}")
    if line.name == "min_retention" and not recipe.quant_aware and not _with_more_than_boxes(stages):
        levers.append("recipe qad, which trains a .pt checkpoint")
    return f"{', '.join(levers)}, or a lower --keep" if levers else "a lower --keep"


def _size_above(count: float) -> str:
    """Return a number of bytes as text, rounded up."""
    return size_text(math.ceil(count / 1e4) * 1e4 if count >= 1e4 else count)


def _errors(stages: Sequence[AnyStage]) -> Mapping[str, float]:
    """Return the estimated cost of each layer in the last quantization; empty if it was trained since."""
    last = [stage.result for stage in stages if isinstance(stage.result, QuantizedResult)]
    return last[-1].errors if last and isinstance(last[-1], QuantizeResult) else {}


def _with_more_than_boxes(stages: Sequence[AnyStage]) -> bool:
    """Return True for a detector with keypoints, rotated boxes or masks, which is not trained."""
    graphs = [stage.result.detector for stage in stages if isinstance(stage.result, GraphResult)]
    return any(detector is not None and detector.head.task != "detect" for detector in graphs)


def _more_bytes(line: LimitResult, stages: Sequence[AnyStage]) -> int | None:
    """Return by how many bytes a plan must grow to meet a limit on accuracy; None without a plan, or if none suffices.

    Assumes that the loss of accuracy is proportional to the predicted error of the plan.
    """
    planned = [stage for stage in stages if isinstance(stage.result, CostsResult)]
    quantized = [stage for stage in stages if PLAN in stage.files and isinstance(stage.result, QuantizedResult)]
    if not planned or not quantized or line.value is None or line.value >= 1:
        return None
    plan = load_plan(quantized[-1].path / PLAN)
    measured = costs_of(planned[-1])
    most = plan_within(measured, None).predicted_bytes
    max_error = plan.predicted_error * (1 - line.limit) / (1 - line.value)
    for step in range(1, SIZES + 1):
        size = plan.predicted_bytes + (most - plan.predicted_bytes) * step // SIZES
        if plan_within(measured, size).predicted_error <= max_error:
            return size - plan.predicted_bytes
    return None

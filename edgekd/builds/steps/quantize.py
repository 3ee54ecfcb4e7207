"""Step `quantize`: post-training quantization to Q/DQ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekd.builds.publish import bytes_beside_graph
from edgekd.builds.recipe import Recipe
from edgekd.builds.run import BuildRecord
from edgekd.builds.stages import calibrate, plan, quantize
from edgekd.builds.stages.base import StageContext
from edgekd.builds.step_kinds import StepKind
from edgekd.compress.steps import Quantize
from edgekd.core.errors import SpecError
from edgekd.data.types import Dataset
from edgekd.hardware.budget import Budget
from edgekd.hardware.target import cache_version


def apply(step: Quantize, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Calibrate and quantize the float graph, by a plan where the step allows several formats."""
    request = record.request
    step = plan.offered(step, request.target)
    calibrated, trial = plan.calibrated_for(
        context,
        step,
        record.floating,
        dataset,
        record.scored,
        record.data_sha256,
        calibration=request.calibration,
        budget=request.budget,
    )
    record = replace(record, calibrated=calibrated)
    limits, tensorrt = _limits(record, step), cache_version(request.target)
    after = plan.quantized(context, step, record.floating, calibrated.frames, limits, trial, tensorrt)
    return replace(record, after=after)


def _limits(record: BuildRecord, step: Quantize) -> plan.Limits:
    """Return the limits of a plan: the step's own size, or the budget less the rest of the bundle; and the accuracy."""
    recipe, budget = record.request.recipe, record.request.budget
    own = plan.size_of(step, record.floating) if step.planned else None
    if not step.planned or step.plan or own is not None or budget.max_bytes is None:
        return plan.Limits(plan.room(recipe, own), budget.min_retention)
    graph_bytes = budget.max_bytes - bytes_beside_graph(record)
    beside = (quantize.CACHE, quantize.PLAN)
    return plan.Limits(plan.room(recipe, graph_bytes), budget.min_retention, beside=beside)


def _refuse(step: Quantize, recipe: Recipe, budget: Budget, model: Path) -> None:
    """Raise SpecError where formats are to be chosen under no limit."""
    limits = (step.bits, step.max_bytes, budget.max_bytes, budget.min_retention)
    if step.plan is None and len(step.formats) > 1 and limits == (None,) * 4:
        raise SpecError(
            f"recipe {recipe.name} chooses formats under a limit",
            expected="a largest size, or a least share of the accuracy",
            found="neither",
            fix="pass --max-size or --keep, such as --keep 98%",
        )


STEP = StepKind(
    settings=Quantize,
    order=50,
    effect="quantizes the detector",
    apply=apply,
    stages=(calibrate.CALIBRATE, quantize.PLAN_COSTS, plan.SEARCH, quantize.QUANTIZE),
    refuse=_refuse,
    command="quantize",
)

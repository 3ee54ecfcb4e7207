"""The compression steps of edgekd: a function that runs each in a build, and its declaration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgekd.builds.compression import exported, input_size, latency_of, with_detector
from edgekd.builds.publish import bytes_beside_graph
from edgekd.builds.recipe import Recipe
from edgekd.builds.run import BuildRecord
from edgekd.builds.stages import calibrate, label, low_rank, plan, prune, quantize, recover, resize, train
from edgekd.builds.stages.base import StageContext
from edgekd.builds.step_kinds import StepKind
from edgekd.compress.quantization.plan import load_plan
from edgekd.compress.steps import Distill, LowRank, Prune, QuantAwareDistill, Quantize, Recover, Resize
from edgekd.core.errors import SpecError
from edgekd.data.types import Dataset
from edgekd.hardware.budget import Budget
from edgekd.hardware.target import cache_version


def _resize(step: Resize, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    request = record.request
    stage = resize.run(context, step, request.model, trust=request.trust_checkpoint)
    return with_detector(stage.path / resize.resized_file(request.model), record, dataset, context)


RESIZE = StepKind(
    settings=Resize,
    order=10,
    effect="resizes the input",
    apply=_resize,
    stages=(resize.RESIZE,),
    capability="resize",
    fix="pass the checkpoint, or export the model at that size",
)


def _prune(step: Prune, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Prune the detector; a quantized one is quantized again by the same plan."""
    request, side = record.request, input_size(record)
    if side is not None and step.recovery is not None:
        step = replace(step, recovery=replace(step.recovery, image_size=side))
    quantized_before = record.after if record.after.key != record.floating.key else None
    pruner = prune.ChannelPruner(
        context=context,
        dataset=dataset,
        checkpoint=record.detector.path,
        before=record.floating,
        export=partial(exported, record=record, dataset=dataset, context=context),
        latency=latency_of(record, context),
        trust=request.trust_checkpoint,
        quantized=quantized_before,
        train_on=request.train_on,
    )
    pruned = pruner.run(prune.for_target(step, request.target))
    record = with_detector(pruned.checkpoint, record, dataset, context, weakened=True)
    again = request.recipe.quantize
    if quantized_before is None or again is None:
        return record
    same_plan = str(quantized_before.path / quantize.PLAN) if quantize.PLAN in quantized_before.files else None
    return _quantize(replace(again, plan=same_plan), record, dataset, context)


def _prunes_out_of_order(before: Sequence[str], after: Sequence[str]) -> bool:
    """Return True for pruning a student after its training, and for ranking channels by their effect when quantized."""
    return before == ["distill"] or (before == ["quantize"] and set(after) == {"quant_aware_distill"})


PRUNE = StepKind(
    settings=Prune,
    order=20,
    effect="removes channels",
    apply=_prune,
    stages=(prune.PRUNE, prune.SENSITIVITY),
    trains=True,
    capability="prune",
    out_of_order=_prunes_out_of_order,
    out_of_order_text="or distill, prune, ... for a student that is pruned; or quantize, prune, quant_aware_distill",
    command="prune",
)


def _factorize(step: LowRank, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    factorized = low_rank.factorize(
        context,
        step,
        record.detector.path,
        dataset,
        record.floating,
        partial(exported, record=record, dataset=dataset, context=context),
        latency_of(record, context),
        trust=record.request.trust_checkpoint,
    )
    return with_detector(factorized.checkpoint, record, dataset, context, weakened=True)


FACTORIZE = StepKind(
    settings=LowRank,
    order=30,
    effect="replaces convolutions",
    apply=_factorize,
    stages=(low_rank.FACTORIZE,),
    trains=True,
    capability="factorize",
    command="factorize",
)


def _recover(step: Recover, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Train the detector after the steps before on cached predictions of the given one."""
    request = record.request
    stage = recover.run(
        context,
        step,
        record.detector.path,
        request.model,
        record.floating,
        dataset,
        trust=request.trust_checkpoint,
        device=request.train_on,
    )
    return with_detector(stage.path / recover.recovered_file(record.detector.path), record, dataset, context)


def _require_loss(step: Recover, recipe: Recipe, budget: Budget) -> None:
    """Raise SpecError if no step before prunes or factorizes the detector."""
    if not any(isinstance(other, (Prune, LowRank)) for other in recipe.steps[: recipe.steps.index(step)]):
        raise SpecError(f"recipe {recipe.name} has nothing to recover from", fix="prune or factorize before recover")


RECOVER = StepKind(
    settings=Recover,
    order=35,
    effect="trains beside cached predictions",
    apply=_recover,
    stages=(recover.RECOVER,),
    trains=True,
    capability="recover",
    refuse=_require_loss,
)


def _distill(step: Distill, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Train the student that the step names, else the detector after the steps before; the given one is the teacher."""
    request = record.request
    student, image_size = step.student or str(record.detector.path), input_size(record) or step.image_size
    step = replace(step, student=student, image_size=image_size)
    trust, device = request.trust_checkpoint, request.train_on
    stage = train.distill(context, step, request.model, dataset, trust=trust, device=device)
    return with_detector(stage.path / train.student_file(step), record, dataset, context)


def _require_student(step: Distill, recipe: Recipe, budget: Budget) -> None:
    """Raise SpecError if the given detector would be its own teacher."""
    if step.student is None and recipe.steps[0] is step:
        raise SpecError(
            f"recipe {recipe.name} trains a student and names none",
            fix='add student = "yolo11n.yaml" or a .pt checkpoint to its step distill, or prune or factorize before it',
        )


DISTILL = StepKind(
    settings=Distill,
    order=40,
    effect="trains a student",
    apply=_distill,
    stages=(label.LABEL, train.DISTILL),
    trains=True,
    capability="distill",
    given_capability="teacher",
    refuse=_require_student,
    command="distill",
)


def _quantize(step: Quantize, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    request = record.request
    step = plan.offered(step, request.target)
    data = (dataset, record.scored, record.data_sha256)
    calibrated, scorer = plan.calibrated_for(
        context, step, record.floating, *data, calibration=request.calibration, budget=request.budget
    )
    record = replace(record, calibrated=calibrated)
    limits, tensorrt = _limits(record, step), cache_version(request.target)
    after = plan.quantized(context, step, record.floating, calibrated.frames, limits, scorer, tensorrt)
    return replace(record, after=after)


def _limits(record: BuildRecord, step: Quantize) -> plan.PlanLimits:
    """Return the limits of a plan: size, the step's own or the budget minus the rest of the bundle, and accuracy."""
    recipe, budget = record.request.recipe, record.request.budget
    own = plan.size_of(step, record.floating) if step.planned else None
    if not step.planned or step.plan or own is not None or budget.max_bytes is None:
        return plan.PlanLimits(plan.room(recipe, own), budget.min_retention)
    graph_bytes = plan.room(recipe, budget.max_bytes - bytes_beside_graph(record))
    return plan.PlanLimits(graph_bytes, budget.min_retention, beside=(quantize.CACHE, quantize.PLAN))


def _require_plan(step: Quantize, recipe: Recipe, budget: Budget) -> None:
    """Raise SpecError if the file of a plan cannot be read, or several formats have no limit to choose them by."""
    if step.plan is not None:
        load_plan(Path(step.plan))
    limits = (step.bits, step.max_bytes, budget.max_bytes, budget.min_retention)
    if step.plan is None and len(step.formats) > 1 and limits == (None,) * 4:
        raise SpecError(
            f"recipe {recipe.name} chooses formats under a limit",
            expected="a largest size, or a least share of the accuracy",
            found="neither",
            fix="pass --max-size or --keep, such as --keep 98%",
        )


QUANTIZE = StepKind(
    settings=Quantize,
    order=50,
    effect="quantizes the detector",
    apply=_quantize,
    stages=(calibrate.CALIBRATE, quantize.PLAN_COSTS, plan.SEARCH, quantize.QUANTIZE),
    refuse=_require_plan,
    command="quantize",
)


def _quant_aware_distill(
    step: QuantAwareDistill, record: BuildRecord, dataset: Dataset, context: StageContext
) -> BuildRecord:
    """Train the quantized graph on predictions of the given detector, or of its float student after distillation."""
    request, tensorrt = record.request, cache_version(record.request.target)
    cache = recover.CacheRequest(tensorrt, record.calibrated.frames) if tensorrt and record.calibrated else None
    given = record.weakened or request.recipe.first(Distill) is None
    after = recover.quant_aware_distill(
        context,
        step,
        record.detector.path,
        request.model if given else record.detector.path,
        recover.quantized_stage(record.after),
        dataset,
        trust=request.trust_checkpoint,
        device=request.train_on,
        cache_request=cache,
    )
    return replace(record, after=after)


QUANT_AWARE_DISTILL = StepKind(
    settings=QuantAwareDistill,
    order=60,
    effect="trains a quantized detector",
    apply=_quant_aware_distill,
    stages=(recover.QUANT_AWARE_DISTILL,),
    trains=True,
    capability="quant_aware_distill",
    fix="pass a recipe that quantizes after training, such as mixed",
    repeats=True,
    requires="quantize",
    command="quantize",
)

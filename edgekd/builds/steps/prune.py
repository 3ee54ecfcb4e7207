"""Step `prune`: the least important channels removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from edgekd.builds.compression import exported, input_size, latency_of, with_detector
from edgekd.builds.run import BuildRecord
from edgekd.builds.stages import prune
from edgekd.builds.stages.base import StageContext
from edgekd.builds.stages.quantize import PLAN
from edgekd.builds.step_kinds import StepKind
from edgekd.builds.steps import quantize
from edgekd.compress.steps import Prune
from edgekd.data.types import Dataset


def apply(step: Prune, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
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
    plan = str(quantized_before.path / PLAN) if PLAN in quantized_before.files else None
    return quantize.apply(replace(again, plan=plan), record, dataset, context)


def _out_of_order(before: Sequence[str], after: Sequence[str]) -> bool:
    """Allow a student that is pruned once it is trained, and channels ranked by their effect when quantized."""
    return before == ["distill"] or (before == ["quantize"] and set(after) == {"quant_aware_distill"})


STEP = StepKind(
    settings=Prune,
    order=20,
    effect="removes channels",
    apply=apply,
    stages=(prune.PRUNE, prune.SENSITIVITY),
    trains=True,
    capability="prune",
    out_of_order=_out_of_order,
    out_of_order_text="or distill, prune, ... for a student that is pruned; or quantize, prune, quant_aware_distill",
    command="prune",
)

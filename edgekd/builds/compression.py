"""The compression steps of a recipe: each turns the record of a build into the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgekd.builds.publish import bytes_beside_graph
from edgekd.builds.recipe import Distill, LowRank, Prune, QuantAwareDistill, Quantize, Resize, Step
from edgekd.builds.run import BuildRecord
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages import encode, export, low_rank, prune, resize, train
from edgekd.builds.stages.base import StageContext
from edgekd.builds.stages.calibrate import Calibrated
from edgekd.builds.stages.export import ExportResult
from edgekd.builds.stages.latency import Latency, Measured, latency_on
from edgekd.builds.stages.plan import Limits, calibrated_for, offered, quantized, room, size_of
from edgekd.builds.stages.quantize import CACHE, PLAN
from edgekd.data.types import Dataset
from edgekd.deploy.devices.local import local_device
from edgekd.detectors import load
from edgekd.hardware.target import cache_version, opset_for

S = TypeVar("S", Distill, Prune)
Apply = Callable[[Any, BuildRecord, Dataset, StageContext], BuildRecord]


def compress(record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Run the steps of the recipe."""
    for step in record.request.recipe.steps:
        done = len(context.done)
        if step.trains:
            context.refuse_shared(dataset.split("train"), record.scored)
        record = APPLY[type(step)](step, record, dataset, context)
        record = replace(record, steps=(*record.steps, *context.done[done:]))
    return record


def _resize(step: Resize, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    request = record.request
    stage = resize.run(context, step, request.model, trust=request.trust_checkpoint)
    return _with_detector(stage.path / resize.resized_file(request.model), record, dataset, context)


def _prune(step: Prune, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Prune the detector; a quantized one is quantized again by the same plan."""
    request = record.request
    quantized_before = record.after if record.after.key != record.floating.key else None
    pruner = prune.ChannelPruner(
        context=context,
        dataset=dataset,
        checkpoint=record.detector.path,
        before=record.floating,
        export=partial(_exported, record=record, dataset=dataset, context=context),
        latency=_latency(record, context),
        trust=request.trust_checkpoint,
        quantized=quantized_before,
        train_on=request.train_on,
    )
    pruned = pruner.run(prune.for_target(_at_size(step, record), request.target))
    record = _with_detector(pruned.checkpoint, record, dataset, context, weakened=True)
    again = request.recipe.quantize
    if quantized_before is None or again is None:
        return record
    plan = str(quantized_before.path / PLAN) if PLAN in quantized_before.files else None
    return _quantize(replace(again, plan=plan), record, dataset, context)


def _factorize(step: LowRank, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    factorized = low_rank.factorize(
        context,
        step,
        record.detector.path,
        dataset,
        record.floating,
        partial(_exported, record=record, dataset=dataset, context=context),
        _latency(record, context),
        trust=record.request.trust_checkpoint,
    )
    return _with_detector(factorized.checkpoint, record, dataset, context, weakened=True)


def _distill(step: Distill, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Train the student that the step names, or the pruned detector."""
    request = record.request
    step = replace(_at_size(step, record), student=step.student or str(record.detector.path))
    trust, device = request.trust_checkpoint, request.train_on
    stage = train.distill(context, step, request.model, dataset, trust=trust, device=device)
    return _with_detector(stage.path / train.student_file(step), record, dataset, context)


def _quantize(step: Quantize, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    request, step = record.request, offered(step, record.request.target)
    data = (dataset, record.scored, record.data_sha256)
    calibrated, trial = calibrated_for(
        context, step, record.floating, *data, calibration=request.calibration, budget=request.budget
    )
    record = replace(record, calibrated=calibrated)
    limits, tensorrt = _limits(record, step), cache_version(request.target)
    return replace(record, after=quantized(context, step, record.floating, calibrated.frames, limits, trial, tensorrt))


def _quant_aware_distill(
    step: QuantAwareDistill, record: BuildRecord, dataset: Dataset, context: StageContext
) -> BuildRecord:
    """Train the quantized graph beside its float detector, or the given one where that is weakened."""
    request, graph = record.request, train.quantized_stage(record.after)
    after = train.quant_aware_distill(
        context,
        step,
        record.detector,
        graph,
        dataset,
        trust=request.trust_checkpoint,
        cache_request=_cache_request(cache_version(request.target), record.calibrated),
        teacher=request.model if record.weakened else None,
    )
    return replace(record, after=after)


APPLY: Mapping[type[Step], Apply] = {
    Resize: _resize,
    Prune: _prune,
    LowRank: _factorize,
    Distill: _distill,
    Quantize: _quantize,
    QuantAwareDistill: _quant_aware_distill,
}
"""The function of each step of `spec.STEPS`."""


def _cache_request(tensorrt: str | None, calibrated: Calibrated | None) -> train.CacheRequest | None:
    return train.CacheRequest(tensorrt, calibrated.frames) if tensorrt and calibrated else None


def _latency(record: BuildRecord, context: StageContext) -> Latency:
    measured = Measured(context, record.scored, record.data_sha256, local_device(record.request.device))
    return latency_on(record.request.target, measured)


def _at_size(step: S, record: BuildRecord) -> S:
    """Return the step with its training at the input size of the recipe, if that changes the size."""
    size = record.request.recipe.first(Resize)
    if size is None:
        return step
    if isinstance(step, Distill):
        return replace(step, image_size=size.image_size)
    recovery = replace(step.recovery, image_size=size.image_size) if step.recovery else None
    return replace(step, recovery=recovery)


def _exported(checkpoint: Path, record: BuildRecord, dataset: Dataset, context: StageContext) -> Stage[ExportResult]:
    """Return the float graph of a checkpoint that was written here."""
    return export.run(context, load(checkpoint), None, dataset.classes, opset_for(record.request.target))


def _with_detector(
    checkpoint: Path, record: BuildRecord, dataset: Dataset, context: StageContext, *, weakened: bool = False
) -> BuildRecord:
    """Return the record with another detector in place of its own."""
    graph = _exported(checkpoint, record, dataset, context)
    encoded = encode.run(context, graph, "fp32")
    return replace(record, detector=load(checkpoint), floating=graph, after=graph, encoded=encoded, weakened=weakened)


def _limits(record: BuildRecord, step: Quantize) -> Limits:
    """Return the limits of a plan: the step's own size, or the budget less the rest of the bundle; and the accuracy."""
    recipe, budget = record.request.recipe, record.request.budget
    own = size_of(step, record.floating) if step.planned else None
    if not step.planned or step.plan or own is not None or budget.max_bytes is None:
        return Limits(room(recipe, own), budget.min_retention)
    graph_bytes = budget.max_bytes - bytes_beside_graph(record)
    return Limits(room(recipe, graph_bytes), budget.min_retention, beside=(CACHE, PLAN))

"""Step `quant_aware_distill`: the quantized graph trained beside its float detector."""

from __future__ import annotations

from dataclasses import replace

from edgekd.builds.run import BuildRecord
from edgekd.builds.stages import train
from edgekd.builds.stages.base import StageContext
from edgekd.builds.step_kinds import StepKind
from edgekd.compress.steps import QuantAwareDistill
from edgekd.data.types import Dataset
from edgekd.hardware.target import cache_version


def apply(step: QuantAwareDistill, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Train the quantized graph beside its float detector, or the given one where that is weakened."""
    request, tensorrt = record.request, cache_version(record.request.target)
    cache = train.CacheRequest(tensorrt, record.calibrated.frames) if tensorrt and record.calibrated else None
    after = train.quant_aware_distill(
        context,
        step,
        record.detector,
        train.quantized_stage(record.after),
        dataset,
        trust=request.trust_checkpoint,
        cache_request=cache,
        teacher=request.model if record.weakened else None,
    )
    return replace(record, after=after)


STEP = StepKind(
    settings=QuantAwareDistill,
    order=60,
    effect="trains a quantized detector",
    apply=apply,
    stages=(train.QUANT_AWARE_DISTILL,),
    trains=True,
    capability="quant_aware_distill",
    fix="pass a recipe that quantizes after training, such as mixed",
    repeats=True,
    requires="quantize",
    command="quantize",
)

"""Step `factorize`: convolutions replaced by low-rank products."""

from __future__ import annotations

from functools import partial

from edgekd.builds.compression import exported, latency_of, with_detector
from edgekd.builds.run import BuildRecord
from edgekd.builds.stages import low_rank
from edgekd.builds.stages.base import StageContext
from edgekd.builds.step_kinds import StepKind
from edgekd.compress.steps import LowRank
from edgekd.data.types import Dataset


def apply(step: LowRank, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Factorize the detector that the steps before have left."""
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


STEP = StepKind(
    settings=LowRank,
    order=30,
    effect="replaces convolutions",
    apply=apply,
    stages=(low_rank.FACTORIZE,),
    trains=True,
    capability="factorize",
    command="factorize",
)

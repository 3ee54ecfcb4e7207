"""All kinds of stages by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.builds import analyse, publish
from edgekd.builds.stage_store import StageKind
from edgekd.builds.stages import (
    benchmark,
    calibrate,
    check,
    compare,
    drift_reference,
    encode,
    export,
    half,
    label,
    low_rank,
    plan,
    prune,
    quantize,
    resize,
    score,
    train,
    trial,
)
from edgekd.builds.stages import compile as compile_stage

KINDS: Mapping[str, StageKind[Any]] = {
    kind.name: kind
    for kind in (
        export.EXPORT,
        score.SCORE,
        calibrate.CALIBRATE,
        quantize.PLAN_COSTS,
        quantize.QUANTIZE,
        plan.SEARCH,
        label.LABEL,
        resize.RESIZE,
        prune.PRUNE,
        prune.SENSITIVITY,
        low_rank.FACTORIZE,
        train.DISTILL,
        train.QUANT_AWARE_DISTILL,
        compare.COMPARE,
        half.HALF,
        encode.ENCODE,
        drift_reference.REFERENCE,
        check.CHECK,
        compile_stage.COMPILE,
        benchmark.BENCHMARK,
        analyse.ANALYSE,
        publish.REPORT,
        publish.PACK,
        trial.STUDENT,
        trial.TRIAL,
        trial.BOARD,
    )
}


def kind_of(stage: str) -> StageKind[Any] | None:
    """Return the kind of a stage by its name, such as `score` for `score-int8`; None for an unknown one."""
    return KINDS.get(stage.split("-")[0])


def code_versions() -> dict[str, int]:
    """Return the code version of each kind."""
    return {name: kind.version for name, kind in KINDS.items()}

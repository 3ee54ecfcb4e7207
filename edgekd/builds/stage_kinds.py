"""All kinds of stages by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.builds import analyse, publish
from edgekd.builds.stage_store import StageKind
from edgekd.builds.stages import (
    benchmark,
    check,
    compare,
    drift_reference,
    encode,
    export,
    half,
    interface,
    score,
    trial,
)
from edgekd.builds.stages import compile as compile_stage
from edgekd.builds.step_kinds import step_kinds

KINDS: tuple[StageKind[Any], ...] = (
    export.EXPORT,
    score.SCORE,
    compare.COMPARE,
    half.HALF,
    interface.INTERFACE,
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
"""Stages that belong to no compression step."""


def stage_kinds() -> Mapping[str, StageKind[Any]]:
    """Return the kinds of stages by name. Raises SpecError if two packages declare the same step."""
    return {kind.name: kind for kind in (*KINDS, *(kind for step in step_kinds() for kind in step.stages))}


def kind_of(stage: str) -> StageKind[Any] | None:
    """Return the kind of a stage by its name, such as `score` for `score-int8`; None for an unknown one."""
    kinds = stage_kinds()
    return kinds.get(stage) or kinds.get(stage.rpartition("-")[0])


def code_versions() -> dict[str, int]:
    """Return the code version of each kind."""
    return {name: kind.version for name, kind in stage_kinds().items()}

"""`edgekd distill`: a smaller detector from a large one and labelled data; both are scored when training is over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import training
from edgekd.data.dataset import Dataset, Split, load_dataset
from edgekd.detectors import load
from edgekd.errors import DataError, SpecError
from edgekd.evaluate import require_classes
from edgekd.files import copy_file, write_file
from edgekd.planning import refuse_recipe
from edgekd.progress import SILENT, Progress
from edgekd.spec import Budget, Distill, Recipe
from edgekd.stages import EXPORT_OPSET, Stages, spec_of, stage_json

SCORED = "val"
"""The split that is scored where there is one; nothing is trained or chosen on it."""
RESULT = "distill.json"


@dataclass(frozen=True)
class DistillJob:
    """Which detector teaches whom, on what. device: `cpu`, or numbers of GPUs; None for one GPU if there is any."""

    teacher: Path
    data: Path
    recipe: Recipe
    out: Path
    device: str | None = None
    trust_checkpoint: bool = False
    fresh: bool = False


def run(job: DistillJob, progress: Progress = SILENT) -> Mapping[str, Any]:
    """Train and score; leave the student's file and `distill.json`, the documented result, in `job.out`.

    Raises SpecError, DataError or CompressError and leaves nothing half-written. What was killed goes on.
    """
    step = job.recipe.only(Distill)
    refuse_recipe(job.recipe, Budget(), job.teacher)
    load(job.teacher)  # a path that leads nowhere should not cost the hashing of the data
    dataset = load_dataset(job.data)
    stages = Stages.within(job.out, job.fresh, progress)
    scored = dataset.split(SCORED) if SCORED in dataset.splits else None
    if scored:
        stages.refuse_shared(dataset.split("train"), scored)
    done = training.distill(stages, step, job.teacher, dataset, job.trust_checkpoint, job.device)
    before = _scores(job.teacher, job, dataset, scored, stages)
    student, copy = done.path / training.student_file(step), job.out / training.student_file(step)
    after = _scores(student, job, dataset, scored, stages)
    kept = after["map50_95"] / before["map50_95"] if after["map50_95"] is not None and before["map50_95"] else None
    result = {
        "teacher": job.teacher.name,
        "student": Path(str(step.student)).name,
        "recipe": job.recipe.name,
        "checkpoint": str(copy),
        "kept": kept,
        "before": {"parameters": done.results["teacher_parameters"], **before},
        "after": {"parameters": done.results["parameters"], **after},
        "epochs": done.results["epochs"],
        "losses": done.results["losses"],
        "weights": done.results["weights"],
        "stages": [stage_json(stage) for stage in stages.done],
    }
    copy_file(student, copy)
    write_file(job.out / RESULT, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return result


def _scores(
    checkpoint: Path, job: DistillJob, dataset: Dataset, scored: Split | None, stages: Stages
) -> dict[str, float | None]:
    """mAP of a checkpoint's float graph; None without a split to score, and for a teacher of other classes or kind."""
    nothing: dict[str, float | None] = {"map50_95": None, "map50": None}
    if scored is None:
        return nothing
    detector = load(checkpoint, trust_checkpoint=job.trust_checkpoint)
    try:
        graph = stages.export(detector, None, dataset.classes, EXPORT_OPSET)
        require_classes(spec_of(graph), dataset)
    except (DataError, SpecError):
        return nothing
    found = stages.score(graph, scored, stages.fingerprint(scored), "fp32").results
    return {name: found[name] for name in nothing}

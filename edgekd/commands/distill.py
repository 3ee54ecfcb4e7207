"""`edgekd distill`: a smaller detector from a large one and labelled data; both are scored when training is over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from edgekd.builds.recipe import Budget, Distill, Recipe
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages import train
from edgekd.builds.stages.base import Stages, spec_of, stage_json
from edgekd.builds.stages.plan import refuse_recipe
from edgekd.commands.arguments import path_or_none, recipe_of
from edgekd.commands.options import Data, RecipeName, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import Distilled
from edgekd.core.atomic_files import copy_file, write_file
from edgekd.core.detection.decode import SCORING
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset, Split
from edgekd.detectors import load
from edgekd.detectors.family import direct_detector
from edgekd.evaluation.evaluate import judge
from edgekd.hardware.target import EXPORT_OPSET

SCORED = "val"
"""The split that is scored where there is one; nothing is trained or chosen on it."""
RESULT = "distill.json"
NOT_SCORED: Mapping[str, float | None] = MappingProxyType({"map50_95": None, "map50": None})


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
    done = train.distill(stages, step, job.teacher, dataset, job.trust_checkpoint, job.device)
    before = _teachers_scores(job, dataset, scored, stages)
    student, copy = done.path / train.student_file(step), job.out / train.student_file(step)
    after = _scores(_graph(student, job, dataset, stages), scored, stages) if scored else NOT_SCORED
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


def _teachers_scores(
    job: DistillJob, dataset: Dataset, scored: Split | None, stages: Stages
) -> Mapping[str, float | None]:
    """mAP of the teacher, of an RT-DETR by its own network; None without a split to score, and for other classes."""
    if scored is None:
        return NOT_SCORED
    same, trust = job.recipe.only(Distill).same_classes, job.trust_checkpoint
    if (found := direct_detector(job.teacher, SCORING, trust)) is not None:
        if not train.same_classes(dataset.classes, found.classes, same):
            return NOT_SCORED

        def work(folder: Path) -> Mapping[str, Any]:
            return judge(found.find, found.classes, scored, stages.progress, "score teacher").score.to_json()

        inputs = {"checkpoint": stages.sha256(job.teacher), "data": stages.fingerprint(scored)}
        return _maps(stages.run("score-teacher", inputs, work, ("torch", "ultralytics")))
    graph = _graph(job.teacher, job, dataset, stages)
    alike = train.same_classes(dataset.classes, spec_of(graph).classes, same)
    return _scores(graph, scored, stages) if alike else NOT_SCORED


def _graph(checkpoint: Path, job: DistillJob, dataset: Dataset, stages: Stages) -> Stage:
    return stages.export(load(checkpoint, trust_checkpoint=job.trust_checkpoint), None, dataset.classes, EXPORT_OPSET)


def _scores(graph: Stage, scored: Split, stages: Stages) -> Mapping[str, float | None]:
    return _maps(stages.score(graph, scored, stages.fingerprint(scored), "fp32"))


def _maps(stage: Stage) -> Mapping[str, float | None]:
    return {name: stage.results[name] for name in NOT_SCORED}


def distill(
    teacher: Annotated[str | Path, Argument("Trained .pt: YOLO, RT-DETR, torchvision.")],
    student: Annotated[str | Path, Argument("A .pt, yolo11n.yaml, or torchvision/NAME.", parse=str)],
    data: Data,
    *,
    recipe: RecipeName = "distill",
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/STUDENT-from-TEACHER.")] = None,
    width: Annotated[float | None, Option("Factor of the model's channels, such as 0.14.")] = None,
    epochs: Annotated[int | None, Option("Passes over the training split.")] = None,
    time: Annotated[float | None, Option("Minutes to train for, in place of a number of epochs.")] = None,
    unlabelled: Annotated[str | Path | None, Option("Folder of frames that TEACHER labels.")] = None,
    device: Annotated[str | None, Option("cpu, 0, or 0,1 for two GPUs. Default: a GPU if any.")] = None,
    fresh: Annotated[bool, Option("Go on where it stopped, or begin anew.", inverse="--resume")] = False,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Distilled:
    """Train a smaller detector on labels and on the outputs of a larger one; score both on the split `val`.

    A student is a checkpoint to begin with, or a description of a network.

    An interrupted training resumes after its last whole epoch, unless `fresh`. Raises SpecError, DataError or
    CompressError, and leaves nothing half-written. The command: `edgekd distill`. The method, with the source of each
    loss: docs/distillation.md.
    """
    given: dict[str, Any] = {"student": str(student), "width": width, "epochs": epochs, "minutes": time}
    given["unlabelled"] = None if unlabelled is None else str(unlabelled)
    names = (Path(name).stem.removesuffix(".tv") for name in (student, teacher))
    job = DistillJob(
        teacher=Path(teacher),
        data=Path(data),
        recipe=recipe_of(recipe or "distill").with_settings(Distill, **given),
        out=path_or_none(out) or Path("runs") / "-from-".join(names),
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
    )
    return Distilled(run(job, progress))

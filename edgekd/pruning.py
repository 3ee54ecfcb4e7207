"""`edgekd prune`: a detector with fewer channels, scored and timed beside the one it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgekd.data.dataset import Dataset, Split, load_dataset
from edgekd.detectors import load
from edgekd.evaluate import require_classes
from edgekd.files import copy_file, write_file
from edgekd.latency import Latency, Measured, latency_on
from edgekd.narrowing import Narrowed, Narrowing, checkpoint_name
from edgekd.planning import refuse_recipe
from edgekd.progress import SILENT, Progress
from edgekd.spec import Budget, Prune, Recipe
from edgekd.stages import EXPORT_OPSET, Stages, local_device, spec_of, stage_json
from edgekd.store import Stage
from edgekd.target import Target

SCORED = "val"
"""The split that is scored and timed on where there is one; nothing is chosen by it."""
RESULT = "prune.json"


@dataclass(frozen=True)
class PruneJob:
    """Which detector is to lose how much. target: what it is for, if not for this machine.

    device: what latency is measured on, `local` or `local:ENGINE`.
    """

    model: Path
    data: Path
    recipe: Recipe
    out: Path
    target: Target | None = None
    device: str = "local"
    trust_checkpoint: bool = False
    fresh: bool = False


def run(job: PruneJob, progress: Progress = SILENT) -> Mapping[str, Any]:
    """Prune, score and time; leave the checkpoint and `prune.json`, the documented result, in `job.out`.

    Raises SpecError, DataError or CompressError, also where the pruned detector is not faster, and leaves nothing
    half-written.
    """
    step = for_target(job.recipe.only(Prune), job.target)
    refuse_recipe(job.recipe, Budget(), job.model)
    detector = load(job.model, trust_checkpoint=job.trust_checkpoint)
    dataset = load_dataset(job.data)
    stages = Stages.within(job.out, job.fresh, progress)
    split = dataset.split(SCORED if SCORED in dataset.splits else "train")
    if split.name == SCORED and (step.importance != "magnitude" or step.recovery):
        stages.refuse_shared(dataset.split("train"), split)
    before = stages.export(detector, None, dataset.classes, EXPORT_OPSET)
    require_classes(spec_of(before), dataset)
    data = stages.fingerprint(split)
    measured = Measured(stages, split, data, local_device(job.device))
    latency = latency_on(job.target, measured)
    export = partial(exported, stages=stages, dataset=dataset, opset=EXPORT_OPSET)
    narrowing = Narrowing(stages, dataset, job.model, before, export, latency, job.trust_checkpoint)
    found = narrowing.run(step)
    result = {
        "model": job.model.name,
        "recipe": job.recipe.name,
        "checkpoint": str(job.out / checkpoint_name(job.model)),
        **{
            side: {**numbers, **_scores(graph, split, data, stages)}
            for side, numbers, graph in zip(
                ("before", "after"), _numbers(found, before, measured), (before, found.graph), strict=True
            )
        },
        "target": _on_target(job.target, latency, found),
        "widths": {name: list(pair) for name, pair in found.widths.items()},
        "importance": found.importance,
        "host": measured.host(before, found.graph),
        "stages": [stage_json(stage) for stage in stages.done],
    }
    copy_file(found.checkpoint, job.out / checkpoint_name(job.model))
    write_file(job.out / RESULT, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return result


def for_target(step: Prune, target: Target | None) -> Prune:
    """The step with widths that the target likes, where it does not say itself."""
    liked = target.precisions.multiple if target else None
    return replace(step, multiple=step.multiple or (liked.value if liked else None))


def exported(checkpoint: Path, stages: Stages, dataset: Dataset, opset: int) -> Stage:
    """The float graph of a checkpoint that was written here."""
    return stages.export(load(checkpoint), None, dataset.classes, opset)


def _numbers(found: Narrowed, before: Stage, measured: Measured) -> list[dict[str, Any]]:
    """Sizes and measured times, before and after."""
    times = measured.of_both(before, found.graph)
    return [
        {
            "parameters": found.parameters[at],
            "multiply_adds": found.multiply_adds[at],
            "latency_ms": times[at],
            "fps": 1000 / times[at],
        }
        for at in range(2)
    ]


def _on_target(target: Target | None, latency: Latency, found: Narrowed) -> dict[str, Any] | None:
    """What was decided by, where that was not this machine."""
    if target is None:
        return None
    before, after = found.latency_ms
    return {
        "name": target.name,
        "basis": latency.basis,
        "where": latency.where,
        "before_ms": before,
        "after_ms": after,
    }


def _scores(graph: Stage, split: Split, data: str, stages: Stages) -> dict[str, float | None]:
    """mAP of a graph; None where there is no split to score."""
    if split.name != SCORED:
        return {"map50_95": None, "map50": None}
    found = stages.score(graph, split, data, "fp32").results
    return {name: found[name] for name in ("map50_95", "map50")}

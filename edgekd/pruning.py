"""`edgekd prune`: a detector with fewer channels, scored and timed beside the one it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.data.dataset import Dataset, Split, load_dataset
from edgekd.detectors import load
from edgekd.errors import CompressError
from edgekd.evaluate import require_classes
from edgekd.files import copy_file, write_file
from edgekd.planning import refuse_recipe
from edgekd.progress import SILENT, Progress
from edgekd.spec import Budget, Prune, Recipe
from edgekd.stages import EXPORT_OPSET, PRUNED, Stages, local_device, spec_of, stage_json
from edgekd.store import Stage

SCORED = "val"
"""The split that is scored and timed on where there is one; nothing is chosen by it."""
RESULT = "prune.json"


@dataclass(frozen=True)
class PruneJob:
    """Which detector is to lose how much. device: what latency is measured on, `local` or `local:ENGINE`."""

    model: Path
    data: Path
    recipe: Recipe
    out: Path
    device: str = "local"
    trust_checkpoint: bool = False
    fresh: bool = False


def prune(stages: Stages, step: Prune, checkpoint: Path, dataset: Dataset, trust: bool = False) -> Stage:
    """The pruned detector, in the checkpoint PRUNED.

    Results: `bytes`; `parameters` and `multiply_adds`, before and after; of each unit of channels `widths`, before and
    after, and `importance`, the share that stays.
    """

    def work(folder: Path) -> Mapping[str, Any]:
        from edgekd.detectors.ultralytics_prune import prune_detector

        done = prune_detector(checkpoint, folder / PRUNED, dataset.source, step, trust, stages.progress)
        return {
            "bytes": (folder / PRUNED).stat().st_size,
            "parameters": list(done.parameters),
            "multiply_adds": list(done.multiply_adds),
            "widths": {name: list(pair) for name, pair in done.widths.items()},
            "importance": {name: float(f"{share:.6g}") for name, share in done.importance.items()},
        }

    train = None if step.importance == "magnitude" else stages.fingerprint(dataset.split("train"))
    return stages.run("prune", {"model": stages.sha256(checkpoint), "train": train, "step": asdict(step)}, work)


def run(job: PruneJob, progress: Progress = SILENT) -> Mapping[str, Any]:
    """Prune, score and time; leave the checkpoint and `prune.json`, the documented result, in `job.out`.

    Raises SpecError, DataError or CompressError, also where the pruned detector is not faster, and leaves nothing
    half-written.
    """
    step = job.recipe.only(Prune)
    refuse_recipe(job.recipe, Budget(), job.model)
    detector = load(job.model, trust_checkpoint=job.trust_checkpoint)
    dataset = load_dataset(job.data)
    stages = Stages.within(job.out, job.fresh, progress)
    split = dataset.split(SCORED if SCORED in dataset.splits else "train")
    if split.name == SCORED and step.importance != "magnitude":
        stages.refuse_shared(dataset.split("train"), split)
    before = stages.export(detector, None, dataset.classes, EXPORT_OPSET)
    require_classes(spec_of(before), dataset)
    done = prune(stages, step, job.model, dataset, job.trust_checkpoint)
    after = stages.export(load(done.path / PRUNED), None, dataset.classes, EXPORT_OPSET)
    data = stages.fingerprint(split)
    timing = stages.benchmark(before, after, split, data, local_device(job.device), basis="measured")
    require_faster(timing)
    sides = zip(("before", "after"), (before, after), strict=True)
    sizes = {name: done.results[name] for name in ("parameters", "multiply_adds")}
    result = {
        "model": job.model.name,
        "recipe": job.recipe.name,
        "checkpoint": str(job.out / PRUNED),
        **{
            side: {
                **{name: both[at] for name, both in sizes.items()},
                **_scores(graph, split, data, stages),
                "latency_ms": timing.results[side]["total_ms"]["p50"],
                "fps": timing.results[side]["fps"],
            }
            for at, (side, graph) in enumerate(sides)
        },
        "widths": done.results["widths"],
        "importance": done.results["importance"],
        "host": timing.results["host"],
        "stages": [stage_json(stage) for stage in stages.done],
    }
    copy_file(done.path / PRUNED, job.out / PRUNED)
    write_file(job.out / RESULT, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return result


def require_faster(timing: Stage) -> None:
    """Raise CompressError where a pruned network takes no less time than before, on the device that it was timed on."""
    before, after = (timing.results[side]["total_ms"]["p50"] for side in ("before", "after"))
    if after >= before:
        raise CompressError(
            "prune: narrower, and not faster",
            expected=f"less than {before:.2f} ms a frame, as before, on {timing.results['host']['engine']}",
            found=f"{after:.2f} ms",
            fix="prune more, or keep widths at a larger multiple",
        )


def _scores(graph: Stage, split: Split, data: str, stages: Stages) -> dict[str, float | None]:
    """mAP of a graph; None where there is no split to score."""
    if split.name != SCORED:
        return {"map50_95": None, "map50": None}
    found = stages.score(graph, split, data, "fp32").results
    return {name: found[name] for name in ("map50_95", "map50")}

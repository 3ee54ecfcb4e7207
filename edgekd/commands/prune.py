"""`edgekd prune`: a detector with fewer channels, scored and timed beside the one it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from edgekd.builds.recipe import Budget, Prune, Recipe
from edgekd.builds.speedup import start, told
from edgekd.builds.stages.base import Stages, stage_json
from edgekd.builds.stages.plan import refuse_recipe
from edgekd.builds.stages.prune import ChannelPruner, checkpoint_name, sensitivity
from edgekd.commands.arguments import path_or_none, recipe_of, target_or_none
from edgekd.commands.options import Data, Fresh, MaybeTarget, MeasuredOn, RecipeName, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import Lightened
from edgekd.core.atomic_files import copy_file, write_file
from edgekd.core.progress import SILENT, Progress
from edgekd.core.units import parse_share
from edgekd.hardware.target import Target

RESULT, SENSITIVITY = "prune.json", "sensitivity.json"


@dataclass(frozen=True)
class PruneJob:
    """Which detector is to lose how much. target: what it is for, if not for this machine.

    device: what latency is measured on, `local` or `local:ENGINE`. scan: also find out how sensitive each unit of
    channels is, before anything is pruned.
    """

    model: Path
    data: Path
    recipe: Recipe
    out: Path
    target: Target | None = None
    device: str = "local"
    scan: bool = False
    trust_checkpoint: bool = False
    fresh: bool = False


def run(job: PruneJob, progress: Progress = SILENT) -> Mapping[str, Any]:
    """Prune, score and time; leave the checkpoint and `prune.json`, the documented result, in `job.out`.

    Raises SpecError, DataError or CompressError, also where the pruned detector is not faster, and leaves nothing
    half-written.
    """
    step = for_target(job.recipe.only(Prune), job.target)
    refuse_recipe(job.recipe, Budget(), job.model)
    stages = Stages.within(job.out, job.fresh, progress)
    begun = start(job, stages, sees=step.importance != "magnitude" or step.recovery is not None)
    if job.scan:
        found_out = sensitivity(stages, begun.dataset, job.model, step, job.trust_checkpoint)
        write_file(job.out / SENSITIVITY, (json.dumps(found_out, indent=2) + "\n").encode("ascii"))
    known = (begun.dataset, job.model, begun.before, begun.export, begun.latency)
    found = ChannelPruner(stages, *known, job.trust_checkpoint).run(step)
    result = {
        "model": job.model.name,
        "recipe": job.recipe.name,
        "checkpoint": str(job.out / checkpoint_name(job.model)),
        **told(begun, found, job.target),
        "widths": {name: list(pair) for name, pair in found.widths.items()},
        "importance": found.importance,
        "stages": [stage_json(stage) for stage in stages.done],
    }
    copy_file(found.checkpoint, job.out / checkpoint_name(job.model))
    write_file(job.out / RESULT, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return result


def for_target(step: Prune, target: Target | None) -> Prune:
    """The step with widths that the target likes, where it does not say itself."""
    liked = target.precisions.multiple if target else None
    return replace(step, multiple=step.multiple or (liked.value if liked else None))


def prune(
    model: Annotated[str | Path, Argument("Trained .pt: YOLO, torchvision.")],
    data: Data,
    *,
    target: MaybeTarget = None,
    ratio: Annotated[str | float | None, Option("Share of the multiply-adds to remove, such as 30%.")] = None,
    max_size: Annotated[str | None, Option("Remove until the checkpoint has this size, such as 3MB.")] = None,
    min_fps: Annotated[float | None, Option("Remove until it makes as many frames a second.")] = None,
    recipe: RecipeName = "prune",
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-pruned.")] = None,
    scan: Annotated[bool, Option("Also write how sensitive each layer is: sensitivity.json.")] = False,
    device: MeasuredOn = "local",
    fresh: Fresh = False,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Lightened:
    """Remove the least important channels of a detector, and make sure that it is faster. Train it afterwards.

    Without `ratio` (0 to 1, or such as `30%`), `max_size` and `min_fps` half of the multiply-adds are removed. With a
    target the predicted latency decides, without one the latency measured on this machine.

    Raises SpecError, DataError, or CompressError, also where the result is not faster, and leaves nothing half-written.
    The command: `edgekd prune`. The method, with its sources: docs/pruning.md.
    """
    share = None if ratio is None else parse_share(ratio, "--ratio")
    job = PruneJob(
        model=Path(model),
        data=Path(data),
        recipe=recipe_of(recipe or "prune").with_settings(Prune, ratio=share, max_size=max_size, min_fps=min_fps),
        out=path_or_none(out) or Path("runs") / f"{Path(model).name.partition('.')[0]}-pruned",
        target=target_or_none(target),
        scan=scan,
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
    )
    return Lightened(run(job, progress))

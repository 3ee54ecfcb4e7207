"""`edgekd prune`: a detector with fewer channels, scored and timed together with the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgekd.builds.recipe import refuse_recipe
from edgekd.builds.speedup import Lightened, lightened, started
from edgekd.builds.stage_store import StageSummary, readable_json, summaries
from edgekd.builds.stages.prune import ChannelPruner, checkpoint_name, for_target, sensitivity
from edgekd.commands.arguments import path_or_none, recipe_of, short_name, target_or_none
from edgekd.commands.options import Data, Fresh, MaybeTarget, MeasuredOn, RecipeName, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import write_result
from edgekd.compress.steps import Prune
from edgekd.core.atomic_files import write_file
from edgekd.core.documents import to_plain
from edgekd.core.progress import SILENT, Progress
from edgekd.core.units import parse_share
from edgekd.hardware.budget import Budget

RESULT, SENSITIVITY = "prune.json", "sensitivity.json"


@dataclass(frozen=True)
class Pruned(Lightened):
    """A detector before and after pruning.

    Args:
        widths: Channels before and after of each unit of connected channels, by the name of a layer that writes them.
        importance: Share of its importance that each unit keeps.
        stages: The stages, in the order in which they ran.
    """

    widths: Mapping[str, tuple[int, int]]
    importance: Mapping[str, float]
    stages: tuple[StageSummary, ...]


def prune(
    model: Annotated[str | Path, Argument("Trained .pt: YOLO, torchvision.")],
    data: Data,
    *,
    target: MaybeTarget = None,
    ratio: Annotated[
        str | float | None, Option("Share of the multiply-adds to remove, such as 30%.", group="Budget")
    ] = None,
    max_size: Annotated[
        str | None, Option("Remove until the checkpoint has this size, such as 3MB.", group="Budget")
    ] = None,
    min_fps: Annotated[
        float | None, Option("Remove until the detector makes so many frames a second.", group="Budget")
    ] = None,
    recipe: RecipeName = "prune",
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-pruned.", group="Output")] = None,
    scan: Annotated[bool, Option("Also write how sensitive each layer is: sensitivity.json.", group="Output")] = False,
    device: MeasuredOn = "local",
    fresh: Fresh = False,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Pruned:
    """Remove the least important channels of a detector, and check that it is faster. Train it afterwards.

    Without `ratio` (0 to 1, or such as `30%`), `max_size` and `min_fps` half of the multiply-adds are removed. With a
    target the predicted latency decides, without one the latency measured on this machine.

    Raises SpecError, DataError, or CompressError, also if the result is not faster, and leaves no partial files.
    The command: `edgekd prune`. The method, with its sources: docs/concepts/pruning.md.
    """
    path, folder = Path(model), path_or_none(out) or Path("runs") / f"{short_name(model)}-pruned"
    share, chosen = None if ratio is None else parse_share(ratio, "--ratio"), target_or_none(target)
    steps = recipe_of(recipe or "prune").with_settings(Prune, ratio=share, max_size=max_size, min_fps=min_fps)
    step = for_target(steps.only(Prune), chosen)
    refuse_recipe(steps, Budget(), path)
    with started(
        "prune",
        path,
        Path(data),
        folder,
        target=chosen,
        device=device,
        trust_checkpoint=trust_checkpoint,
        uses_training_images=step.needs_images or step.recovery is not None,
        fresh=fresh,
        progress=progress,
    ) as begun:
        context = begun.context
        if scan:
            sensitivities = sensitivity(context, begun.dataset, path, step, trust=trust_checkpoint).result
            write_file(folder / SENSITIVITY, readable_json(to_plain(sensitivities)))
        known = (begun.dataset, path, begun.before, begun.export, begun.latency)
        pruned = ChannelPruner(context, *known, trust=trust_checkpoint).run(step)
        both = lightened(begun, path, steps.name, pruned, folder / checkpoint_name(path))
        result = Pruned(
            **vars(both), widths=pruned.widths, importance=pruned.importance, stages=summaries(context.done)
        )
        write_result(folder, RESULT, result, {checkpoint_name(path): pruned.checkpoint})
        return result

"""`edgekd factorize`: a detector with layers replaced by products of thinner ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from edgekd.builds.recipe import refuse_recipe
from edgekd.builds.speedup import compared, start
from edgekd.builds.stage_store import stage_json
from edgekd.builds.stages import low_rank
from edgekd.builds.stages.base import StageContext
from edgekd.commands.arguments import path_or_none, recipe_of, target_or_none
from edgekd.commands.options import Data, Fresh, MaybeTarget, MeasuredOn, RecipeName, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import Lightened, write_result
from edgekd.compress.steps import LowRank
from edgekd.core.progress import SILENT, Progress
from edgekd.core.units import parse_share
from edgekd.hardware.budget import Budget

RESULT = "factorize.json"


def factorize(
    model: Annotated[str | Path, Argument("Trained Ultralytics .pt.")],
    data: Data,
    *,
    target: MaybeTarget = None,
    energy: Annotated[str | float | None, Option("Share of each layer's output to keep, such as 97%.")] = None,
    recipe: RecipeName = "factorize",
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-factorized.")] = None,
    device: MeasuredOn = "local",
    fresh: Fresh = False,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Lightened:
    """Replace layers of a detector by products of thinner ones, where that is faster. Train it afterwards.

    With a target the predicted latency decides, without one the latency measured on this machine.

    Raises SpecError, DataError, or CompressError, also where the result is not faster, and leaves nothing half-written.
    The command: `edgekd factorize`. The method, with its sources: docs/low-rank.md.
    """
    path, folder = Path(model), path_or_none(out) or Path("runs") / f"{Path(model).stem}-factorized"
    share = None if energy is None else parse_share(energy, "--energy")
    steps = recipe_of(recipe or "factorize").with_settings(LowRank, energy=share)
    step = steps.only(LowRank)
    refuse_recipe(steps, Budget(), path)
    context = StageContext.within(folder, fresh, progress)
    begun = start(
        context,
        path,
        Path(data),
        target=target_or_none(target),
        device=device,
        trust_checkpoint=trust_checkpoint,
        uses_training_images=True,
    )
    given = (begun.dataset, begun.before, begun.export, begun.latency)
    found = low_rank.factorize(context, step, path, *given, trust=trust_checkpoint)
    result = {
        "model": path.name,
        "recipe": steps.name,
        "checkpoint": str(folder / found.checkpoint.name),
        **compared(begun, found),
        "layers": {name: asdict(layer) for name, layer in found.layers.items()},
        "stages": [stage_json(stage) for stage in context.done],
    }
    write_result(folder, RESULT, result, {found.checkpoint.name: found.checkpoint})
    return Lightened(result)

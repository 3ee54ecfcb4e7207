"""`edgekd factorize`: a detector with layers replaced by low-rank products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgekd.builds.recipe import refuse_recipe
from edgekd.builds.speedup import Lightened, lightened, started
from edgekd.builds.stage_store import StageSummary, summaries
from edgekd.builds.stages import low_rank
from edgekd.builds.stages.low_rank import FactoredLayer
from edgekd.commands.arguments import path_or_none, recipe_of, short_name, target_or_none
from edgekd.commands.options import Data, Fresh, MaybeTarget, MeasuredOn, RecipeName, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import write_result
from edgekd.compress.steps import LowRank
from edgekd.core.progress import SILENT, Progress
from edgekd.core.units import parse_share
from edgekd.hardware.budget import Budget

RESULT = "factorize.json"


@dataclass(frozen=True)
class Factorized(Lightened):
    """A detector before and after some of its layers were replaced by low-rank products.

    Args:
        layers: The convolutions that were replaced, by name.
        stages: The stages, in the order in which they ran.
    """

    layers: Mapping[str, FactoredLayer]
    stages: tuple[StageSummary, ...]


def factorize(
    model: Annotated[str | Path, Argument("Trained Ultralytics .pt.")],
    data: Data,
    *,
    target: MaybeTarget = None,
    energy: Annotated[
        str | float | None, Option("Share of each layer's output to keep, such as 97%.", group="Budget")
    ] = None,
    recipe: RecipeName = "factorize",
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-factorized.", group="Output")] = None,
    device: MeasuredOn = "local",
    fresh: Fresh = False,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Factorized:
    """Replace layers of a detector by low-rank products where that is faster. Train it afterwards.

    With a target the predicted latency decides, without one the latency measured on this machine.

    Raises SpecError, DataError, or CompressError, also if the result is not faster, and leaves no partial files.
    The command: `edgekd factorize`. The method, with its sources: docs/concepts/low-rank.md.
    """
    path, folder = Path(model), path_or_none(out) or Path("runs") / f"{short_name(model)}-factorized"
    share, chosen = None if energy is None else parse_share(energy, "--energy"), target_or_none(target)
    steps = recipe_of(recipe or "factorize").with_settings(LowRank, energy=share)
    step = steps.only(LowRank)
    refuse_recipe(steps, Budget(), path)
    with started(
        "factorize",
        path,
        Path(data),
        folder,
        target=chosen,
        device=device,
        trust_checkpoint=trust_checkpoint,
        uses_training_images=True,
        fresh=fresh,
        progress=progress,
    ) as begun:
        given = (begun.dataset, begun.before, begun.export, begun.latency)
        found = low_rank.factorize(begun.context, step, path, *given, trust=trust_checkpoint)
        both = lightened(begun, path, steps.name, found, folder / found.checkpoint.name)
        result = Factorized(**vars(both), layers=found.layers, stages=summaries(begun.context.done))
        write_result(folder, RESULT, result, {found.checkpoint.name: found.checkpoint})
        return result

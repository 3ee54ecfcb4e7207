"""`edgekd factorize`: a detector with layers replaced by products of thinner ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.builds.recipe import LowRank
from edgekd.builds.stages import low_rank
from edgekd.commands.arguments import path_or_none, recipe_of, target_or_none
from edgekd.commands.options import Data, Fresh, MaybeTarget, MeasuredOn, RecipeName, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import Lightened
from edgekd.core.progress import SILENT, Progress
from edgekd.core.units import parse_share


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
    share = None if energy is None else parse_share(energy, "--energy")
    job = low_rank.FactorizeJob(
        model=Path(model),
        data=Path(data),
        recipe=recipe_of(recipe or "factorize").with_settings(LowRank, energy=share),
        out=path_or_none(out) or Path("runs") / f"{Path(model).stem}-factorized",
        target=target_or_none(target),
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
    )
    return Lightened(low_rank.run(job, progress))

"""`edgekd build`: from a detector to a bundle for a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from edgekd.builds import pipeline
from edgekd.builds.recipe import Recipe
from edgekd.builds.run import BuildRequest, BuildResult
from edgekd.builds.search.setup import SearchJob
from edgekd.commands import search as search_module
from edgekd.commands.arguments import interface_of, limits, names_of, path_or_none, recipe_of, signers_of, target_of
from edgekd.commands.options import (
    CalibrationSet,
    Data,
    Fresh,
    Head,
    InputName,
    Keep,
    Keys,
    Licence,
    MaxBatch,
    Model,
    Paths,
    PlanFile,
    Postprocess,
    RecipeName,
    SecretFile,
    TargetName,
    TimedOn,
    Trust,
)
from edgekd.commands.parameter import Option
from edgekd.compress.steps import Distill
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.core.units import parse_duration
from edgekd.deploy.fleet import load_fleet
from edgekd.detectors.family import detector_file
from edgekd.hardware.target import Target


def build(
    model: Model,
    data: Data,
    *,
    target: TargetName = "xavier",
    recipe: RecipeName = None,
    plan: PlanFile = None,
    student: Annotated[Paths, Option("What is trained in MODEL's place: a .pt, yolo11n.yaml.", parse=str)] = (),
    search: Annotated[bool, Option("Find the recipe that meets the budget.")] = False,
    time: Annotated[str | None, Option("Search at most so long, such as 8h.")] = None,
    trials: Annotated[int, Option("Candidates that a search tries at most.", minimum=1)] = 60,
    epochs: Annotated[int, Option("Of a full training in a search; 0: train nothing.", minimum=0)] = 30,
    workers: Annotated[int, Option("Processes that try candidates.", minimum=1)] = 1,
    cluster: Annotated[str | None, Option("Try them on a Ray cluster: HOST:PORT, auto or local.")] = None,
    gpus: Annotated[int | None, Option("Of a trial there. Default: one, if there are any.", minimum=0)] = None,
    fleet: Annotated[str | Path | None, Option("Boards on which a search times candidates: a .toml.")] = None,
    batch: Annotated[int, Option("Candidates of a round of a search.", flag="--round", minimum=1)] = 6,
    device: TimedOn = "local",
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-TARGET.")] = None,
    max_size: Annotated[str | int | None, Option("Largest bundle, such as 12MB.")] = None,
    keep: Keep = None,
    min_fps: Annotated[float | None, Option("Least frames per second, one after the other.", minimum=0)] = None,
    max_energy: Annotated[str | None, Option("Most energy a frame, such as 150mJ: as predicted.")] = None,
    calibration: CalibrationSet = None,
    fresh: Fresh = False,
    head: Head = None,
    trust_checkpoint: Trust = False,
    sign: Keys = (),
    secret_file: SecretFile = None,
    version_counter: Annotated[int, Option("No device goes back to a lower one.", minimum=0)] = 0,
    licence: Licence = None,
    input_format: InputName = "float32",
    postprocess: Postprocess = "host",
    max_batch: MaxBatch = 1,
    bundle_report: Annotated[bool, Option("Put the report into the bundle: it shows scored images.")] = False,
    progress: Progress = SILENT,
) -> BuildResult:
    """Compress, score, compile, time and pack a detector for a target; leave bundle, report and ledger in `out`.

    The split `train` is calibrated and trained on, `val` is scored. The default recipe is the target's own, with a plan
    `mixed`. Sizes may be numbers of bytes, shares from 0 to 1. A missed limit does not raise: `require_met()` of the
    result does. Raises SpecError before anything is computed, DataError, CompressError, DeviceError, or SignatureError
    for a key in `sign`, and leaves nothing half-written. The command: `edgekd build`. The method: docs/recipes.md.
    """
    model, chosen, students, searches = Path(model), target_of(target), names_of(student), search or time is not None
    _refuse_without_search(searches, cluster=cluster, gpus=gpus, fleet=fleet)
    job = BuildRequest(
        model=detector_file(model),
        data=Path(data),
        target=chosen,
        recipe=_recipe(recipe, plan, students, chosen, searches=searches),
        out=path_or_none(out) or Path("runs") / f"{model.stem}-{chosen.name}",
        budget=limits(max_size, keep, min_fps, chosen.budget, max_energy),
        device=device,
        head=head,
        calibration=None if calibration is None else str(calibration),
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
        counter=version_counter,
        licence=licence,
        interface=interface_of(input_format, postprocess, chosen, max_batch),
        bundle_report=bundle_report,
    )
    signers = signers_of(sign, secret_file)  # a wrong passphrase should not cost a build first
    settings = {"students": students, "workers": workers, "batch": batch, "cluster": cluster, "gpus": gpus}
    job = _searched(job, time, fleet, progress, trials=trials, epochs=epochs, **settings) if searches else job
    return pipeline.build(job, progress, signers)


def _searched(
    job: BuildRequest, time: str | None, fleet: str | Path | None, progress: Progress, **settings: Any
) -> BuildRequest:
    """Return the request with the recipe that a search finds. settings: of the search. Raises SpecError."""
    seconds = None if time is None else parse_duration(time, "--time")
    boards = load_fleet(Path(fleet)).boards if fleet else ()
    return search_module.run(SearchJob(job, seconds, boards=boards, **settings), progress)


def _recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    plan: str | Path | None,
    students: Sequence[str],
    target: Target,
    *,
    searches: bool,
) -> Recipe:
    """Return the recipe to follow; for a search, which finds it, the target's own. Raises SpecError."""
    if searches and (recipe or plan):
        flag = "--recipe" if recipe else "--plan"
        raise SpecError(f"--search with {flag}", fix=f"leave out {flag}: the search finds the recipe")
    if students and not searches and len(students) > 1:
        raise SpecError("--student: a recipe trains one", found=", ".join(students), fix="pass one, or --search")
    steps = recipe_of(recipe or ("mixed" if plan else target.recipe))
    if students and not searches:
        steps = steps.with_settings(Distill, student=students[0])
    return steps.with_plan(Path(plan)) if plan else steps


def _refuse_without_search(searches: bool, /, **options: Any) -> None:
    """Refuse options of a search where there is none. Raises SpecError."""
    names = [f"--{name}" for name, value in options.items() if value is not None]
    if names and not searches:
        raise SpecError(f"{names[0]} without --search", fix=f"pass --search, or leave out {names[0]}")

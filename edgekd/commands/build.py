"""`edgekd build`: from a detector to a bundle for a target."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.builds import pipeline
from edgekd.builds.recipe import Recipe
from edgekd.builds.run import BuildRequest, BuildResult
from edgekd.builds.run_progress import recorded
from edgekd.builds.search.setup import SearchJob
from edgekd.commands import search as search_module
from edgekd.commands.arguments import interface_of, limits, names_of, path_or_none, recipe_of, signers_of, target_of
from edgekd.commands.build_options import (
    Boards,
    BundleReport,
    Cluster,
    Epochs,
    FirstCounter,
    Gpus,
    MaxEnergy,
    MaxSize,
    MinFps,
    ResultFolder,
    Round,
    Searches,
    SearchTime,
    Students,
    Trials,
    Workers,
)
from edgekd.commands.options import (
    CalibrationSet,
    Fresh,
    Head,
    InputName,
    Keep,
    Keys,
    Licence,
    MaxBatch,
    MaybeData,
    Model,
    PlanFile,
    Postprocess,
    RecipeName,
    SecretFile,
    TargetName,
    TimedOn,
    Trust,
)
from edgekd.compress.steps import Distill
from edgekd.core.errors import SpecError
from edgekd.core.input_files import is_file, shown_path
from edgekd.core.progress import SILENT, Progress
from edgekd.core.units import parse_duration
from edgekd.deploy.fleet import load_fleet
from edgekd.deploy.signing import Signer
from edgekd.detectors.checkpoint_scan import training_data
from edgekd.detectors.family import detector_file
from edgekd.hardware.target import Target

DATA_SUFFIXES = (".yaml", ".yml")


def build(
    model: Model,
    data: MaybeData = None,
    *,
    target: TargetName = "xavier",
    recipe: RecipeName = None,
    plan: PlanFile = None,
    input_format: InputName = "float32",
    postprocess: Postprocess = "host",
    max_batch: MaxBatch = 1,
    student: Students = (),
    search: Searches = False,
    time: SearchTime = None,
    trials: Trials = 60,
    epochs: Epochs = 30,
    workers: Workers = 1,
    cluster: Cluster = None,
    gpus: Gpus = None,
    fleet: Boards = None,
    batch: Round = 6,
    device: TimedOn = "local",
    out: ResultFolder = None,
    max_size: MaxSize = None,
    keep: Keep = None,
    min_fps: MinFps = None,
    max_energy: MaxEnergy = None,
    calibration: CalibrationSet = None,
    fresh: Fresh = False,
    head: Head = None,
    trust_checkpoint: Trust = False,
    sign: Keys = (),
    secret_file: SecretFile = None,
    version_counter: FirstCounter = 0,
    licence: Licence = None,
    bundle_report: BundleReport = False,
    progress: Progress = SILENT,
) -> BuildResult:
    """Compress, score, compile, time and pack a detector for a target; write bundle, report and ledger to `out`.

    The split `train` is for calibration and training, `val` is scored. `data` is by default the YAML file named in the
    checkpoint's training arguments; `recipe` is by default the target's own, or `mixed` with a plan. Sizes may be
    numbers of bytes. A missed limit raises nothing here: `require_met()` of the result does. Raises SpecError before
    anything is computed, DataError, CompressError, DeviceError, or SignatureError, and leaves no partial files.
    The command: `edgekd build`. The method: docs/guides/recipes.md.
    """
    model, chosen, students, searches = Path(model), target_of(target), names_of(student), search or time is not None
    settings = {"workers": workers, "cluster": cluster, "gpus": gpus, "trials": trials, "epochs": epochs}
    _refuse_without_search(searches, fleet=fleet, batch=batch, **settings)
    job = BuildRequest(
        model=detector_file(model),
        data=_data_set(data, model, chosen, progress),
        target=chosen,
        recipe=_recipe(recipe, plan, students, chosen, calibration, searches=searches),
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
    signers = signers_of(sign, secret_file)  # a wrong passphrase raises before the build
    with recorded(job.out, "build", job.model.name, chosen.name, progress) as progress:
        return _built(job, searches, time, fleet, signers, progress, students=students, batch=batch, **settings)


def _data_set(data: str | Path | None, model: Path, target: Target, progress: Progress) -> Path:
    """Return the path of the data set of a build, and report it with the target. Raises SpecError."""
    path = trained_on(model) if data is None else Path(data)
    guessed = ", by the training arguments in the checkpoint; --data overrides" if data is None else ""
    progress.note(f"target: {target.name}, {target.title}\ndata: {shown_path(path)}{guessed}")
    return path


def trained_on(model: Path) -> Path:
    """Return the YAML file of the data set that a checkpoint was trained on. Raises SpecError if it is not here."""
    named = training_data(model) if model.suffix == ".pt" else None
    if named and Path(named).suffix in DATA_SUFFIXES and is_file(Path(named)) and os.access(named, os.R_OK):
        return Path(named)
    found = f"{shown_path(named)} in the training arguments of {shown_path(model.name)}" if named else "none"
    raise SpecError("--data: which data set", expected="a YAML file that is here", found=found, fix="pass --data DATA")


def _built(
    job: BuildRequest,
    searches: bool,
    time: str | None,
    fleet: str | Path | None,
    signers: Sequence[Signer],
    progress: Progress,
    **settings: Any,
) -> BuildResult:
    """Build, after a search for the recipe if requested. settings: of the search. Raises as `build` does."""
    if searches:
        seconds = None if time is None else parse_duration(time, "--time")
        boards = load_fleet(Path(fleet)).boards if fleet else ()
        job = search_module.run(SearchJob(job, seconds, boards=boards, **settings), progress)
    return pipeline.build(job, progress, signers)


def _recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    plan: str | Path | None,
    students: Sequence[str],
    target: Target,
    calibration: object,
    *,
    searches: bool,
) -> Recipe:
    """Return the recipe to run; for a search the target's own, which the search replaces. Raises SpecError."""
    if searches and (recipe or plan):
        flag = "--recipe" if recipe else "--plan"
        raise SpecError(f"--search with {flag}", fix=f"leave out {flag}: the search finds the recipe")
    if students and not searches and len(students) > 1:
        raise SpecError("--student: a recipe trains one", found=", ".join(students), fix="pass one, or --search")
    steps = recipe_of(recipe or ("mixed" if plan else target.recipe))
    if students and not searches:
        steps = steps.with_settings(Distill, student=students[0])
    if calibration is not None and not searches and steps.quantize is None:
        fix = "leave it out, or pass --recipe ptq"
        raise SpecError(f"--calibration {calibration}: recipe {steps.name} quantizes nothing", fix=fix)
    return steps.with_plan(Path(plan)) if plan else steps


def _refuse_without_search(searches: bool, /, **options: Any) -> None:
    """Raise SpecError for options of a search, other than their defaults, without a search."""
    flags = {"batch": "--round"}
    names = [flags.get(name, f"--{name}") for name, value in options.items() if value != getattr(SearchJob, name, None)]
    if names and not searches:
        raise SpecError(f"{names[0]} without --search", fix=f"pass --search, or leave out {names[0]}")

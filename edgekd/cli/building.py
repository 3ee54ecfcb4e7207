"""Commands that make something for a camera: a bundle, a quantized network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.options import (
    CalibrationSet,
    Data,
    Head,
    Json,
    Keep,
    Keys,
    Licence,
    Model,
    PlanFile,
    RecipeName,
    Resume,
    SecretFile,
    Students,
    TargetName,
    Trust,
    limits,
    new_progress,
)
from edgekd.printing import outcome_json, print_budget, print_json, print_outcome, print_quantized

if TYPE_CHECKING:
    from edgekd.pipeline import Job
    from edgekd.search.beginning import SearchJob
    from edgekd.spec import Recipe
    from edgekd.target import Target


def build(
    model: Model,
    data: Data,
    target: TargetName = "xavier",
    recipe: RecipeName = None,
    plan: PlanFile = None,
    student: Students = None,
    search: Annotated[bool, typer.Option("--search", help="Find the recipe that meets the budget.")] = False,
    time: Annotated[str | None, typer.Option(help="Search at most so long, such as 8h.")] = None,
    trials: Annotated[int, typer.Option(help="Candidates that a search tries at most.", min=1)] = 60,
    epochs: Annotated[int, typer.Option(help="Of a full training in a search; 0: train nothing.", min=0)] = 30,
    workers: Annotated[int, typer.Option(help="Processes that try candidates.", min=1)] = 1,
    cluster: Annotated[str | None, typer.Option(help="Try them on a Ray cluster: HOST:PORT, auto or local.")] = None,
    gpus: Annotated[int | None, typer.Option(help="Of a trial there. Default: one, if there are any.", min=0)] = None,
    fleet: Annotated[Path | None, typer.Option(help="Boards on which a search times candidates: a .toml.")] = None,
    batch: Annotated[int, typer.Option("--round", help="Candidates of a round of a search.", min=1)] = 6,
    device: Annotated[str, typer.Option(help="Where to time: local, or local:ENGINE.")] = "local",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-TARGET.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest bundle, such as 12MB.")] = None,
    keep: Keep = None,
    min_fps: Annotated[float | None, typer.Option(help="Least frames per second.", min=0)] = None,
    max_energy: Annotated[str | None, typer.Option(help="Most energy a frame, such as 150mJ: as predicted.")] = None,
    calibration: CalibrationSet = None,
    resume: Resume = True,
    head: Head = None,
    trust_checkpoint: Trust = False,
    sign: Keys = None,
    secret_file: SecretFile = None,
    version_counter: Annotated[int, typer.Option(help="No device goes back to a lower one.", min=0)] = 0,
    licence: Licence = None,
    as_json: Json = False,
) -> None:
    """Compress, score, compile, time and pack MODEL for TARGET."""
    from edgekd import pipeline, searching
    from edgekd.signing import load_signers
    from edgekd.target import load_target

    chosen, progress = load_target(target), new_progress()
    searches = search or time is not None
    steps = _recipe(recipe, plan, student, chosen, searches)
    folder = out or Path("runs") / f"{model.stem}-{chosen.name}"
    budget = limits(max_size, keep, min_fps, chosen.budget, max_energy)
    job = pipeline.Job(model, data, chosen, steps, folder, budget, device, head, calibration, trust_checkpoint)
    job = replace(job, fresh=not resume, counter=version_counter, licence=licence)
    signers = load_signers(sign or (), secret_file)  # a wrong passphrase should not cost a build first
    if searches:
        much = {"trials": trials, "epochs": epochs, "workers": workers, "batch": batch}
        asked = _search(job, time, fleet, students=tuple(student or ()), cluster=cluster, gpus=gpus, **much)
        job = searching.run(asked, progress)
    else:
        _refuse_without_search(cluster=cluster, gpus=gpus, fleet=fleet)
    outcome = pipeline.build(job, progress, signers)
    (print_json(outcome_json(outcome)) if as_json else print_outcome(outcome))
    pipeline.require_met(outcome)


def _recipe(
    name: str | None, plan: Path | None, students: Sequence[str] | None, target: Target, searches: bool
) -> Recipe:
    """What the flags say is to be done; where it is to be found, the target's usual. Raises SpecError."""
    from edgekd.errors import SpecError
    from edgekd.spec import Distill, load_recipe

    if searches and (name or plan):
        given = "--recipe" if name else "--plan"
        raise SpecError(f"--search with {given}", fix=f"leave out {given}: the search finds the recipe")
    if students and not searches and len(students) > 1:
        raise SpecError("--student: a recipe trains one", found=", ".join(students), fix="pass one, or --search")
    steps = load_recipe(name or ("mixed" if plan else target.recipe))
    if students and not searches:
        steps = steps.with_settings(Distill, student=students[0])
    return steps.with_plan(plan) if plan else steps


def _search(job: Job, time: str | None, fleet: Path | None, **asked: Any) -> SearchJob:
    """What is searched for."""
    from edgekd.fleet import load_fleet
    from edgekd.quantities import parse_duration
    from edgekd.search.beginning import SearchJob

    seconds = None if time is None else parse_duration(time, "--time")
    return SearchJob(job, seconds, boards=load_fleet(fleet).boards if fleet else (), **asked)


def _refuse_without_search(**given: Any) -> None:
    """Refuse flags of a search where there is none. Raises SpecError."""
    from edgekd.errors import SpecError

    if names := [f"--{name}" for name, value in given.items() if value is not None]:
        raise SpecError(f"{names[0]} without --search", fix=f"pass --search, or leave out {names[0]}")


def quantize(
    model: Model,
    data: Annotated[Path, typer.Option(help="Labelled data, or a folder of images or arrays.", show_default=False)],
    recipe: RecipeName = None,
    plan: PlanFile = None,
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-quantized.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest packed graph, such as 2MB.")] = None,
    keep: Annotated[str | None, typer.Option(help="Least share of the mAP50-95, or of the outputs, kept.")] = None,
    calibration: CalibrationSet = None,
    resume: Resume = True,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Quantize a detector or any other ONNX network, for no target: graph, packed graph, plan, and what it keeps."""
    from edgekd import gate, quantizing
    from edgekd.spec import Budget, load_recipe

    # Where there is something to plan for, every format is a choice; else INT8 costs nearly nothing.
    chosen = load_recipe(recipe or ("mixed" if max_size or keep or plan else "ptq"))
    job = quantizing.QuantizeJob(
        model=model,
        data=data,
        recipe=chosen.with_plan(plan) if plan else chosen,
        out=out or Path("runs") / f"{model.stem}-quantized",
        budget=limits(max_size, keep, None, Budget()),
        head=head,
        calibration=calibration,
        trust_checkpoint=trust_checkpoint,
        fresh=not resume,
    )
    outcome = quantizing.run(job, new_progress())
    if as_json:
        print_json(outcome.result)
    else:
        print_quantized(outcome.result)
        print_budget(outcome.budget)
        print(f"results: {job.out}")
    gate.require_met(outcome.budget, job.recipe, outcome.stages, outcome)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for scenes and results.")] = Path("runs/demo"),
    target: TargetName = "xavier",
    as_json: Json = False,
) -> None:
    """Run the main job on rendered street scenes and the small detector that ships with edgekd."""
    from edgekd import pipeline
    from edgekd.demo import CALIBRATION_SCENES, SCORED_SCENES, demo_model
    from edgekd.demo.scenes import write_dataset
    from edgekd.spec import load_recipe
    from edgekd.target import load_target

    progress = new_progress()
    chosen = load_target(target)
    with demo_model() as model:
        scenes = write_dataset(out / "scenes", CALIBRATION_SCENES, SCORED_SCENES, progress=progress)
        job = pipeline.Job(model, scenes, chosen, load_recipe(chosen.recipe), out)
        outcome = pipeline.build(job, progress)
    if as_json:
        print_json(outcome_json(outcome))
    else:
        print_outcome(outcome)

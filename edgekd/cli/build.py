"""Commands that make something for a camera: a bundle, a quantized network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.options import (
    Bundle,
    CalibrationSet,
    Data,
    Head,
    Json,
    Keep,
    Keys,
    Licence,
    Log,
    Model,
    PlanFile,
    RecipeName,
    Resume,
    SecretFile,
    Students,
    TargetName,
    Trust,
    new_progress,
)
from edgekd.cli.printing import print_adapted, print_budget, print_json, print_outcome, print_quantized
from edgekd.cli.tracking import tracked
from edgekd.commands.api import building as api


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
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Compress, score, compile, time and pack MODEL for TARGET."""
    what = {"target": target, "recipe": recipe, "plan": plan, "student": student or (), "calibration": calibration}
    searched = {"search": search, "time": time, "trials": trials, "epochs": epochs, "workers": workers, "batch": batch}
    there = {"cluster": cluster, "gpus": gpus, "fleet": fleet, "device": device}
    wanted = {"max_size": max_size, "keep": keep, "min_fps": min_fps, "max_energy": max_energy}
    how = {"out": out, "fresh": not resume, "head": head, "trust_checkpoint": trust_checkpoint}
    signed = {"sign": sign or (), "secret_file": secret_file, "version_counter": version_counter, "licence": licence}
    options: dict[str, Any] = {**what, **searched, **there, **wanted, **how, **signed}
    with tracked(log, new_progress(), f"build {model.stem} for {target}") as progress:
        outcome = api.build(model, data, progress=progress, **options)
    (print_json(outcome.document) if as_json else print_outcome(outcome))
    outcome.require_met()


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
    outcome = api.quantize(
        model,
        data,
        recipe=recipe,
        plan=plan,
        out=out,
        max_size=max_size,
        keep=keep,
        calibration=calibration,
        fresh=not resume,
        head=head,
        trust_checkpoint=trust_checkpoint,
        progress=new_progress(),
    )
    if as_json:
        print_json(outcome.document)
    else:
        print_quantized(outcome.document)
        print_budget(outcome.budget)
        print(f"results: {outcome.job.out}")
    outcome.require_met()


def adapt(
    bundle: Bundle,
    frames: Annotated[Path, typer.Option(help="Folder of frames of the new conditions.", show_default=False)],
    data: Data,
    name: Annotated[str, typer.Option(help="What the variant is called, such as night.")] = "variant",
    out: Annotated[Path | None, typer.Option(help="The bundle to write. Default: runs/BUNDLE-NAME.edgekd.")] = None,
    score: Annotated[bool, typer.Option("--score/--no-score", help="Score both on the split val of DATA.")] = True,
    twins: Annotated[Path | None, typer.Option(help="Also write DATA as the frames would show it, here.")] = None,
    version_counter: Annotated[int | None, typer.Option(help="No device goes back to a lower one.", min=0)] = None,
    sign: Keys = None,
    secret_file: SecretFile = None,
    as_json: Json = False,
) -> None:
    """Make a variant of BUNDLE for other conditions, of frames that nobody labelled, and the delta that leads to it."""
    found = api.adapt(
        bundle,
        frames,
        data,
        name=name,
        out=out,
        score=score,
        twins=twins,
        version_counter=version_counter,
        sign=sign or (),
        secret_file=secret_file,
        progress=new_progress(),
    )
    (print_json if as_json else print_adapted)(found.document)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for scenes and results.")] = Path("runs/demo"),
    target: TargetName = "xavier",
    as_json: Json = False,
) -> None:
    """Run the main job on rendered street scenes and the small detector that ships with edgekd."""
    from edgekd.demo import CALIBRATION_SCENES, SCORED_SCENES, demo_model
    from edgekd.demo.scenes import write_dataset
    from edgekd.hardware.target import load_target

    chosen, progress = load_target(target), new_progress()
    with demo_model() as model:
        scenes = write_dataset(out / "scenes", CALIBRATION_SCENES, SCORED_SCENES, progress=progress)
        outcome = api.build(model, scenes, target=chosen, out=out, progress=progress)
    if as_json:
        print_json(outcome.document)
    else:
        print_outcome(outcome)

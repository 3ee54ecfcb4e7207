"""Commands that make a lighter detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Data, Json, MaybeTarget, MeasuredOn, RecipeName, Resume, Trust, new_progress
from edgekd.printing import print_distilled, print_factorized, print_json, print_pruned


def distill(
    teacher: Annotated[Path, typer.Argument(help="Trained .pt: YOLO, RT-DETR, torchvision.", show_default=False)],
    student: Annotated[str, typer.Argument(help="A .pt, yolo11n.yaml, or torchvision/NAME.", show_default=False)],
    data: Data,
    recipe: RecipeName = "distill",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/STUDENT-from-TEACHER.")] = None,
    width: Annotated[float | None, typer.Option(help="Factor of the model's channels, such as 0.14.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    time: Annotated[float | None, typer.Option(help="Minutes to train for, in place of a number of epochs.")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="Folder of frames that TEACHER labels.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, 0, or 0,1 for two GPUs. Default: a GPU if any.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on where it stopped, or begin anew.")] = True,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Train STUDENT on labels and beside TEACHER, and score both."""
    from edgekd import distilling
    from edgekd.spec import Distill, load_recipe

    given = {"student": student, "width": width, "epochs": epochs, "minutes": time}
    given["unlabelled"] = str(unlabelled) if unlabelled else None
    job = distilling.DistillJob(
        teacher=teacher,
        data=data,
        recipe=load_recipe(recipe or "distill").with_settings(Distill, **given),
        out=out or Path("runs") / "-from-".join(Path(name).stem.removesuffix(".tv") for name in (student, teacher)),
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=not resume,
    )
    (print_json if as_json else print_distilled)(distilling.run(job, new_progress()))


def prune(
    model: Annotated[Path, typer.Argument(help="Trained .pt: YOLO, torchvision.", show_default=False)],
    data: Data,
    target: MaybeTarget = None,
    ratio: Annotated[str | None, typer.Option(help="Share of the multiply-adds to remove, such as 30%.")] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Remove until the checkpoint has this size, such as 3MB.")
    ] = None,
    min_fps: Annotated[float | None, typer.Option(help="Remove until it makes as many frames a second.")] = None,
    recipe: RecipeName = "prune",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-pruned.")] = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="Also write how sensitive each layer is: sensitivity.json.")
    ] = False,
    device: MeasuredOn = "local",
    resume: Resume = True,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Remove the channels MODEL can best do without, and make sure that it is faster. Train it afterwards."""
    from edgekd import pruning
    from edgekd.quantities import parse_share
    from edgekd.spec import Prune, load_recipe
    from edgekd.target import load_target

    asked = {"ratio": parse_share(ratio, "--ratio") if ratio else None, "max_size": max_size, "min_fps": min_fps}
    job = pruning.PruneJob(
        model=model,
        data=data,
        recipe=load_recipe(recipe or "prune").with_settings(Prune, **asked),
        out=out or Path("runs") / f"{model.name.partition('.')[0]}-pruned",
        target=load_target(target) if target else None,
        scan=scan,
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=not resume,
    )
    (print_json if as_json else print_pruned)(pruning.run(job, new_progress()))


def factorize(
    model: Annotated[Path, typer.Argument(help="Trained Ultralytics .pt.", show_default=False)],
    data: Data,
    target: MaybeTarget = None,
    energy: Annotated[str | None, typer.Option(help="Share of each layer's output to keep, such as 97%.")] = None,
    recipe: RecipeName = "factorize",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-factorized.")] = None,
    device: MeasuredOn = "local",
    resume: Resume = True,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Replace layers of MODEL by products of thinner ones, where that is faster. Train it afterwards."""
    from edgekd import factorizing
    from edgekd.quantities import parse_share
    from edgekd.spec import LowRank, load_recipe
    from edgekd.target import load_target

    asked = {"energy": parse_share(energy, "--energy") if energy else None}
    steps = load_recipe(recipe or "factorize").with_settings(LowRank, **asked)
    where, folder = load_target(target) if target else None, out or Path("runs") / f"{model.stem}-factorized"
    job = factorizing.FactorizeJob(model, data, steps, folder, where, device, trust_checkpoint, not resume)
    (print_json if as_json else print_factorized)(factorizing.run(job, new_progress()))

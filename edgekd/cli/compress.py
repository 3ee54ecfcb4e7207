"""Commands that make a lighter detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Data, Json, Log, MaybeTarget, MeasuredOn, RecipeName, Resume, Trust, new_progress
from edgekd.cli.printing import print_distilled, print_factorized, print_json, print_pruned
from edgekd.cli.tracking import tracked
from edgekd.commands.api import compress as api


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
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Train STUDENT on labels and beside TEACHER, and score both."""
    with tracked(log, new_progress(), f"distill {student} from {teacher.name}") as progress:
        found = api.distill(
            teacher,
            student,
            data,
            recipe=recipe or "distill",
            out=out,
            width=width,
            epochs=epochs,
            time=time,
            unlabelled=unlabelled,
            device=device,
            fresh=not resume,
            trust_checkpoint=trust_checkpoint,
            progress=progress,
        )
    (print_json if as_json else print_distilled)(found.document)


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
    found = api.prune(
        model,
        data,
        target=target,
        ratio=ratio,
        max_size=max_size,
        min_fps=min_fps,
        recipe=recipe or "prune",
        out=out,
        scan=scan,
        device=device,
        fresh=not resume,
        trust_checkpoint=trust_checkpoint,
        progress=new_progress(),
    )
    (print_json if as_json else print_pruned)(found.document)


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
    found = api.factorize(
        model,
        data,
        target=target,
        energy=energy,
        recipe=recipe or "factorize",
        out=out,
        device=device,
        fresh=not resume,
        trust_checkpoint=trust_checkpoint,
        progress=new_progress(),
    )
    (print_json if as_json else print_factorized)(found.document)

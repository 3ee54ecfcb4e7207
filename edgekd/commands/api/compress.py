"""What makes a lighter detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.commands.api.arguments import path_or_none, recipe_of, target_or_none
from edgekd.commands.api.results import Distilled, Lightened
from edgekd.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgekd.builds.recipe import Recipe
    from edgekd.hardware.target import Target


def distill(
    teacher: str | Path,
    student: str | Path,
    data: str | Path,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe = "distill",
    out: str | Path | None = None,
    width: float | None = None,
    epochs: int | None = None,
    time: float | None = None,
    unlabelled: str | Path | None = None,
    device: str | None = None,
    fresh: bool = False,
    trust_checkpoint: bool = False,
    progress: Progress = SILENT,
) -> Distilled:
    """Train a smaller detector on labels and beside a larger one; score both on the split `val`.

    teacher: a checkpoint of YOLO, RT-DETR or torchvision. student: a checkpoint to begin with, a description such as
    `yolo11n.yaml`, or `torchvision/NAME`. width: factor of its channels. epochs: passes over the split `train`; time:
    minutes to train for in their place. unlabelled: a folder of frames that the teacher labels. device: `cpu`, `0`, or
    `0,1`; a GPU by default, if there is any. out: by default `runs/STUDENT-from-TEACHER`.

    What was interrupted goes on after its last whole epoch, unless `fresh`. Raises SpecError, DataError or
    CompressError, and leaves nothing half-written. The command: `edgekd distill`. The method, with the source of each
    loss: docs/distillation.md.
    """
    from edgekd.builds.recipe import Distill
    from edgekd.commands import distill as distill_module

    given: dict[str, Any] = {"student": str(student), "width": width, "epochs": epochs, "minutes": time}
    given["unlabelled"] = None if unlabelled is None else str(unlabelled)
    names = (Path(name).stem.removesuffix(".tv") for name in (student, teacher))
    job = distill_module.DistillJob(
        teacher=Path(teacher),
        data=Path(data),
        recipe=recipe_of(recipe).with_settings(Distill, **given),
        out=path_or_none(out) or Path("runs") / "-from-".join(names),
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
    )
    return Distilled(distill_module.run(job, progress))


def prune(
    model: str | Path,
    data: str | Path,
    *,
    target: str | Path | Target | None = None,
    ratio: str | float | None = None,
    max_size: str | None = None,
    min_fps: float | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "prune",
    out: str | Path | None = None,
    scan: bool = False,
    device: str = "local",
    fresh: bool = False,
    trust_checkpoint: bool = False,
    progress: Progress = SILENT,
) -> Lightened:
    """Remove the channels that a detector can best do without, and make sure that it is faster. Train it afterwards.

    model: a checkpoint of YOLO or torchvision. How much goes: `ratio`, the share of its multiply-adds, 0 to 1 or such
    as `30%`; as much as it takes for `max_size` of the checkpoint, such as `3MB`, or for `min_fps` frames a second;
    without any, half of the multiply-adds. target: what it is for, by whose predicted latency is decided; without one
    this machine's is measured, on `device` (`local` or `local:ENGINE`). scan: also write `sensitivity.json`.
    out: by default `runs/MODEL-pruned`.

    Raises SpecError, DataError, or CompressError, also where the result is not faster, and leaves nothing half-written.
    The command: `edgekd prune`. The method, with its sources: docs/pruning.md.
    """
    from edgekd.builds.recipe import Prune
    from edgekd.commands import prune as prune_module
    from edgekd.core.units import parse_share

    share = None if ratio is None else parse_share(ratio, "--ratio")
    job = prune_module.PruneJob(
        model=Path(model),
        data=Path(data),
        recipe=recipe_of(recipe).with_settings(Prune, ratio=share, max_size=max_size, min_fps=min_fps),
        out=path_or_none(out) or Path("runs") / f"{Path(model).name.partition('.')[0]}-pruned",
        target=target_or_none(target),
        scan=scan,
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
    )
    return Lightened(prune_module.run(job, progress))


def factorize(
    model: str | Path,
    data: str | Path,
    *,
    target: str | Path | Target | None = None,
    energy: str | float | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "factorize",
    out: str | Path | None = None,
    device: str = "local",
    fresh: bool = False,
    trust_checkpoint: bool = False,
    progress: Progress = SILENT,
) -> Lightened:
    """Replace layers of a detector by products of thinner ones, where that is faster. Train it afterwards.

    model: an Ultralytics checkpoint. energy: the share of each layer's output that its product keeps, 0 to 1 or such as
    `97%`. target, device: as of `prune`. out: by default `runs/MODEL-factorized`.

    Raises SpecError, DataError, or CompressError, also where the result is not faster, and leaves nothing half-written.
    The command: `edgekd factorize`. The method, with its sources: docs/low-rank.md.
    """
    from edgekd.builds.recipe import LowRank
    from edgekd.builds.stages import low_rank
    from edgekd.core.units import parse_share

    share = None if energy is None else parse_share(energy, "--energy")
    job = low_rank.FactorizeJob(
        model=Path(model),
        data=Path(data),
        recipe=recipe_of(recipe).with_settings(LowRank, energy=share),
        out=path_or_none(out) or Path("runs") / f"{Path(model).stem}-factorized",
        target=target_or_none(target),
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
    )
    return Lightened(low_rank.run(job, progress))

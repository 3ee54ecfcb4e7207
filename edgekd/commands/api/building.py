"""What makes something for a camera: a bundle, a quantized network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.commands.api.arguments import limits, names_of, path_or_none, recipe_of, target_of
from edgekd.commands.api.results import Variant
from edgekd.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgekd.builds.recipe import Recipe
    from edgekd.builds.run import Job, Outcome
    from edgekd.builds.search.setup import SearchJob
    from edgekd.commands.quantize import QuantizeOutcome
    from edgekd.hardware.target import Target


def build(
    model: str | Path,
    data: str | Path,
    *,
    target: str | Path | Target = "xavier",
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    plan: str | Path | None = None,
    student: str | Path | Sequence[str | Path] = (),
    search: bool = False,
    time: str | None = None,
    trials: int = 60,
    epochs: int = 30,
    workers: int = 1,
    cluster: str | None = None,
    gpus: int | None = None,
    fleet: str | Path | None = None,
    batch: int = 6,
    device: str = "local",
    out: str | Path | None = None,
    max_size: str | int | None = None,
    keep: str | float | None = None,
    min_fps: float | None = None,
    max_energy: str | None = None,
    calibration: str | int | Path | None = None,
    fresh: bool = False,
    head: str | None = None,
    trust_checkpoint: bool = False,
    sign: str | Path | Sequence[str | Path] = (),
    secret_file: str | Path | None = None,
    version_counter: int = 0,
    licence: str | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Compress, score, compile, time and pack a detector for a target; leave bundle, report and ledger in `out`.

    model: an Ultralytics `.pt`, torchvision's `.tv.pt`, or an `.onnx` with one float32 input [1, 3, height, width] and
    one output of detections. data: labelled images in YOLO or COCO layout, split `train` to calibrate and train on,
    `val` to score on. target, recipe: a name that ships or a file; without a recipe the target's own, with a plan
    `mixed`. max_size: of the bundle, bytes or such as `12MB`. keep: the least share of the detector's own mAP50-95,
    0 to 1 or such as `98%`. min_fps: frames a second, one after the other. max_energy: of a frame, such as `150mJ`.
    search: find the recipe that meets them, for at most `time`, such as `8h`, in rounds of `batch` candidates, here or
    on a Ray `cluster`, timed on the boards of a `fleet`. calibration: how many images, or the `.toml` of a set. fresh:
    do every stage again. out: by default `runs/MODEL-TARGET`.

    A missed limit does not raise: `require_met()` of the result does. Raises SpecError before anything is computed,
    DataError, CompressError, DeviceError, or SignatureError for a key in `sign`, and leaves nothing half-written.
    The command: `edgekd build`. The method: docs/quantization.md, docs/recipes.md.
    """
    from edgekd.builds import pipeline
    from edgekd.builds.run import Job
    from edgekd.deploy.signing import load_signers

    model, chosen, students = Path(model), target_of(target), names_of(student)
    searches = search or time is not None
    steps = _recipe(recipe, plan, students, chosen, searches)
    folder = path_or_none(out) or Path("runs") / f"{model.stem}-{chosen.name}"
    budget = limits(max_size, keep, min_fps, chosen.budget, max_energy)
    images = None if calibration is None else str(calibration)
    job = Job(model, Path(data), chosen, steps, folder, budget, device, head, images, trust_checkpoint)
    job = replace(job, fresh=fresh, counter=version_counter, licence=licence)
    # A wrong passphrase should not cost a build first.
    signers = load_signers(names_of(sign), path_or_none(secret_file))
    if searches:
        from edgekd.commands import search as search_module

        much = {"trials": trials, "epochs": epochs, "workers": workers, "batch": batch}
        job = search_module.run(
            _search(job, time, fleet, students=students, cluster=cluster, gpus=gpus, **much), progress
        )
    else:
        _refuse_without_search(cluster=cluster, gpus=gpus, fleet=fleet)
    return pipeline.build(job, progress, signers)


def _recipe(
    given: str | Path | Mapping[str, Any] | Recipe | None,
    plan: str | Path | None,
    students: Sequence[str],
    target: Target,
    searches: bool,
) -> Recipe:
    """What is to be done as it was asked for; where that is to be found, the target's usual. Raises SpecError."""
    from edgekd.builds.recipe import Distill
    from edgekd.core.errors import SpecError

    if searches and (given or plan):
        flag = "--recipe" if given else "--plan"
        raise SpecError(f"--search with {flag}", fix=f"leave out {flag}: the search finds the recipe")
    if students and not searches and len(students) > 1:
        raise SpecError("--student: a recipe trains one", found=", ".join(students), fix="pass one, or --search")
    steps = recipe_of(given or ("mixed" if plan else target.recipe))
    if students and not searches:
        steps = steps.with_settings(Distill, student=students[0])
    return steps.with_plan(Path(plan)) if plan else steps


def _search(job: Job, time: str | None, fleet: str | Path | None, **request: Any) -> SearchJob:
    """What is searched for."""
    from edgekd.builds.search.setup import SearchJob
    from edgekd.commands.fleet import load_fleet
    from edgekd.core.units import parse_duration

    seconds = None if time is None else parse_duration(time, "--time")
    return SearchJob(job, seconds, boards=load_fleet(Path(fleet)).boards if fleet else (), **request)


def _refuse_without_search(**given: Any) -> None:
    """Refuse options of a search where there is none. Raises SpecError."""
    from edgekd.core.errors import SpecError

    if names := [f"--{name}" for name, value in given.items() if value is not None]:
        raise SpecError(f"{names[0]} without --search", fix=f"pass --search, or leave out {names[0]}")


def quantize(
    model: str | Path,
    data: str | Path,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    plan: str | Path | None = None,
    out: str | Path | None = None,
    max_size: str | int | None = None,
    keep: str | float | None = None,
    calibration: str | int | Path | None = None,
    fresh: bool = False,
    head: str | None = None,
    trust_checkpoint: bool = False,
    progress: Progress = SILENT,
) -> QuantizeOutcome:
    """Quantize a detector or any other ONNX network for no target; leave graph, packed graph and plan in `out`.

    model: as of `build`, or an `.onnx` with one float32 input of a fixed shape. data: labelled images, or a folder of
    images or of arrays (`.npy`, `.npz`) of the input's shape. max_size: of the packed graph, bytes or such as `2MB`.
    keep: the least share of the mAP50-95 kept, or of the outputs without labels (1 - the relative error of the worst),
    0 to 1 or such as `98%`. recipe: by default `ptq`, which is INT8; `mixed` where there is a limit or a plan.
    out: by default `runs/MODEL-quantized`.

    A missed limit does not raise: `require_met()` of the result does. Raises SpecError, DataError or CompressError, and
    leaves nothing half-written. The command: `edgekd quantize`. The method: docs/quantization.md.
    """
    from edgekd.builds.recipe import Budget
    from edgekd.commands import quantize as quantize_module

    model = Path(model)
    # Where there is something to plan for, every format is a choice; else INT8 costs nearly nothing.
    limited = max_size is not None or keep is not None or plan is not None
    chosen = recipe_of(recipe or ("mixed" if limited else "ptq"))
    job = quantize_module.QuantizeJob(
        model=model,
        data=Path(data),
        recipe=chosen.with_plan(Path(plan)) if plan else chosen,
        out=path_or_none(out) or Path("runs") / f"{model.stem}-quantized",
        budget=limits(max_size, keep, None, Budget()),
        head=head,
        calibration=None if calibration is None else str(calibration),
        trust_checkpoint=trust_checkpoint,
        fresh=fresh,
    )
    return quantize_module.run(job, progress)


def adapt(
    bundle: str | Path,
    frames: str | Path,
    data: str | Path,
    *,
    name: str = "variant",
    out: str | Path | None = None,
    score: bool = True,
    twins: str | Path | None = None,
    version_counter: int | None = None,
    sign: str | Path | Sequence[str | Path] = (),
    secret_file: str | Path | None = None,
    progress: Progress = SILENT,
) -> Variant:
    """Make a variant of a bundle for other conditions, of frames that nobody labelled, and the delta that leads to it.

    frames: a folder of pictures under the new conditions. data: labelled images that the model knows, on whose split
    `train` layers are fitted; `score` scores both bundles on `val`. twins: a folder to write `data` to as the new
    conditions would show it. out: by default `runs/BUNDLE-NAME.edgekd`; the delta lies beside it.

    Raises SpecError, DataError, BundleError, SignatureError, or CompressError where fitting does not help; then nothing
    is written. The command: `edgekd adapt`. The method, with its sources: docs/adapting.md.
    """
    from edgekd.commands import adapt as adapt_module
    from edgekd.deploy.signing import load_signers

    place = path_or_none(out) or Path("runs") / f"{Path(bundle).stem}-{name}.edgekd"
    seen, aside = path_or_none(twins), path_or_none(secret_file)
    job = adapt_module.AdaptJob(Path(bundle), Path(frames), Path(data), name, place, version_counter, score, seen)
    return Variant(adapt_module.run(job, progress, load_signers(names_of(sign), aside)))

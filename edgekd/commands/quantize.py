"""`edgekd quantize`: any network to a smaller file, without a target: quantize, judge, pack.

A detector with labelled data is judged by its mAP50-95 on the split `val`. Any other ONNX network, or a detector with a
plain folder of frames, is judged by how far its outputs move on frames that nothing was chosen by.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from edgekd.builds.budget import Line, verdict
from edgekd.builds.gate import costliest, require_met
from edgekd.builds.recipe import Budget, QuantAwareDistill, Quantize, Recipe
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages import train
from edgekd.builds.stages.base import (
    CALIBRATION,
    GRAPH,
    PACKED,
    PLAN,
    Frames,
    Stages,
    calibration_source,
    spec_of,
    stage_json,
)
from edgekd.builds.stages.plan import (
    HELD_OUT,
    Limits,
    Trial,
    detector_trial,
    quantized,
    refuse_recipe,
    room,
    searches,
    size_of,
)
from edgekd.commands.arguments import limits, path_or_none, recipe_of
from edgekd.commands.options import CalibrationSet, Fresh, Head, Model, PlanFile, RecipeName, Trust
from edgekd.commands.parameter import Option
from edgekd.compress.weight_formats import FORMS
from edgekd.core.atomic_files import copy_file, write_file
from edgekd.core.canonical import json_sha256
from edgekd.core.errors import DataError, SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.detectors import load
from edgekd.detectors.generic_onnx import Input, OutputError, frame_files, output_errors, prepare, read_frame
from edgekd.detectors.onnx import describe
from edgekd.graph.view import load_graph
from edgekd.hardware.target import EXPORT_OPSET

CALIBRATED = 128
"""Frames that a network is calibrated on, at most, unless a number is given."""
RESULT = "quantize.json"


@dataclass(frozen=True)
class QuantizeJob:
    """What to quantize, on what, and how good it must be. `budget.max_bytes` is of the packed graph."""

    model: Path
    data: Path
    recipe: Recipe
    out: Path
    budget: Budget = field(default_factory=Budget)
    head: str | None = None
    calibration: str | None = None
    trust_checkpoint: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Judged:
    """A quantized network: its graphs, and what was found of them.

    before, after: scores, null for a network without; kept: the share that `--keep` is about; outputs: error of each.
    """

    float_graph: Stage
    graph: Stage
    encoded: Stage
    metric: str
    frames: int
    kept: float | None
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    outputs: Sequence[Mapping[str, Any]] = ()
    calibration: Path | None = None


@dataclass(frozen=True)
class QuantizeOutcome:
    """What was left in `job.out`. document: as `edgekd quantize --json` has it: docs/json.md."""

    job: QuantizeJob
    document: Mapping[str, Any]
    stages: tuple[Stage, ...]
    budget: tuple[Line, ...]

    @property
    def graph(self) -> Path:
        """The quantized ONNX file."""
        return self.job.out / GRAPH

    @property
    def packed(self) -> Path:
        """The same graph, packed."""
        return self.job.out / PACKED

    @property
    def graph_bytes(self) -> tuple[int, int]:
        """Of the float ONNX file, and of the packed graph."""
        return self.document["before"]["bytes"], self.document["after"]["bytes"]

    @property
    def kept(self) -> float | None:
        """The share of the mAP50-95 that is left; without labels 1 - the largest relative error of an output."""
        kept: float | None = self.document["kept"]
        return kept

    @property
    def met(self) -> bool | None:
        """Whether every limit is kept; None where one could not be judged."""
        return verdict(list(self.budget))

    def require_met(self) -> None:
        """Raise BudgetError, naming each number, its limit, the layers and the next lever, where a limit is missed."""
        require_met(self.budget, self.job.recipe, self.stages, self)


def run(job: QuantizeJob, progress: Progress = SILENT) -> QuantizeOutcome:
    """Quantize, judge and pack; leave graph, packed graph, plan, calibration set and `quantize.json` in `job.out`.

    Raises SpecError, DataError or CompressError and leaves nothing half-written. A missed budget does not raise.
    """
    _refuse_steps(job.recipe)
    refuse_recipe(job.recipe, job.budget, job.model)
    stages = Stages.within(job.out, job.fresh, progress)
    judged = _network(job, stages) if _is_network(job) else _detector(job, stages)
    lines = _lines(job.budget, judged)
    result = _result(job, judged, stages, lines)
    files = {GRAPH: judged.graph.path / GRAPH, PACKED: judged.encoded.path / PACKED}
    if PLAN in judged.graph.files:
        files[PLAN] = judged.graph.path / PLAN
    if judged.calibration:
        files[CALIBRATION] = judged.calibration
    for name, source in files.items():
        copy_file(source, job.out / name)
    write_file(job.out / RESULT, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return QuantizeOutcome(job, result, tuple(stages.done), tuple(lines))


def _refuse_steps(recipe: Recipe) -> None:
    """Refuse a recipe with nothing to quantize, or with steps that are a build's. Raises SpecError."""
    if recipe.quantize is None:
        raise SpecError(f"recipe {recipe.name} quantizes nothing", fix="pass --recipe ptq or mixed")
    for found, does, fix in (
        (recipe.resize, "resizes the input", "leave that to `edgekd build`"),
        (recipe.distill, "trains a student", "`edgekd distill` it, and quantize that"),
        (recipe.prune, "removes channels", "`edgekd prune` it, and quantize that"),
        (recipe.factorize, "replaces convolutions", "`edgekd factorize` it, and quantize that"),
    ):
        if found is not None:
            raise SpecError(f"recipe {recipe.name} {does}", fix=fix)


def _is_network(job: QuantizeJob) -> bool:
    """Whether outputs are compared, rather than detections scored: no known head, or frames without labels."""
    if not job.model.is_file() or job.model.suffix != ".onnx":
        return False  # a checkpoint, or a mistake that loading explains
    if frame_files(job.data):
        return True
    model = load_graph(job.model)
    try:
        classes = load_dataset(job.data).classes
    except DataError:
        classes = ()  # which is said later, if the network is a detector
    try:
        describe(model, job.model, job.head, classes)
    except SpecError as error:
        if job.head is not None:
            raise
        raise SpecError(
            f"{job.model}: no detector that edgekd knows, and {job.data} holds no frames for another network",
            expected="a folder with images, .npy or .npz files in it, or --head with labelled data",
            found=error.what,
        ) from error
    return False


def _detector(job: QuantizeJob, stages: Stages) -> Judged:
    """As a build does it, but for no target: scored on `val`, calibrated and chosen on `train`."""
    dataset = load_dataset(job.data)
    scored = dataset.split("val")
    calibration_source(job.calibration, dataset)  # a mistake in it should not cost an export first
    detector = load(job.model, job.head, dataset.classes, job.trust_checkpoint)
    before = stages.export(detector, job.head, dataset.classes, EXPORT_OPSET)
    require_classes(spec_of(before), dataset)
    data = stages.fingerprint(scored)
    score_before = stages.score(before, scored, data, "fp32")
    after = before
    for step in job.recipe.steps:
        if isinstance(step, Quantize):
            source = calibration_source(job.calibration, dataset, searches(step, job.budget))
            calibrated = stages.calibrate(source, dataset, scored, data, spec_of(before))
            trial = partial(detector_trial, dataset, before, calibrated, scored, stages)
            after = quantized(stages, step, after, calibrated.frames, _limits(job, step, after), trial)
        elif isinstance(step, QuantAwareDistill):
            stages.refuse_shared(dataset.split("train"), scored)
            after = train.quant_aware_distill(stages, step, detector, after, dataset, job.trust_checkpoint)
    score_after = stages.score(after, scored, data, "int8")
    first, last = ({name: s.results[name] for name in ("map50_95", "map50")} for s in (score_before, score_after))
    return Judged(
        float_graph=before,
        graph=after,
        encoded=stages.encode(after, "int8"),
        metric="map50_95",
        frames=score_after.results["images"],
        kept=last["map50_95"] / first["map50_95"] if first["map50_95"] else None,
        before=first,
        after=last,
        calibration=calibrated.stage.path / CALIBRATION,
    )


def _network(job: QuantizeJob, stages: Stages) -> Judged:
    """Without labels: frames to calibrate on, others to choose a plan by if one is searched, others to compare on."""
    step = job.recipe.quantize
    assert step is not None, "refused before"
    if any(isinstance(each, QuantAwareDistill) for each in job.recipe.steps):
        raise SpecError(
            f"recipe {job.recipe.name} trains on labels", fix="pass --recipe ptq or mixed, or labelled data"
        )
    before, wanted = _prepared(job.model, stages)
    groups = _shares(job, 3 if searches(step, job.budget) else 2)
    frames, compared = (_frames(files, wanted, stages) for files in (groups[0], groups[-1]))

    def trial() -> Trial:
        chosen_by = _frames(groups[1], wanted, stages)

        def kept(graph: Path) -> float:
            return _kept(output_errors(before.path / GRAPH, graph, chosen_by.read()))

        return Trial(kept, chosen_by.sha256, f"{len(groups[1])} frames that were not calibrated on")

    after = quantized(stages, step, before, frames, _limits(job, step, before), trial)

    def work(folder: Path) -> Mapping[str, Any]:
        errors = output_errors(before.path / GRAPH, after.path / GRAPH, compared.read())
        return {"outputs": [{"name": name, **asdict(error)} for name, error in errors.items()], "kept": _kept(errors)}

    inputs = {"before": before.sha256, "after": after.sha256, "frames": compared.sha256}
    found = stages.run("compare", inputs, work)
    nothing = {"map50_95": None, "map50": None}
    return Judged(
        float_graph=before,
        graph=after,
        encoded=stages.encode(after, "int8"),
        metric="output",
        frames=len(groups[-1]),
        kept=found.results["kept"],
        before=nothing,
        after=nothing,
        outputs=found.results["outputs"],
    )


def _kept(errors: Mapping[str, OutputError]) -> float:
    """1 - the relative error of the output that moved most."""
    return 1 - max(error.relative_error for error in errors.values())


def _prepared(model: Path, stages: Stages) -> tuple[Stage, Input]:
    def work(folder: Path) -> Mapping[str, Any]:
        wanted = prepare(model, folder / GRAPH)
        size = (folder / GRAPH).stat().st_size
        return {"detector": None, "opset": None, "input": [wanted.name, wanted.shape], "bytes": size}

    stage = stages.run("export", {"model": stages.sha256(model), "family": "network"}, work)
    name, shape = stage.results["input"]
    return stage, Input(name, tuple(shape))


def _shares(job: QuantizeJob, parts: int) -> list[list[Path]]:
    """Files to calibrate on, to choose by where `parts` is 3, and to compare on: no file in two of them."""
    files = frame_files(job.data)
    given = job.calibration
    if given is not None and not (given.isdigit() and int(given) > 0):
        raise SpecError(f"--calibration {given}", expected="a number of frames, for a network without labels")
    count = int(given) if given else min(CALIBRATED, len(files) // 2)
    left = len(files) - count
    if count < 1 or left < parts - 1:
        raise DataError(
            f"{job.data}: too few frames",
            expected=f"{max(count, 1)} to calibrate on and {parts - 1} or more others",
            found=str(len(files)),
        )
    order = [files[at] for at in np.random.default_rng(0).permutation(len(files))]
    each = min(left // (parts - 1), HELD_OUT)
    return [order[:count], *(order[count + at * each :][:each] for at in range(parts - 1))]


def _frames(files: Sequence[Path], wanted: Input, stages: Stages) -> Frames:
    def read() -> Iterator[np.ndarray]:
        return (read_frame(path, wanted) for path in files)

    return Frames(json_sha256([[stages.sha256(path) for path in files], asdict(wanted)]), read)


def _limits(job: QuantizeJob, step: Quantize, graph: Stage) -> Limits:
    own = size_of(step, graph)
    most = job.budget.max_bytes if own is None else own
    return Limits(room(job.recipe, most), job.budget.min_retention)


def _lines(budget: Budget, judged: Judged) -> list[Line]:
    lines, size = [], judged.encoded.results["bytes"]
    if budget.max_bytes is not None:
        lines.append(Line("max_graph_bytes", budget.max_bytes, size, size <= budget.max_bytes, "measured"))
    if budget.min_retention is not None:
        name = "min_retention" if judged.metric == "map50_95" else "min_output"
        met = None if judged.kept is None else judged.kept >= budget.min_retention
        lines.append(Line(name, budget.min_retention, judged.kept, met, "measured"))
    return lines


def _result(job: QuantizeJob, judged: Judged, stages: Stages, lines: Sequence[Line]) -> dict[str, Any]:
    """The documented result: docs/json.md."""
    forms = Counter(judged.graph.results["forms"].values())
    layers = costliest(judged.graph.results.get("errors", {}))
    return {
        "model": job.model.name,
        "recipe": job.recipe.name,
        "graph": str(job.out / GRAPH),
        "packed": str(job.out / PACKED),
        "plan": str(job.out / PLAN) if PLAN in judged.graph.files else None,
        "calibration": str(job.out / CALIBRATION) if judged.calibration else None,
        "metric": judged.metric,
        "frames": judged.frames,
        "kept": judged.kept,
        "before": {"bytes": judged.float_graph.results["bytes"], **judged.before},
        "after": {
            "bytes": judged.encoded.results["bytes"],
            "onnx_bytes": judged.encoded.results["onnx_bytes"],
            **judged.after,
        },
        "outputs": list(judged.outputs),
        "forms": {form: forms[form] for form in FORMS},
        "costliest": [{"layer": name, "share": round(share, 4)} for name, share in layers],
        "stages": [stage_json(stage) for stage in stages.done],
        "met": verdict(list(lines)),
        "budget": [asdict(line) for line in lines],
    }


def quantize(
    model: Model,
    data: Annotated[str | Path, Option("Labelled data, or a folder of images or arrays.")],
    *,
    recipe: RecipeName = None,
    plan: PlanFile = None,
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-quantized.")] = None,
    max_size: Annotated[str | int | None, Option("Largest packed graph, such as 2MB.")] = None,
    keep: Annotated[str | float | None, Option("Least share of the mAP50-95, or of the outputs, kept.")] = None,
    calibration: CalibrationSet = None,
    fresh: Fresh = False,
    head: Head = None,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> QuantizeOutcome:
    """Quantize a detector or any other ONNX network for no target; leave graph, packed graph and plan in `out`.

    The model is one that `build` takes, or an `.onnx` with one float32 input of a fixed shape; arrays are `.npy` or
    `.npz` of that shape. A size may also be a number of bytes. The share of the outputs kept, without labels, is
    1 - the relative error of the worst, 0 to 1 or such as `98%`. The default recipe is `ptq`, which is INT8; with a
    limit or a plan it is `mixed`.

    A missed limit does not raise: `require_met()` of the result does. Raises SpecError, DataError or CompressError, and
    leaves nothing half-written. The command: `edgekd quantize`. The method: docs/quantization.md.
    """
    model = Path(model)
    # Where there is something to plan for, every format is a choice; else INT8 costs nearly nothing.
    limited = max_size is not None or keep is not None or plan is not None
    chosen = recipe_of(recipe or ("mixed" if limited else "ptq"))
    job = QuantizeJob(
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
    return run(job, progress)

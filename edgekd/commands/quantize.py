"""`edgekd quantize`: quantize and pack any network, without a target.

A detector with labelled data is judged by its mAP50-95 on the split `val`. Any other ONNX network, or a detector with a
plain folder of frames, is judged by the error of its outputs on separate frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from edgekd.builds.gate import costliest, require_met
from edgekd.builds.recipe import Recipe, refuse_recipe
from edgekd.builds.run_progress import recorded
from edgekd.builds.stage_store import AnyStage, StageSummary, summaries
from edgekd.builds.stages import compare, encode, export, recover, score
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.builds.stages.calibrate import CALIBRATION, Frames, calibration_source
from edgekd.builds.stages.compare import NamedError, kept_output
from edgekd.builds.stages.encode import PACKED
from edgekd.builds.stages.plan import (
    HELD_OUT,
    HeldOutScorer,
    PlanLimits,
    QuantizedStage,
    calibrated_for,
    quantized,
    room,
    searches,
    size_of,
)
from edgekd.builds.stages.quantize import PLAN, QuantizeResult
from edgekd.builds.stages.score import SCORED, ScoreResult
from edgekd.builds.step_kinds import kind_of
from edgekd.commands.arguments import limits, path_or_none, recipe_of
from edgekd.commands.options import CalibrationSet, Fresh, Head, Model, PlanFile, RecipeName, Trust
from edgekd.commands.parameter import Option
from edgekd.commands.results import write_result
from edgekd.compress.steps import QuantAwareDistill, Quantize
from edgekd.compress.weight_formats import WEIGHT_FORMATS
from edgekd.core.canonical import json_sha256
from edgekd.core.documents import INTERNAL, Result
from edgekd.core.errors import DataError, SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.detectors.family import detector_file
from edgekd.detectors.generic_onnx import Input, frame_files, output_errors, read_frame
from edgekd.detectors.onnx import understand
from edgekd.graph.view import load_graph
from edgekd.hardware.budget import Budget, LimitName, LimitResult, judge, verdict
from edgekd.hardware.target import EXPORT_OPSET

CALIBRATED = 128
"""Maximum number of calibration frames of a network, unless a number is given."""
RESULT = "quantize.json"


@dataclass(frozen=True)
class QuantizeJob:
    """A network to quantize; `budget.max_bytes` limits the packed graph."""

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
class FloatGraph:
    """The graph as given.

    Args:
        bytes: Size of the ONNX file.
        map50_95, map50: COCO's mAP; null without labels.
    """

    bytes: int
    map50_95: float | None
    map50: float | None


@dataclass(frozen=True)
class QuantizedGraph:
    """The quantized graph.

    Args:
        bytes: Size of the packed graph.
        onnx_bytes: Size of the ONNX file that it expands to.
        map50_95, map50: COCO's mAP; null without labels.
    """

    bytes: int
    onnx_bytes: int
    map50_95: float | None
    map50: float | None


@dataclass(frozen=True)
class LayerCost:
    """The estimated cost of quantizing a layer.

    Args:
        layer: Its name in the graph.
        share: Share of the cost of all layers.
    """

    layer: str
    share: float


@dataclass(frozen=True)
class Quantized(Result):
    """A quantized network.

    Args:
        model: File name of the model.
        recipe: Name of the recipe.
        graph: Path of the quantized ONNX file.
        packed: Path of the same graph, packed.
        plan: Path of the plan; null where none was needed.
        calibration: Path of the calibration set; null without labelled data.
        metric: Metric that `kept` is a share of.
        frames: Number of images or frames that it was judged on.
        kept: mAP50-95 after / before, or 1 - the largest relative error of an output; null where before is 0.
        outputs: Error of each output; empty for a detector with labels.
        forms: Number of layers by the format of their weights.
        costliest: The layers with the largest estimated cost of quantization; empty after training.
        stages: The stages, in the order in which they ran.
        met: Verdict on the budget: false if a limit is missed, else null if one is undecided, else true.
        budget: An entry for each limit.
    """

    model: str
    recipe: str
    graph: Path
    packed: Path
    plan: Path | None
    calibration: Path | None
    metric: Literal["map50_95", "output"]
    frames: int
    kept: float | None
    before: FloatGraph
    after: QuantizedGraph
    outputs: tuple[NamedError, ...]
    forms: Mapping[str, int]
    costliest: tuple[LayerCost, ...]
    stages: tuple[StageSummary, ...]
    met: bool | None
    budget: tuple[LimitResult, ...]
    steps: Recipe = field(metadata=INTERNAL)
    done: tuple[AnyStage, ...] = field(metadata=INTERNAL)

    @property
    def graph_bytes(self) -> tuple[int, int]:
        """Length in bytes of the float ONNX file, and of the packed graph."""
        return self.before.bytes, self.after.bytes

    def require_met(self) -> None:
        """Raise BudgetError if a limit is missed, with values and limits, costliest layers, and what to try next."""
        require_met(self.budget, self.steps, self.done, self)


def run(job: QuantizeJob, progress: Progress = SILENT) -> Quantized:
    """Quantize, judge and pack; write graph, packed graph, plan, calibration set and `quantize.json` to `job.out`.

    Raises SpecError, DataError or CompressError, and leaves no partial files. A missed budget raises nothing here.
    """
    _refuse_steps(job.recipe)
    refuse_recipe(job.recipe, job.budget, job.model)
    quantizes = _network if _is_network(job) else _detector
    with recorded(job.out, "quantize", job.model.name, None, progress) as progress:
        return quantizes(job, StageContext.within(job.out, job.fresh, progress))


def _refuse_steps(recipe: Recipe) -> None:
    """Raise SpecError for a recipe without quantization, or with steps that only a build runs."""
    if recipe.quantize is None:
        raise SpecError(f"recipe {recipe.name} quantizes nothing", fix="pass --recipe ptq or mixed")
    for step in recipe.steps:
        kind = kind_of(step)
        if kind.command != "quantize":
            alone = f"`edgekd {kind.command}` it, and quantize that" if kind.command else "leave that to `edgekd build`"
            raise SpecError(f"recipe {recipe.name} {kind.effect}", fix=alone)


def _is_network(job: QuantizeJob) -> bool:
    """Return whether outputs are compared rather than detections scored: no known head, or frames without labels."""
    if not job.model.is_file() or job.model.suffix != ".onnx":
        return False  # a checkpoint, or a wrong path, for which loading raises
    if frame_files(job.data):
        return True
    model = load_graph(job.model)
    try:
        classes = load_dataset(job.data).classes
    except DataError:
        classes = ()  # the error is raised later, if the network is a detector
    try:
        understand(model, job.model, job.head, classes)
    except SpecError as error:
        if job.head is not None:
            raise
        raise SpecError(
            f"{job.model}: no detector that edgekd knows, and {job.data} holds no frames for another network",
            expected="a folder with images, .npy or .npz files in it, or --head with labelled data",
            found=error.what,
        ) from error
    return False


def _detector(job: QuantizeJob, context: StageContext) -> Quantized:
    """Quantize a detector: score on `val`, calibrate and plan on `train`."""
    dataset = load_dataset(job.data)
    dataset.split(SCORED)  # these two raise before the export
    calibration_source(job.calibration, dataset)
    trust = job.trust_checkpoint
    detector, before = export.run_model(context, job.model, job.head, dataset, EXPORT_OPSET, trust=trust)
    scored = dataset.split(SCORED, before.result.spec.head.task)
    data = context.fingerprint(scored)
    first = score.run(context, before, scored, data, "fp32").result
    step, *trainings = job.recipe.steps
    assert isinstance(step, Quantize), "every other first step is refused before"
    calibrated, scorer = calibrated_for(
        context, step, before, dataset, scored, data, calibration=job.calibration, budget=job.budget
    )
    after = quantized(context, step, before, calibrated.frames, _limits(job, step, before), scorer)
    for training_step in trainings:
        assert isinstance(training_step, QuantAwareDistill), "every other step is refused before"
        context.refuse_shared(dataset.split("train"), scored)
        checkpoint = detector.path
        after = recover.quant_aware_distill(context, training_step, checkpoint, checkpoint, after, dataset, trust=trust)
    last = score.run(context, after, scored, data, "int8").result
    kept = last.map50_95 / first.map50_95 if first.map50_95 else None
    calibration = calibrated.stage.path / CALIBRATION
    return _finish(job, context, before, after, kept, last.images, scores=(first, last), calibration=calibration)


def _network(job: QuantizeJob, context: StageContext) -> Quantized:
    """Quantize without labels: calibrate, search a plan if necessary, and compare outputs on separate frames."""
    step = job.recipe.quantize
    assert step is not None, "refused before"
    if job.recipe.quant_aware:
        raise SpecError(f"recipe {job.recipe.name} trains a detector", fix="pass --recipe ptq or mixed, or a data set")
    before, network_input = export.run_network(context, job.model)
    groups = _shares(job, 3 if searches(step, job.budget) else 2)
    frames, compared = (_frames(files, network_input, context) for files in (groups[0], groups[-1]))

    def scorer() -> HeldOutScorer:
        held_out = _frames(groups[1], network_input, context)

        def kept(graph: Path) -> float:
            return kept_output(output_errors(before.path / GRAPH, graph, held_out.read()))

        return HeldOutScorer(kept, held_out.sha256, f"{len(groups[1])} frames that were not calibrated on")

    after = quantized(context, step, before, frames, _limits(job, step, before), scorer)
    found = compare.run(context, before, after, compared).result
    return _finish(job, context, before, after, found.kept, len(groups[-1]), outputs=found.outputs)


def _shares(job: QuantizeJob, parts: int) -> list[list[Path]]:
    """Return disjoint files to calibrate on, to choose a plan by if `parts` is 3, and to compare on."""
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
    order = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
    each = min(left // (parts - 1), HELD_OUT)
    return [order[:count], *(order[count + index * each :][:each] for index in range(parts - 1))]


def _frames(files: Sequence[Path], network_input: Input, context: StageContext) -> Frames:
    def read() -> Iterator[np.ndarray]:
        return (read_frame(path, network_input) for path in files)

    return Frames(json_sha256([[context.sha256(path) for path in files], asdict(network_input)]), read)


def _limits(job: QuantizeJob, step: Quantize, graph: GraphStage) -> PlanLimits:
    own = size_of(step, graph)
    most = job.budget.max_bytes if own is None else own
    return PlanLimits(room(job.recipe, most), job.budget.min_retention)


def _finish(
    job: QuantizeJob,
    context: StageContext,
    before: GraphStage,
    after: QuantizedStage,
    kept: float | None,
    frames: int,
    *,
    scores: tuple[ScoreResult, ScoreResult] | None = None,
    outputs: tuple[NamedError, ...] = (),
    calibration: Path | None = None,
) -> Quantized:
    """Pack the graph, judge the budget, and write the result folder."""
    encoded, result = encode.run(context, after, "int8"), after.result
    limit: LimitName = "min_retention" if scores else "min_output"
    lines = judge(job.budget, size=encoded.result.bytes, kept=kept, size_limit="max_graph_bytes", kept_limit=limit)
    forms = Counter(result.forms.values())
    layers = costliest(result.errors if isinstance(result, QuantizeResult) else {})
    maps = [(each.map50_95, each.map50) for each in scores] if scores else [(None, None), (None, None)]
    plan = after.path / PLAN if PLAN in after.files else None
    files = {GRAPH: after.path / GRAPH, PACKED: encoded.path / PACKED, PLAN: plan, CALIBRATION: calibration}
    quantized = Quantized(
        model=job.model.name,
        recipe=job.recipe.name,
        graph=job.out / GRAPH,
        packed=job.out / PACKED,
        plan=job.out / PLAN if plan else None,
        calibration=job.out / CALIBRATION if calibration else None,
        metric="map50_95" if scores else "output",
        frames=frames,
        kept=kept,
        before=FloatGraph(before.result.bytes, *maps[0]),
        after=QuantizedGraph(encoded.result.bytes, encoded.result.onnx_bytes, *maps[1]),
        outputs=outputs,
        forms={form: forms[form] for form in WEIGHT_FORMATS},
        costliest=tuple(LayerCost(name, round(share, 4)) for name, share in layers),
        stages=summaries(context.done),
        met=verdict(lines),
        budget=tuple(lines),
        steps=job.recipe,
        done=tuple(context.done),
    )
    write_result(job.out, RESULT, quantized, files)
    return quantized


def quantize(
    model: Model,
    data: Annotated[str | Path, Option("Labelled data, or a folder of images or arrays.", group="Input")],
    *,
    recipe: RecipeName = None,
    plan: PlanFile = None,
    out: Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-quantized.", group="Output")] = None,
    max_size: Annotated[str | int | None, Option("Largest packed graph, such as 2MB.", group="Budget")] = None,
    keep: Annotated[
        str | float | None, Option("Least share of the mAP50-95, or of the outputs, kept.", group="Budget")
    ] = None,
    calibration: CalibrationSet = None,
    fresh: Fresh = False,
    head: Head = None,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Quantized:
    """Quantize a detector or any other ONNX network without a target; write graph, packed graph and plan to `out`.

    The model is one that `build` takes, or an `.onnx` with one float32 input of a fixed shape; arrays are `.npy` or
    `.npz` of that shape. A size may also be a number of bytes. `keep` is 0 to 1, or such as `98%`; without labels it is
    a share of the outputs, 1 - the largest relative error of one. The default recipe is `ptq`, which is INT8, or
    `mixed` with a limit or a plan.

    A missed limit raises nothing here: `require_met()` of the result does. Raises SpecError, DataError or
    CompressError, and leaves no partial files. The command: `edgekd quantize`. The method:
    docs/concepts/quantization.md.
    """
    model = Path(model)
    # Several formats are useful only with a limit or a plan; without, INT8 loses nearly nothing.
    limited = max_size is not None or keep is not None or plan is not None
    chosen = recipe_of(recipe or ("mixed" if limited else "ptq"))
    job = QuantizeJob(
        model=detector_file(model),
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

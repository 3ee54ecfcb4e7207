"""The choice of a quantization plan: from a file, solved for a size, or searched for an accuracy.

The cost of every format of every layer is measured once, on calibration frames and without labels. A plan for a size is
computed from these costs in milliseconds. The accuracy that a plan keeps is measured on held-out frames, which are
neither calibrated on nor scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from edgekd.builds.recipe import Recipe
from edgekd.builds.stage_store import AnyStage, Stage, StageKind, StageResult
from edgekd.builds.stages import calibrate, encode, quantize
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.builds.stages.calibrate import Calibrated, Frames
from edgekd.builds.stages.quantize import COSTS, PLAN, QuantizedResult, settings_of
from edgekd.compress.quantization.mixed_precision import (
    Costs,
    choices,
    corrected,
    ladder,
    packed_sizes,
    plan_for,
)
from edgekd.compress.quantization.plan import Plan, load_plan, plan_toml, require_fits
from edgekd.compress.quantization.quantize import quantize as write_quantized
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WEIGHT_FORMATS, WeightFormat
from edgekd.core.detection.types import Task
from edgekd.core.errors import DataError
from edgekd.core.formats.packed_graph import pack
from edgekd.core.toml import parse_table
from edgekd.data.types import Dataset, Split
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.model_file import read_model
from edgekd.graph.view import Graph
from edgekd.hardware.budget import Budget
from edgekd.hardware.target import Target

QuantizedStage = Stage[QuantizedResult]
T = TypeVar("T")
RUNGS = 32
"""Number of plans, at even steps of size, from which a search tries five."""
SOLVES = 3
"""Maximum number of attempts to keep a size: how well codes compress is known only after quantization."""
FILL = 0.998
"""Share of its size limit that a plan uses, because sizes are predicted: to 0.1 % with YOLO11n."""
BYTES_PER_LAYER = 100
"""Estimated bytes of a layer in the plan file, or in the calibration cache."""
HELD_OUT = 128
"""Maximum number of images on which a search judges plans."""
TRAINED_FILL = 0.98
"""Share of a size limit for a graph that will be trained, which makes codes larger: by 1.6 % after 125 updates."""


@dataclass(frozen=True)
class TriedPlan:
    """A plan that was tried: bytes of its packed graph, and the share of the score that it keeps."""

    bytes: int
    kept: float


@dataclass(frozen=True)
class PlanSearchResult(StageResult):
    """The smallest plan that keeps a share of the score, in the file PLAN; frames: description of the frames."""

    tried: tuple[TriedPlan, ...]
    frames: str
    keep: float

    @property
    def summary(self) -> str:
        """The attempts."""
        tried = ", ".join(f"{each.bytes / 1e6:.2f} MB keeps {each.kept:.1%}" for each in self.tried)
        return f"the smallest that keeps {self.keep:.1%} of {self.frames}: {tried}"


SEARCH = StageKind(
    "search",
    4,
    PlanSearchResult,
    ("faster-coco-eval", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "scipy"),
)


@dataclass(frozen=True)
class PlanLimits:
    """The limits of a plan.

    Args:
        max_bytes: Size of the packed graph and of those files of its stage that are named in `beside`.
        min_retention: Share of the float graph's score to keep, 0 to 1.
        beside: Names of files that count towards `max_bytes`.
    """

    max_bytes: int | None = None
    min_retention: float | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOutScorer:
    """Score of a graph on held-out frames, by which a search compares plans.

    Args:
        score: Returns the score of an ONNX file; higher is better.
        sha256: SHA-256 of the frames.
        frames: Description of the frames.
    """

    score: Callable[[Path], float]
    sha256: str
    frames: str


def quantized(
    context: StageContext,
    step: Quantize,
    graph: GraphStage,
    frames: Frames,
    limits: PlanLimits,
    scorer: Callable[[], HeldOutScorer],
    tensorrt: str | None = None,
) -> QuantizedStage:
    """Quantize a float graph, by a plan if the step has several formats.

    scorer: called only if accuracy is limited and size is not. tensorrt: version to write a calibration cache for.
    Raises SpecError for a plan that is not for this graph.
    """

    def quantized_by(plan: Plan | None) -> QuantizedStage:
        return quantize.run(context, step, graph, frames, plan, tensorrt)

    if step.plan is not None:
        return quantized_by(_plan_in(Path(step.plan), graph))
    if not step.planned:
        return quantized_by(None)
    costs = costs_of(quantize.measure_costs(context, step, graph, frames), step.formats)
    if limits.max_bytes is not None:
        return _solved(context, costs, limits.max_bytes, limits.beside, quantized_by)
    if limits.min_retention is not None:
        return quantized_by(_searched(context, step, graph, frames, costs, limits.min_retention, scorer()))
    return quantized_by(plan_within(costs, None))


def offered(step: Quantize, target: Target) -> Quantize:
    """Return the step with NVFP4 added to formats with coded INT8 or fp4x, if the target multiplies in NVFP4."""
    few_bits = {"coded", "fp4x"} & {*step.formats}
    if not few_bits or "nvfp4" in step.formats or "nvfp4" not in target.precisions.gemm.value:
        return step
    return replace(step, formats=(*step.formats, "nvfp4"))


def size_of(step: Quantize, graph: GraphStage) -> int | None:
    """Return the limit of the step itself on the bytes of a packed graph; None without one."""
    if step.bits is None:
        return step.max_bytes
    by_bits = int(weights_in(graph.path / GRAPH) * step.bits / 8)
    return by_bits if step.max_bytes is None else min(by_bits, step.max_bytes)


def weights_in(graph: Path) -> int:
    """Return the number of weights in the convolutions and constant products of an ONNX file."""

    opened = Graph(read_model(graph))
    names = {node.input[1] for node in opened.nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")}
    values = [opened.constant(name) for name in sorted(names)]
    return int(sum(value.size for value in values if value is not None))


def room(recipe: Recipe, max_bytes: int | None) -> int | None:
    """Return the limit on the bytes of a plan, lower if the recipe trains the graph later; None without a limit."""
    return int(max_bytes * TRAINED_FILL) if max_bytes is not None and recipe.quant_aware else max_bytes


def searches(step: Quantize, budget: Budget) -> bool:
    """Return whether plans will be tried on held-out images: accuracy is limited, and size is not."""
    sizes = (step.bits, step.max_bytes, budget.max_bytes)
    return step.planned and step.plan is None and sizes == (None, None, None) and budget.min_retention is not None


def calibrated_for(
    context: StageContext,
    step: Quantize,
    graph: GraphStage,
    dataset: Dataset,
    scored: Split,
    data: str,
    calibration: str | None,
    budget: Budget,
) -> tuple[Calibrated, Callable[[], HeldOutScorer]]:
    """Choose the calibration set of a detector; return it, and a function that makes the scorer for a search of plans.

    Args:
        data: Fingerprint of the scored split.
        calibration: The user's choice, see `calibration_source`.
    """
    source = calibrate.calibration_source(calibration, dataset, searching=searches(step, budget))
    calibrated = calibrate.run(context, source, dataset, scored, data, graph.result.spec)
    return calibrated, partial(_detector_scorer, dataset, graph, calibrated, scored, context)


def _detector_scorer(
    dataset: Dataset, graph: GraphStage, calibrated: Calibrated, scored: Split, context: StageContext
) -> HeldOutScorer:
    """Return a scorer by mAP50-95 on held-out images of the training split."""
    spec = graph.result.spec
    split = held_out(dataset, calibrated, scored, context, spec.head.task)

    def score(path: Path) -> float:
        return evaluate(path, spec, split).score.map50_95

    return HeldOutScorer(score, context.fingerprint(split), f"{len(split)} training images that were not calibrated on")


def costs_of(planned: AnyStage, formats: tuple[WeightFormat, ...] = WEIGHT_FORMATS) -> Costs:
    """Return the measured costs of these formats and of `float16`.

    Only layers without another option, or with a large error in INT8, have the option `float16`.
    """
    costs = parse_table(Costs, json.loads((planned.path / COSTS).read_bytes()), "costs")
    layers = []
    for layer in costs.layers:
        allowed = tuple(option for option in layer.options if option.form in (*formats, "float16"))
        layers.append(replace(layer, options=allowed))
    return replace(costs, layers=tuple(layers))


def plan_within(costs: Costs, max_bytes: int | None) -> Plan:
    """Return the plan with the least error within a size, None for any; if none is that small, the smallest plan."""
    smallest = ladder(costs, 2)[-1]
    if max_bytes is not None and smallest.predicted_bytes > max_bytes:
        return smallest
    return plan_for(costs, max_bytes)


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """A graph that was quantized by a plan.

    Args:
        result: Returned by `fitted` for the last attempt.
        graph: Its ONNX file.
        packed_bytes: Length of its packed graph.
        other_bytes: Length of further files that count towards the limit.
    """

    result: T
    graph: Path
    packed_bytes: int
    other_bytes: int = 0


def fitted(costs: Costs, max_bytes: int, other_bytes: int, attempt: Callable[[Plan], Attempt[T]]) -> T:
    """Quantize by the best plan that keeps a size, in at most SOLVES attempts; if none does, return the last result.

    The sizes of an attempt correct the costs for the next one, which also leaves a quarter of the excess unused.
    other_bytes: estimate of `Attempt.other_bytes`.
    """
    excess = 0
    for number in range(SOLVES):
        room = int((max_bytes - other_bytes - excess // 4) * FILL)
        plan = plan_within(costs, room)
        done = attempt(plan)
        excess = done.packed_bytes + done.other_bytes - max_bytes
        if excess <= 0 or plan.predicted_bytes > room or number == SOLVES - 1:
            break
        costs = corrected(costs, plan, packed_sizes(read_model(done.graph), plan.forms))
        other_bytes = done.other_bytes
    return done.result


def held_out(dataset: Dataset, calibrated: Calibrated, scored: Split, context: StageContext, task: Task) -> Split:
    """Draw at most HELD_OUT images of the training split of which no copy is calibrated on or scored.

    The choice is deterministic. task: to read labels for. Raises DataError if there are no such images.
    """
    samples = dataset.split("train", task).samples
    used = {file.sha256 for file in calibrated.images.files}
    used |= {context.sha256(sample.image) for sample in scored.samples}
    order = np.random.default_rng(0).permutation(len(samples))
    free = [samples[index] for index in order if context.sha256(samples[index].image) not in used]
    if not free:
        raise DataError(
            f"{dataset.source}: every training image is calibrated on: none is left to choose a size by",
            fix="pass fewer with --calibration, or pass --max-size",
        )
    return Split("train", tuple(free[:HELD_OUT]))


def _plan_in(path: Path, graph: GraphStage) -> Plan:
    plan = load_plan(path)
    require_fits(plan, choices(graph.path / GRAPH))
    return plan


def _solved(
    context: StageContext,
    costs: Costs,
    max_bytes: int,
    beside: tuple[str, ...],
    quantized_by: Callable[[Plan], QuantizedStage],
) -> QuantizedStage:
    """Quantize by the best plan that keeps a size; if none does, by the last one tried."""

    def attempt(plan: Plan) -> Attempt[QuantizedStage]:
        graph = quantized_by(plan)
        others = sum(graph.files[name].length for name in beside if name in graph.files)
        return Attempt(graph, graph.path / GRAPH, encode.run(context, graph, "int8").result.bytes, others)

    return fitted(costs, max_bytes, BYTES_PER_LAYER * len(beside) * len(costs.layers), attempt)


def _searched(
    context: StageContext,
    step: Quantize,
    graph: GraphStage,
    frames: Frames,
    costs: Costs,
    keep: float,
    scorer: HeldOutScorer,
) -> Plan:
    """Find the smallest plan that keeps a share of the float graph's score on held-out frames, by bisection."""

    def work(folder: Path) -> PlanSearchResult:
        plans = ladder(costs, RUNGS)
        whole = scorer.score(graph.path / GRAPH)
        tried: list[TriedPlan] = []
        best, failing = 0, len(plans)
        while failing - best > 1:
            middle = (best + failing) // 2
            attempt = folder / "attempt.onnx"
            plan = plans[middle]
            write_quantized(graph.path / GRAPH, attempt, frames.read(), step, plan.forms, plan.steps)
            kept = scorer.score(attempt) / whole if whole else 0.0
            tried.append(TriedPlan(len(pack(attempt.read_bytes())), round(kept, 5)))
            context.note(f"search: {tried[-1].bytes / 1e6:.2f} MB keep {kept:.1%} on {scorer.frames}")
            attempt.unlink()
            best, failing = (middle, failing) if kept >= keep else (best, middle)
        (folder / PLAN).write_text(plan_toml(plans[best]), "utf-8")
        return PlanSearchResult(tuple(tried), scorer.frames, keep)

    inputs = {
        "graph": graph.sha256,
        "frames": frames.sha256,
        "costs": asdict(costs),
        "step": settings_of(step),
        "keep": keep,
        "trial": scorer.sha256,
    }
    return load_plan(context.run(SEARCH, inputs, work).path / PLAN)

"""Which plan a quantization runs: one from a file, one solved for a size, or one searched for an accuracy.

What every format of every layer costs is measured once, on calibration frames and without labels. From that a plan for
a size follows in milliseconds. How much accuracy a size keeps does not follow from it: that is tried, on frames that
were neither calibrated on nor will be scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.builds.recipe import Budget, Quantize, Recipe
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import COSTS, GRAPH, PLAN, Calibrated, Frames, Stages, settings_of, spec_of
from edgekd.compress.weight_formats import FORMS, Form
from edgekd.core.errors import DataError, SpecError
from edgekd.data.types import Dataset, Split
from edgekd.detectors.family import family_of, offering, student_family
from edgekd.hardware.target import Target

if TYPE_CHECKING:
    from edgekd.compress.quantization.mixed_precision import Costs
    from edgekd.compress.quantization.plan import Plan

RUNGS = 16
"""Plans at even steps of size, of which a search tries four."""
SOLVES = 3
"""How often a plan is made smaller because its graph came out larger than predicted."""
FIRST, LINE = 0.999, 100
"""Of its room the share that a first plan takes, and what a layer takes in the plan, or in the calibration cache."""
HELD_OUT = 128
"""Images that a search judges plans on, at most."""
TRAINED = 0.99
"""The share of its room that a graph may take if it will be trained: other codes may compress a little less well."""


@dataclass(frozen=True)
class Limits:
    """What a plan is for.

    max_bytes: of the packed graph, and of those files of its stage that are named in `beside`; min_retention: the share
    of the float graph's score to keep, 0 to 1.
    """

    max_bytes: int | None = None
    min_retention: float | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """What a search judges graphs on.

    score: of an ONNX file, more is better; sha256: of the frames; frames: what they are, in words.
    """

    score: Callable[[Path], float]
    sha256: str
    frames: str


def quantized(
    stages: Stages,
    step: Quantize,
    graph: Stage,
    frames: Frames,
    limits: Limits,
    trial: Callable[[], Trial],
    tensorrt: str | None = None,
) -> Stage:
    """Quantize a float graph as its step says, by a plan where it wants one: the stage of the graph that ships.

    `trial` is asked for only where no size is given. Raises SpecError for a plan that is not for this graph.
    """

    def make(plan: Plan | None) -> Stage:
        return stages.quantize(step, graph, frames, plan, tensorrt)

    if step.plan is not None:
        return make(_plan_in(Path(step.plan), graph))
    if not step.planned:
        return make(None)
    costs = costs_of(stages.plan(step, graph, frames), step.formats)
    if limits.max_bytes is not None:
        return _solved(stages, costs, limits.max_bytes, limits.beside, make)
    if limits.min_retention is not None:
        return make(_searched(stages, step, graph, frames, costs, limits.min_retention, trial()))
    return make(plan_within(costs, None))


def refuse_recipe(recipe: Recipe, budget: Budget, model: Path) -> None:
    """Refuse a recipe that lacks a limit to plan for, or the checkpoint that it trains. Raises SpecError."""
    step = recipe.quantize
    choosing = step is not None and step.plan is None and len(step.formats) > 1
    if choosing and step and (step.bits, step.max_bytes, budget.max_bytes, budget.min_retention) == (None,) * 4:
        raise SpecError(
            f"recipe {recipe.name} chooses formats under a limit",
            expected="a largest size, or a least share of the accuracy",
            found="neither",
            fix="pass --max-size or --keep, such as --keep 98%",
        )
    if recipe.distill is not None and recipe.distill.student is None and recipe.steps[0] == recipe.distill:
        raise SpecError(
            f"recipe {recipe.name} trains a student and names none",
            fix='add student = "yolo11n.yaml" or a .pt checkpoint to its step distill, or prune or factorize before it',
        )
    _refuse_family(recipe, model)


def _refuse_family(recipe: Recipe, model: Path) -> None:
    """Refuse steps that the families of the detector and its student lack. Raises SpecError."""
    family = family_of(model)
    if recipe.trains and not (family and family.trains):
        raise SpecError(
            f"recipe {recipe.name} trains the detector",
            expected="the .pt checkpoint that it was exported from, and labelled training data",
            found=model.name,
            fix="pass the checkpoint, or a recipe without training such as mixed",
        )
    resize_fix = "pass the checkpoint, or export the model at that size"
    for step, capability, what, expected, fix in (
        (recipe.resize, "resize", "resizes the input", "a .pt", resize_fix),
        (recipe.prune, "prune", "prunes", "a detector", None),
        (recipe.factorize, "factorize", "factorizes", "a detector", None),
        (recipe.distill, "teacher", "trains a student", "a teacher", None),
    ):
        if step is not None and (family is None or getattr(family, capability) is None):
            by = f"{expected} by {offering(capability)}"
            raise SpecError(f"recipe {recipe.name} {what}", expected=by, found=model.name, fix=fix)
    shipped = (recipe.distill.student if recipe.distill else None) or model.name
    if recipe.quant_aware and student_family(shipped).quant_aware_distill is None:
        raise SpecError(
            f"recipe {recipe.name} trains a quantized detector",
            expected=f"one by {offering('quant_aware_distill')}",
            found=shipped,
            fix="pass a recipe that quantizes after training, such as mixed",
        )


def offered(step: Quantize, target: Target) -> Quantize:
    """The step with NVFP4 among its formats where it stores in four bits anyway, and the target multiplies in NVFP4."""
    if "fp4x" not in step.formats or "nvfp4" in step.formats or "nvfp4" not in target.precisions.gemm.value:
        return step
    return replace(step, formats=(*step.formats, "nvfp4"))


def size_of(step: Quantize, graph: Stage) -> int | None:
    """Bytes that the step itself allows for the packed graph of a float graph; None where it does not say."""
    if step.bits is None:
        return step.max_bytes
    by_bits = int(weights_in(graph.path / GRAPH) * step.bits / 8)
    return by_bits if step.max_bytes is None else min(by_bits, step.max_bytes)


def weights_in(graph: Path) -> int:
    """How many weights the convolutions and constant products of an ONNX file have."""
    import onnx

    from edgekd.graph.view import Graph

    found = Graph(onnx.load(graph))
    names = {node.input[1] for node in found.nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")}
    values = [found.constant(name) for name in sorted(names)]
    return int(sum(value.size for value in values if value is not None))


def room(recipe: Recipe, max_bytes: int | None) -> int | None:
    """Bytes that a plan may take of those that its graph may have."""
    return int(max_bytes * TRAINED) if max_bytes is not None and recipe.quant_aware else max_bytes


def searches(step: Quantize, budget: Budget) -> bool:
    """Whether plans will be tried on held-out images: there is accuracy to keep, and no size to plan for."""
    sizes = (step.bits, step.max_bytes, budget.max_bytes)
    return step.planned and step.plan is None and sizes == (None, None, None) and budget.min_retention is not None


def detector_trial(dataset: Dataset, graph: Stage, calibrated: Calibrated, scored: Split, stages: Stages) -> Trial:
    """The mAP50-95 on held-out images of the training split."""
    split = held_out(dataset, calibrated, scored, stages)
    spec = spec_of(graph)

    def score(onnx: Path) -> float:
        from edgekd.evaluation.evaluate import evaluate

        return evaluate(onnx, spec, split).score.map50_95

    return Trial(score, stages.fingerprint(split), f"{len(split)} training images that were not calibrated on")


def costs_of(planned: Stage, formats: tuple[Form, ...] = FORMS) -> Costs:
    """What a stage `plan` measured, for these formats.

    `float16` is always among them: only layers that have nothing else, or that INT8 would ruin, have that option.
    """
    from edgekd.compress.quantization.mixed_precision import costs_from

    costs = costs_from(json.loads((planned.path / COSTS).read_bytes()))
    layers = []
    for layer in costs.layers:
        allowed = tuple(option for option in layer.options if option.form in (*formats, "float16"))
        layers.append(replace(layer, options=allowed))
    return replace(costs, layers=tuple(layers))


def plan_within(costs: Costs, max_bytes: int | None) -> Plan:
    """The plan with the least error within a size; where none is that small, the smallest of all."""
    from edgekd.compress.quantization.mixed_precision import ladder, plan_for

    smallest = ladder(costs, 2)[-1]
    if max_bytes is not None and smallest.predicted_bytes > max_bytes:
        return smallest
    return plan_for(costs, max_bytes)


def held_out(dataset: Dataset, calibrated: Calibrated, scored: Split, stages: Stages) -> Split:
    """Images of the training split, at most HELD_OUT, of which no copy is calibrated on or scored; the same each time.

    Raises DataError where there are none.
    """
    samples = dataset.split("train").samples
    seen = {file.sha256 for file in calibrated.images.files}
    seen |= {stages.sha256(sample.image) for sample in scored.samples}
    order = np.random.default_rng(0).permutation(len(samples))
    free = [samples[at] for at in order if stages.sha256(samples[at].image) not in seen]
    if not free:
        raise DataError(
            f"{dataset.source}: every training image is calibrated on: none is left to choose a size by",
            fix="pass fewer with --calibration, or pass --max-size",
        )
    return Split("train", tuple(free[:HELD_OUT]))


def _plan_in(path: Path, graph: Stage) -> Plan:
    from edgekd.compress.quantization.mixed_precision import choices
    from edgekd.compress.quantization.plan import load_plan, require_fits

    plan = load_plan(path)
    require_fits(plan, choices(graph.path / GRAPH))
    return plan


def _solved(
    stages: Stages, costs: Costs, max_bytes: int, beside: tuple[str, ...], make: Callable[[Plan], Stage]
) -> Stage:
    """The graph of the best plan that keeps a size, or nearly: how well codes compress is known only afterwards."""
    room = int(max_bytes * FIRST) - LINE * len(beside) * len(costs.layers)
    for _ in range(SOLVES):
        plan = plan_within(costs, room)
        made = make(plan)
        others = sum(made.files[name].length for name in beside if name in made.files)
        over = stages.encode(made, "int8").results["bytes"] + others - max_bytes
        if over <= 0 or plan.predicted_bytes > room:
            break
        room = plan.predicted_bytes - over
    return made


def _searched(
    stages: Stages, step: Quantize, graph: Stage, frames: Frames, costs: Costs, keep: float, trial: Trial
) -> Plan:
    """The smallest plan that keeps a share of the float graph's score on the frames of a trial, found by bisection."""
    from edgekd.compress.quantization.mixed_precision import ladder
    from edgekd.compress.quantization.plan import load_plan, plan_toml
    from edgekd.compress.quantization.quantize import quantize
    from edgekd.core.formats.packed_graph import pack

    def work(folder: Path) -> dict[str, Any]:
        plans = ladder(costs, RUNGS)
        whole = trial.score(graph.path / GRAPH)
        tried = []
        best, failing = 0, len(plans)
        while failing - best > 1:
            middle = (best + failing) // 2
            attempt = folder / "attempt.onnx"
            quantize(graph.path / GRAPH, attempt, frames.read(), step, plans[middle].forms)
            kept = trial.score(attempt) / whole if whole else 0.0
            tried.append({"bytes": len(pack(attempt.read_bytes())), "kept": round(kept, 5)})
            stages.note(f"search: {tried[-1]['bytes'] / 1e6:.2f} MB keep {kept:.1%} on {trial.frames}")
            attempt.unlink()
            best, failing = (middle, failing) if kept >= keep else (best, middle)
        (folder / PLAN).write_text(plan_toml(plans[best]), "utf-8")
        return {"tried": tried, "frames": trial.frames, "keep": keep}

    inputs = {
        "graph": graph.sha256,
        "frames": frames.sha256,
        "costs": costs.to_json(),
        "step": settings_of(step),
        "keep": keep,
        "trial": trial.sha256,
    }
    return load_plan(stages.run("search", inputs, work).path / PLAN)

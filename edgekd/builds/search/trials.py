"""Trials of candidates: a recipe on the training images that are not held out, judged on those that are.

`run_trial` is all that a worker does, here or elsewhere: it takes a description that can be pickled, and the folder of
a store. Every trial is a stage of that store, and so are the steps in it: none is ever done twice. On a cluster its two
halves are done where they can be: making and judging where there is a GPU, timing where the boards are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.builds.pipeline import compressed, data_of
from edgekd.builds.recipe import Recipe
from edgekd.builds.run import BuildRecord, BuildRequest
from edgekd.builds.search.cost_filter import Cost, predicted
from edgekd.builds.search.pareto import NOISE, Point
from edgekd.builds.search.space import Candidate
from edgekd.builds.stage_kinds import code_versions
from edgekd.builds.stages import benchmark
from edgekd.builds.stages.base import GRAPH, StageContext
from edgekd.builds.stages.quantize import CACHE, PLAN
from edgekd.builds.stages.trial import TRIAL, Refusal, TrialResult
from edgekd.compress.steps import Resize
from edgekd.core.canonical import json_sha256
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import CompressError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.images import ReadableImages
from edgekd.deploy.devices.local import local_device
from edgekd.evaluation.output_noise import ReferenceOutputs
from edgekd.hardware.budget import Budget
from edgekd.hardware.predict.graph import works_in

if TYPE_CHECKING:
    from edgekd.deploy.fleet import Board


@dataclass(frozen=True)
class Task:
    """A candidate to be tried.

    job: with its recipe, untrained on the rung NOISE, and the data that its rung is judged on; beside: bytes of a
    bundle beside its graph; identity: of everything else that the result depends on; boards: on one of which it is
    timed, none to leave it predicted.
    """

    job: BuildRequest
    candidate: Candidate
    rung: int
    beside: int
    identity: str
    boards: tuple[Board, ...] = ()


def run_trial(task: Task, folder: Path, progress: Progress = SILENT) -> Point:
    """Run a trial, or read its result from the store of the folder; timed on a board if there is one.

    Raises as `make_trial` does.
    """
    return time_trial(task, make_trial(task, folder, progress), folder, progress)


def time_trial(task: Task, point: Point, folder: Path, progress: Progress = SILENT) -> Point:
    """A trial with what a board measured in place of what was predicted, or with the error that boards answered.

    Raises DeviceError where none answers.
    """
    if not task.boards or point.error:
        return point
    from edgekd.builds.search.boards import time_on_board

    context = StageContext.within(folder, False, progress)
    stage = time_on_board(compressed(task.job, data_of(task.job), context), task.boards, context)
    seconds, timed = point.seconds + stage.seconds, stage.result
    if isinstance(timed, Refusal):
        return replace(point, seconds=seconds, error=timed.error)
    energy = point.cost.energy_mj if timed.energy_mj is None else timed.energy_mj
    cost = replace(point.cost, latency_ms=timed.latency_ms, energy_mj=energy)
    return replace(point, cost=cost, seconds=seconds)


def make_trial(task: Task, folder: Path, progress: Progress = SILENT) -> Point:
    """Make and judge a candidate, or read its result from the store of the folder; boards aside.

    A candidate that cannot be made, because pruning it gains nothing or its training diverges, is a point with that
    error. Raises what has nothing to do with the candidate: SpecError, DataError, DeviceError.
    """
    context = StageContext.within(folder, False, progress)

    def work(scratch: Path) -> TrialResult | Refusal:
        try:
            return _tried(task, context)
        except CompressError as error:
            return Refusal(str(error))

    inputs = {
        "search": task.identity,
        "rung": task.rung,
        "recipe": json_sha256(repr(task.job.recipe.steps)),
        "code": code_versions(),
    }
    stage = context.run(TRIAL, inputs, work)
    tried, seconds = stage.result, stage.seconds
    if isinstance(tried, Refusal):
        return Point(task.candidate, task.rung, 0.0, Cost(0, None, None), seconds, tried.error)
    cost = Cost(tried.bytes, tried.latency_ms, tried.energy_mj)
    return Point(task.candidate, task.rung, tried.kept or 0.0, cost, seconds, noise=tried.noise)


def _tried(task: Task, context: StageContext) -> TrialResult:
    record = compressed(task.job, data_of(task.job), context)
    noise = _noise(record, context) if task.rung == NOISE else None
    before, after = (score.result.map50_95 for score in record.scores)
    kept = None if task.rung == NOISE else after / before if before else 0.0
    beside = sum(record.after.files[name].length for name in (CACHE, PLAN) if name in record.after.files)
    latency, energy = time_of(record, context)
    size = record.encoded.result.bytes + beside + task.beside
    return TrialResult(kept, noise, size, latency, energy)


def _noise(record: BuildRecord, context: StageContext) -> float | None:
    """Return the noise of a record's outputs on its scored images, beside the given detector at the same input size."""
    resize = tuple(step for step in record.request.recipe.steps if isinstance(step, Resize))
    job = replace(record.request, recipe=Recipe(record.request.recipe.name, resize))
    reference = compressed(job, data_of(job), context).floating
    preprocess = reference.result.spec.preprocess
    images = ReadableImages(record.scored.samples, context.progress, label="noise")
    frames = [letterbox(image, preprocess)[0] for _, image in images]
    return ReferenceOutputs(reference.path / GRAPH, frames).noise(record.after.path / GRAPH)


def time_of(record: BuildRecord, context: StageContext) -> tuple[float | None, float | None]:
    """Return milliseconds and millijoules of a frame: measured where this machine is the target, else predicted."""
    target = record.request.target
    if target.kind != "cpu":
        return predicted(works_in(record.shipped.path / GRAPH), target, record.after.key != record.floating.key)
    device, split, data = local_device(record.request.device), record.scored, record.data_sha256
    timing = benchmark.run(context, record.before, record.timed, split, data, device, "measured")
    return float(timing.result.after.total_ms.mean), None


def with_recipe(job: BuildRequest, recipe: Recipe, data: Path) -> BuildRequest:
    """Return the request of a trial: no limit plans its sizes, which its recipe states."""
    return replace(job, recipe=recipe, data=data, budget=Budget(), fresh=False)

"""Trials of candidates: run a recipe without the held-out training images, and judge the result on those.

A worker calls `run_trial` with a task, which can be pickled, and the result folder of the search. Trials and the steps
in them are stages of the store there, so none runs twice. On a cluster the two halves of a trial run on different
machines: `make_trial` where GPUs are, `time_trial` where boards are.
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
    """A candidate to try.

    job: build with the candidate's recipe, without trainings on the rung NOISE, and the data set of the rung; beside:
    bytes of a bundle besides its graph; identity: SHA-256 of everything else that the result depends on; boards: one of
    them times the candidate; empty for predicted or local times.
    """

    job: BuildRequest
    candidate: Candidate
    rung: int
    beside: int
    identity: str
    boards: tuple[Board, ...] = ()


def run_trial(task: Task, folder: Path, progress: Progress = SILENT) -> Point:
    """Run a trial, or read its result from the store in the folder; it is timed on a board if there is one.

    Raises as `make_trial` does.
    """
    return time_trial(task, make_trial(task, folder, progress), folder, progress)


def time_trial(task: Task, point: Point, folder: Path, progress: Progress = SILENT) -> Point:
    """Return a trial with the latency and energy that a board measured, or with the error that boards reported.

    Raises DeviceError or BundleError if no board answers.
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
    """Make and judge a candidate without boards, or read its result from the store in the folder.

    If the candidate cannot be made, because pruning gains nothing or its training diverges, the point has that error.
    Raises errors of other causes: SpecError, DataError, DeviceError.
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
    """Return the output noise of a record on its scored images, relative to the given detector at its input size."""
    resize = tuple(step for step in record.request.recipe.steps if isinstance(step, Resize))
    job = replace(record.request, recipe=Recipe(record.request.recipe.name, resize))
    reference = compressed(job, data_of(job), context).floating
    preprocess = reference.result.spec.preprocess
    images = ReadableImages(record.scored.samples, context.progress, label="noise")
    frames = [letterbox(image, preprocess)[0] for _, image in images]
    return ReferenceOutputs(reference.path / GRAPH, frames).noise(record.after.path / GRAPH)


def time_of(record: BuildRecord, context: StageContext) -> tuple[float | None, float | None]:
    """Return milliseconds and millijoules of a frame: measured if the target is this machine's CPU, else predicted.

    None for what is unknown.
    """
    target = record.request.target
    if target.kind != "cpu":
        return predicted(works_in(record.shipped.path / GRAPH), target, record.after.key != record.floating.key)
    device, split, data = local_device(record.request.device), record.scored, record.data_sha256
    timing = benchmark.run(context, record.before, record.timed, split, data, device, "measured")
    return float(timing.result.after.total_ms.mean), None


def with_recipe(job: BuildRequest, recipe: Recipe, data: Path) -> BuildRequest:
    """Return the request of a trial, without a budget, because the recipe states the size."""
    return replace(job, recipe=recipe, data=data, budget=Budget(), fresh=False)

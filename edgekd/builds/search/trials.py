"""Trying a candidate: its recipe on the training images that are not held out, scored on some of those that are.

`run_trial` is all that a worker does, here or elsewhere: it takes a description that can be pickled, and the folder of
a store. Every trial is a stage of that store, and so are the steps in it: none is ever done twice. On a cluster its two
halves are done where they can be: making and scoring where there is a GPU, timing where the boards are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.builds.pipeline import data_of, graphs
from edgekd.builds.recipe import Budget, Recipe
from edgekd.builds.run import Job, Run
from edgekd.builds.search.cost_filter import Cost, predicted
from edgekd.builds.search.pareto import Point
from edgekd.builds.search.space import Candidate, candidate_json
from edgekd.builds.stages.base import CACHE, GRAPH, PLAN, VERSION, Stages, local_device
from edgekd.core.canonical import json_sha256
from edgekd.core.errors import CompressError
from edgekd.core.progress import SILENT, Progress
from edgekd.hardware.predict.graph import works_in

if TYPE_CHECKING:
    from edgekd.deploy.fleet import Board


@dataclass(frozen=True)
class Rung:
    """How thoroughly a candidate is tried. images: held-out ones that are scored; share: of its epochs."""

    images: int
    share: float


@dataclass(frozen=True)
class Task:
    """A candidate to be tried.

    job: with its recipe, and the data that its rung is scored on; beside: bytes of a bundle beside its graph; identity:
    of everything else that the result depends on; boards: on one of which it is timed, none to leave it predicted.
    """

    job: Job
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

    stages = Stages.within(folder, False, progress)
    found = time_on_board(graphs(task.job, data_of(task.job), stages), task.boards, stages)
    seconds = point.seconds + found.seconds
    if "error" in found.results:
        return replace(point, seconds=seconds, error=str(found.results["error"]))
    latency, energy = found.results["latency_ms"], found.results["energy_mj"]
    cost = replace(point.cost, latency_ms=latency, energy_mj=point.cost.energy_mj if energy is None else energy)
    return replace(point, cost=cost, seconds=seconds)


def make_trial(task: Task, folder: Path, progress: Progress = SILENT) -> Point:
    """Make and score a candidate, or read its result from the store of the folder; boards aside.

    A candidate that cannot be made, because pruning it gains nothing or its training diverges, is a point with that
    error. Raises what has nothing to do with the candidate: SpecError, DataError, DeviceError.
    """
    stages = Stages.within(folder, False, progress)
    summary = candidate_json(task.candidate)

    def work(scratch: Path) -> Mapping[str, Any]:
        try:
            return _tried(task, stages)
        except CompressError as error:
            return {"error": str(error)}

    recipe = json_sha256(repr(task.job.recipe.steps))
    inputs = {"search": task.identity, "candidate": summary, "rung": task.rung, "recipe": recipe, "code": VERSION}
    done = stages.run("trial", inputs, work)
    results, seconds = done.results, done.seconds
    if "error" in results:
        return Point(task.candidate, task.rung, 0.0, Cost(0, None, None), seconds, str(results["error"]))
    cost = Cost(results["bytes"], results["latency_ms"], results["energy_mj"])
    return Point(task.candidate, task.rung, float(results["kept"]), cost, seconds)


def _tried(task: Task, stages: Stages) -> dict[str, Any]:
    run = graphs(task.job, data_of(task.job), stages)
    before, after = (score.results["map50_95"] for score in run.scores)
    beside = sum(run.after.files[name].length for name in (CACHE, PLAN) if name in run.after.files)
    latency, energy = time_of(run, stages)
    return {
        "kept": after / before if before else 0.0,
        "bytes": run.encoded.results["bytes"] + beside + task.beside,
        "latency_ms": latency,
        "energy_mj": energy,
    }


def time_of(run: Run, stages: Stages) -> tuple[float | None, float | None]:
    """Milliseconds and millijoules of a frame: measured where this machine is the target, else as predicted."""
    target = run.job.target
    if target.kind != "cpu":
        return predicted(works_in(run.shipped.path / GRAPH), target, run.after.key != run.floating.key)
    device = local_device(run.job.device)
    timed = stages.benchmark(run.before, run.after, run.scored, run.data_sha256, device, "measured")
    return float(timed.results["after"]["total_ms"]["mean"]), None


def with_recipe(job: Job, recipe: Recipe, data: Path) -> Job:
    """A job of a trial: no limit plans its sizes, which its recipe states."""
    return replace(job, recipe=recipe, data=data, budget=Budget(), fresh=False)

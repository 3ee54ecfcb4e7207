"""`edgekd build --search`: search for a recipe that meets a budget, and report on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from edgekd.builds.recipe_toml import recipe_toml
from edgekd.builds.run import SEARCH, BuildRequest
from edgekd.builds.search.cluster import Cluster, cluster_trials, joined_cluster
from edgekd.builds.search.optuna_sampler import library
from edgekd.builds.search.setup import SearchContext, SearchJob
from edgekd.builds.search.space import recipe_of
from edgekd.builds.search.workers import RunTrials, local_trials
from edgekd.builds.stage_store import readable_json
from edgekd.core.atomic_files import remove_folder, write_file, writing
from edgekd.core.errors import SpecError
from edgekd.core.input_files import is_file
from edgekd.core.private_files import lock_file
from edgekd.core.progress import SILENT, Progress

RECIPE = "recipe.toml"


def run(request: SearchJob, progress: Progress = SILENT) -> BuildRequest:
    """Search, and return the build of the winner: its recipe, training images without held-out ones, search result.

    Trials of an earlier run are reused. Writes `search.json` and `recipe.toml` into the result folder. Raises
    SpecError, DataError or DeviceError.
    """
    _refuse(request)
    job = replace(request.job, fresh=False)
    with _exclusive(job.out / "search"), _joined_cluster(request) as cluster:
        if request.job.fresh:
            _delete_trials(job.out)
        context = SearchContext(
            replace(
                request,
                job=with_absolute_paths(job),
                students=tuple(map(absolute_if_file, request.students)),
                workers=cluster.slots if cluster else request.workers,
            ),
            progress,
        )
        with _trial_runner(cluster, context, progress) as run_trials:
            search = context.search(run_trials)
            search.run()
        winner = search.winner
        result = context.result(search)
        write_file(job.out / SEARCH, readable_json(result.document))
        if winner is None:
            raise SpecError(
                f"search: {search.reason}, and nothing came of any candidate",
                found="; ".join(sorted({point.error or "" for point in search.points.values()})[:3])
                or "none that fits",
                fix="allow more, or pass --recipe",
            )
        progress.note(f"search: {search.reason}; winner: {winner.candidate.text()}")
        recipe = recipe_of(winner.candidate, search.space)
        write_file(job.out / RECIPE, recipe_toml(recipe).encode("utf-8"))
        return replace(job, recipe=recipe, data=context.final, search=result)


def with_absolute_paths(job: BuildRequest) -> BuildRequest:
    """Return the job with absolute paths, for processes with another working directory."""
    head = str(Path(job.head).absolute()) if job.head and job.head.endswith(".toml") else job.head
    return replace(job, model=job.model.absolute(), data=job.data.absolute(), out=job.out.absolute(), head=head)


def absolute_if_file(student: str) -> str:
    """Return the absolute path of a student's file; the name of a model, which is no file, is unchanged."""
    return str(Path(student).absolute()) if is_file(Path(student)) else student


def _joined_cluster(request: SearchJob) -> AbstractContextManager[Cluster | None]:
    """Return a context manager of the requested cluster, or of None for this machine alone."""
    if request.cluster is None:
        return nullcontext()
    return joined_cluster(request.cluster, request.gpus, request.batch, len(request.boards))


def _trial_runner(
    cluster: Cluster | None, context: SearchContext, progress: Progress
) -> AbstractContextManager[RunTrials]:
    """Return a context manager of the function that runs trials."""
    request = context.request
    if cluster is None:
        return local_trials(context.task, request.job.out, request.workers, progress)
    return cluster_trials(cluster, context.task, request.job.out, progress)


def _refuse(request: SearchJob) -> None:
    """Raise SpecError for contradictory or missing options, before anything is computed."""
    job = request.job
    if not job.budget.any:
        fix = "pass --keep, --max-size, --min-fps or --max-energy"
        raise SpecError("--search: nothing to search for", expected="a budget", fix=fix)
    if job.calibration is not None and not job.calibration.isdigit():
        raise SpecError(f"--calibration {job.calibration}: a search chooses its own images", fix="pass their number")
    many = f"--workers {request.workers}" if request.workers > 1 else None
    many = f"--cluster {request.cluster}" if request.cluster else many
    if many and job.target.kind == "cpu":
        raise SpecError(
            f"{many} for target {job.target.name}",
            expected="one worker where trials are timed on this machine: others would be in its way",
        )
    if request.cluster and request.workers > 1:
        raise SpecError("--workers with --cluster", fix="leave out --workers: the cluster's room says how many")
    if request.gpus is not None and not request.cluster:
        raise SpecError("--gpus without --cluster", fix="pass --cluster, or leave out --gpus")
    if request.boards and job.target.kind == "cpu":
        raise SpecError(f"--fleet for target {job.target.name}", expected="a target of the boards' kind")
    library()


def _delete_trials(out: Path) -> None:
    """Remove the trials and the result of an earlier search. Raises SpecError."""
    if (out / "stages").is_dir():
        remove_folder(out / "stages")
    with writing(out):
        (out / SEARCH).unlink(missing_ok=True)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder of a search for the block. Raises SpecError if another search holds it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / ".lock")
    if lock is None:
        raise SpecError(f"{folder}: another search is running there", fix="wait for it, or pass another --out")
    try:
        yield
    finally:
        os.close(lock)

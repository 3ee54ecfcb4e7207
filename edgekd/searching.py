"""`edgekd build --search`: the recipe that meets a budget, found by trying; and what there is to say of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgekd.errors import SpecError
from edgekd.files import remove_folder, write_file, writing
from edgekd.pipeline import Job
from edgekd.progress import SILENT, Progress
from edgekd.recipe_text import recipe_toml
from edgekd.search.beginning import RESULT, Beginning, SearchJob
from edgekd.search.explain import document
from edgekd.search.space import recipe_of
from edgekd.search.study import library
from edgekd.search.workers import trying
from edgekd.store import readable_json

RECIPE = "recipe.toml"


def run(asked: SearchJob, progress: Progress = SILENT) -> Job:
    """The job that builds the winner: its recipe, the training images that are not held out, the search's result.

    What was tried before is not tried again. `search.json` and `recipe.toml` lie in the result folder.
    Raises SpecError, DataError or DeviceError.
    """
    _refuse(asked)
    job = replace(asked.job, fresh=False)
    with _alone(job.out / "search"):
        if asked.job.fresh:
            _forget(job.out)
        begun = Beginning(replace(asked, job=job), progress)
        with trying(begun.task, job.out, asked.workers, progress) as try_all:
            search = begun.search(try_all)
            search.run()
        winner = search.winner
        told = document(search, begun.told, begun.clock.spent_s)
        write_file(job.out / RESULT, readable_json(told))
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
        return replace(job, recipe=recipe, data=begun.final, search=told)


def _refuse(asked: SearchJob) -> None:
    """Refuse what makes no sense before anything is computed. Raises SpecError."""
    job = asked.job
    if not job.budget.any:
        fix = "pass --keep, --max-size, --min-fps or --max-energy"
        raise SpecError("--search: nothing to search for", expected="a budget", fix=fix)
    if job.calibration is not None and not job.calibration.isdigit():
        raise SpecError(f"--calibration {job.calibration}: a search chooses its own images", fix="pass their number")
    if asked.workers > 1 and job.target.kind == "cpu":
        raise SpecError(
            f"--workers {asked.workers} for target {job.target.name}",
            expected="one worker where trials are timed on this machine: others would be in its way",
        )
    library()


def _forget(out: Path) -> None:
    """Remove what was tried before. Raises SpecError."""
    if (out / "stages").is_dir():
        remove_folder(out / "stages")
    with writing(out):
        (out / RESULT).unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a search. Raises SpecError where another search does."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpecError(
                f"{folder}: another search is running there", fix="wait for it, or pass another --out"
            ) from error
        yield
    finally:
        os.close(lock)

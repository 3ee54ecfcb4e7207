"""The pages of `edgekd ui` as HTML, with the numbers, charts and style of the report.

A row or section whose numbers cannot be shown becomes a line with the reason, so a broken file does not hide others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from markupsafe import Markup

from edgekd.builds.run_progress import RunProgress
from edgekd.builds.stages.quantize import PLAN
from edgekd.commands.web.comparison import SCORE_NOISE, TIME_NOISE, compare_runs
from edgekd.commands.web.runs import REPORT, Run, RunRecord, find_runs, read_run, read_text
from edgekd.core.errors import SpecError, first_line
from edgekd.evaluation.report.page import environment
from edgekd.evaluation.report.search import trial_spots
from edgekd.evaluation.report.types import Training
from edgekd.hardware.budget import verdict

_FOLDER = Path(__file__).parent
CHARTS = 4
"""Number of Pareto fronts on the overview, of the newest searches; fleets are listed below them."""


def overview_page(root: Path) -> str:
    """Return the HTML of the page with all result folders in a folder."""
    runs, problems = find_runs(root)
    records = sorted(map(read_run, runs), key=lambda record: (record.state != "running", -record.changed_at))
    builds = [record for record in records if not record.is_fleet]
    searches = [record for record in records if record.search]
    fleets = [record for record in records if record.is_fleet]
    chosen = [record.run.name for record in builds if record.build][:2]
    return _page(
        "overview.html",
        root=root.resolve(),
        builds=[_part("build_row", record, record.run.name in chosen) for record in builds],
        comparable=sum(record.build is not None for record in builds),
        searches=[_part("search_row", record) for record in searches],
        fronts=[_part("front", record) for record in searches[:CHARTS]],
        fleets=[_part("fleet", record) for record in fleets],
        problems=[*problems, *(problem for record in records for problem in record.problems)],
    )


def run_page(run: Run) -> str:
    """Return the HTML of the page of a result folder."""
    record = read_run(run)
    others = [other for other in map(read_run, find_runs(run.root)[0]) if other.build and other.run != run]
    return _page(
        "run.html",
        record=record,
        status=_part("status", record),
        summary=_part("summary", record) if record.build else "",
        has_report=run.has(REPORT),
        sections=[_part(macro, record) for macro in _sections(record)],
        others=sorted(others, key=lambda other: (not _alike(record, other), -other.changed_at)) if record.build else [],
    )


def comparison_page(runs: Sequence[Run]) -> str:
    """Return the HTML of the page of two builds side by side. Raises SpecError unless both are finished builds."""
    records = [read_run(run) for run in runs]
    builds = [record.build for record in records if record.build]
    if len(runs) != 2 or len(builds) != 2:
        problems = [problem for record in records for problem in record.problems]
        raise SpecError("compare", expected="two finished builds", found="; ".join(problems) or str(len(builds)))
    pair = (runs[0], runs[1])
    try:
        return _page(
            "comparison.html",
            runs=pair,
            comparison=compare_runs(pair, (builds[0], builds[1])),
            SCORE_NOISE=SCORE_NOISE,
            TIME_NOISE=TIME_NOISE,
        )
    except Exception as error:  # numbers of a hostile file may be of any size
        raise SpecError(f"{pair[0].title} and {pair[1].title} cannot be compared", found=first_line(error)) from error


def problem_page(title: str, reason: str) -> str:
    """Return the HTML of a page with the reason why another one cannot be shown."""
    return _page("problem.html", title=title, reason=reason)


def _sections(record: RunRecord) -> Iterator[str]:
    """Yield the names of the macros of the sections for which a result folder has data."""
    progress, build = record.progress, record.build
    if progress and (record.state != "done" or build is None):
        yield "progress_section"
    if progress and progress.epochs:
        yield "training_section"
    if record.search:
        yield "search_section"
    if record.is_fleet:
        yield "board_section"
    if build:
        if build.ledger.budget:
            yield "budget_section"
        yield "class_section"
        yield "stage_section"
        if record.run.has(PLAN):
            yield "plan_section"
        yield "provenance_section"


def _trainings(progress: RunProgress) -> list[Training]:
    return [Training(name, losses) for name, losses in progress.epochs.items()]


def _alike(record: RunRecord, other: RunRecord) -> bool:
    """Return whether two finished builds have the same model and target."""
    return (record.build and (record.build.ledger.model, record.build.ledger.target)) == (
        other.build and (other.build.ledger.model, other.build.ledger.target)
    )


def _page(template: str, **values: Any) -> str:
    return templates().get_template(template).render(values)


def _part(macro: str, record: RunRecord, *values: object) -> Markup:
    """Return the HTML of a row or section, or a line with the reason why it cannot be shown."""
    shared: Any = templates().get_template("shared.html").module
    try:
        return Markup(getattr(shared, macro)(record, *values))
    except Exception as error:  # numbers of a hostile file may be of any size
        unshown = shared.unshown_row if macro.endswith("_row") else shared.unshown
        return Markup(unshown(record, first_line(error)))


@cache
def templates() -> Environment:
    """Return the templates of these pages and of the report, with the filters of both."""
    report = environment()
    assert report.loader is not None
    found = report.overlay(loader=ChoiceLoader([FileSystemLoader(_FOLDER / "templates"), report.loader]))
    found.filters = {
        **report.filters,
        "address": address,
        "comparison": lambda pair: "/compare?" + urlencode([("run", run.name) for run in pair]),
        "met": verdict,
        "file_moment": lambda seconds: _local_text(datetime.fromtimestamp(seconds)),
        "utc_moment": lambda written: _local_text(datetime.fromisoformat(written)),
    }
    found.globals = {
        **report.globals,
        "plan_text": lambda run: read_text(run, PLAN),
        "trainings": _trainings,
        "trial_spots": trial_spots,
    }
    return found


def _local_text(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def address(run: Run, page: str = "run") -> str:
    """Return the address of a page of a result folder."""
    return f"/{page}/{quote(run.name)}"

"""`edgekd report`: the report of a finished build with its analysis as a page, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from edgekd.builds.analyse import FRAMES, AnalyseResult, analysed_report, findings_of
from edgekd.builds.analyse import analyse as analyse_stage
from edgekd.builds.report_data import ReportFacts, full_report
from edgekd.builds.run import SEARCH, BuildGraphs, MachineRecord
from edgekd.builds.stage_kinds import kind_of
from edgekd.builds.stage_store import AnyStage, Stage, StageResult, inputs_of, read_stage
from edgekd.builds.stages.base import GRAPH, StageContext
from edgekd.builds.stages.benchmark import TimingResult
from edgekd.builds.stages.calibrate import CalibrateResult
from edgekd.builds.stages.check import CheckResult
from edgekd.builds.stages.compile import CompileResult
from edgekd.builds.stages.encode import EncodeResult
from edgekd.builds.stages.half import HalfResult
from edgekd.builds.stages.interface import InterfaceResult
from edgekd.builds.stages.quantize import QuantizedResult
from edgekd.builds.stages.score import SCORED, ScoreResult
from edgekd.commands.arguments import path_or_none
from edgekd.commands.compare import Finished, opened
from edgekd.commands.parameter import Argument, Option
from edgekd.core.atomic_files import write_file
from edgekd.core.detection.types import spec_from_json
from edgekd.core.errors import DataError, EdgeKDError, SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.core.typed_values import from_plain
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Split
from edgekd.evaluation.report.bench_files import require_place
from edgekd.evaluation.report.document import Analysed, numbers_of
from edgekd.evaluation.report.html import render
from edgekd.evaluation.search_result import SearchResult
from edgekd.hardware.target import Target, load_target

R = TypeVar("R", bound=StageResult)
PAGE = "analysis.html"


def analyse(
    run: Annotated[str | Path, Argument("Result folder of a build.")],
    *,
    data: Annotated[
        str | Path | None, Option("Data set that was scored. Default: the place in the ledger.", group="Input")
    ] = None,
    out: Annotated[str | Path | None, Option("Page to write. Default: RUN/analysis.html.", group="Output")] = None,
    images: Annotated[int, Option("Scored images on which layers are compared.", minimum=1)] = FRAMES,
    progress: Progress = SILENT,
) -> Analysed:
    """Explain where a finished build lost accuracy, as a page: objects lost and gained, confusion, layers, attention.

    Raises SpecError if no build has finished there, or its stages are gone; DataError if `data` is not the data that
    was scored; BundleError. The command: `edgekd report`. Similarity is linear CKA (Kornblith et al., ICML 2019),
    attention is by Zagoruyko and Komodakis (ICLR 2017): docs/guides/report.md.
    """
    folder, page = Path(run), path_or_none(out)
    require_place(page)
    finished = opened(folder)
    done = _stages_of(finished)
    context = StageContext.within(folder, False, progress)
    scored, unavailable = _scored(path_or_none(data), finished, context)
    graphs, target = _graphs(finished, done, scored), _target(finished.ledger.target)
    machine = MachineRecord(_last(done, CompileResult), _last(done, TimingResult))
    analysis = _last(done, AnalyseResult) if any(isinstance(stage.result, AnalyseResult) for stage in done) else None
    findings = None if scored is None else findings_of(graphs)
    if findings is not None:
        analysis = analyse_stage(context, graphs, findings, target, machine.timing.result.host, images)
    facts = _facts(finished, done, target)
    report = analysed_report(full_report(graphs, facts, machine, done), graphs, findings, analysis)
    if unavailable:
        report = replace(report, missing=(unavailable, *report.missing))
    page = page or folder / PAGE
    write_file(page, render(report).encode("utf-8"))
    return numbers_of(report, folder, page)


def _stages_of(finished: Finished) -> list[AnyStage]:
    """Return the stages of a build from its store, as its ledger lists them. Raises SpecError if one is gone."""
    found: list[AnyStage] = []
    for row in finished.ledger.stages:
        path = finished.folder / "stages" / f"{row.name}-{row.key[:16]}"
        kind = kind_of(row.name)
        stage = read_stage(path, kind) if kind else None
        if stage is None or stage.sha256 != row.sha256:
            raise SpecError(
                f"{finished.folder}: its stage {row.name} is gone or damaged",
                expected=str(path),
                fix="run the same `edgekd build` again: it does what is missing",
            )
        found.append(replace(stage, cached=row.cached))
    return found


def _graphs(finished: Finished, done: Sequence[AnyStage], scored: Split | None) -> BuildGraphs:
    """Return the graphs of a build, found by the inputs of its stages. Raises SpecError if they are inconsistent."""
    by_result: dict[str, Any] = {stage.sha256: stage for stage in done}
    scores = _all(done, ScoreResult)
    try:
        before, shipped = (by_result[inputs_of(scores[at])["graph"]] for at in (0, -1))
        after = shipped
        while isinstance(after.result, (HalfResult, InterfaceResult)):
            after = by_result[inputs_of(after)["graph"]]
        floating = after
        while isinstance(floating.result, QuantizedResult):
            floating = by_result[inputs_of(floating)["graph"]]
        packed = shipped.files[GRAPH].sha256
        encoded = next(each for each in reversed(_all(done, EncodeResult)) if inputs_of(each)["graph"] == packed)
    except (KeyError, IndexError, StopIteration) as error:
        raise SpecError(f"{finished.folder}: its stages do not belong together", fix="build again") from error
    return BuildGraphs(
        before=before,
        floating=floating,
        after=after,
        shipped=shipped,
        encoded=encoded,
        scores=(scores[0], scores[-1]),
        checked=_last(done, CheckResult),
        scored=scored,
        steps=tuple(done),
    )


def _all(done: Sequence[AnyStage], kind: type[R]) -> list[Stage[R]]:
    """Return the stages with results of one type."""
    return [cast("Stage[R]", stage) for stage in done if isinstance(stage.result, kind)]


def _last(done: Sequence[AnyStage], kind: type[R]) -> Stage[R]:
    return _all(done, kind)[-1]


def _target(name: str) -> Target | None:
    """Return the shipped target of that name; None for a user's own, whose file is unknown."""
    try:
        return load_target(name)
    except SpecError:
        return None


def _scored(data: Path | None, finished: Finished, context: StageContext) -> tuple[Split | None, str | None]:
    """Return the split that was scored, or None and the reason. Raises the error instead if `data` is given."""
    place = data or (Path(finished.ledger.data) if finished.ledger.data else None)
    if place is None:
        return None, "the data: its path is not in this ledger; pass --data"
    try:
        split = load_dataset(place).split(SCORED, spec_from_json(finished.manifest.detector).head.task)
        if context.fingerprint(split) != finished.manifest.lineage.data_sha256:
            raise DataError(
                f"{place}: not what this build was scored on",
                expected="the same images and labels",
                found="others",
                fix="pass the data set as it was, or build again",
            )
    except EdgeKDError as error:
        if data is not None:
            raise
        return None, f"the data, where it was when this was built: {error}; pass --data"
    return split, None


def _facts(finished: Finished, done: Sequence[AnyStage], target: Target | None) -> ReportFacts:
    path, ledger, calibrated = finished.folder / SEARCH, finished.ledger, _all(done, CalibrateResult)
    return ReportFacts(
        model=ledger.model,
        target=target.title if target else ledger.target,
        recipe=finished.manifest.lineage.recipe,
        provenance=_provenance(finished),
        rare=calibrated[-1].result.rare if calibrated else (),
        budget=ledger.budget,
        bundle_bytes=(finished.folder / ledger.bundle).stat().st_size,
        search=_search(path) if ledger.search and path.is_file() else None,
    )


def _search(path: Path) -> SearchResult:
    try:
        return from_plain(SearchResult, json.loads(path.read_bytes()), str(path), extra=True)
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read", found=str(error), fix="build again") from error


def _provenance(finished: Finished) -> dict[str, str]:
    lineage = finished.manifest.lineage
    facts = {
        "Model": finished.ledger.model,
        "Model SHA-256": lineage.model_sha256,
        "Scored images and labels, SHA-256": lineage.data_sha256,
        "Calibration set SHA-256": lineage.calibration_sha256,
        "Seed": str(lineage.seed),
        "Recipe": lineage.recipe,
        "Recipe SHA-256": lineage.recipe_sha256,
        "Made with": ", ".join([finished.manifest.created_by, *(f"{n} {v}" for n, v in lineage.tools.items())]),
    }
    return {name: value for name, value in facts.items() if value}

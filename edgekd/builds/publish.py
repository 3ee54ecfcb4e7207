"""Stages `report` and `pack`, and the files of a build: the bundle, the report, the ledger."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.builds.analyse import analyse, analysed_report, findings_of
from edgekd.builds.ledger import (
    Ledger,
    LedgerPrediction,
    LedgerTimings,
    TrainingRecord,
    ledger_row,
    timing_of,
    write_ledger,
)
from edgekd.builds.report_data import facts_of, full_report, report_of
from edgekd.builds.run import SEARCH, BuildRecord, BuildResult, MachineRecord, calibration_cache
from edgekd.builds.stage_store import AnyStage, StageKind, StageResult, put_result, summaries
from edgekd.builds.stages.base import GRAPH, StageContext, tools_of
from edgekd.builds.stages.calibrate import CALIBRATION
from edgekd.builds.stages.drift_reference import DRIFT
from edgekd.builds.stages.encode import PACKED
from edgekd.builds.stages.quantize import CACHE, PLAN
from edgekd.builds.stages.recover import TrainedResult
from edgekd.builds.stages.score import ScoreResult
from edgekd.builds.stages.train import DistillResult
from edgekd.core.atomic_files import write_file
from edgekd.core.bundle.archive import file_entry, pack, read_manifest
from edgekd.core.bundle.manifest import (
    BuildLimits,
    Evidence,
    FileEntry,
    GraphScore,
    Latency,
    Licence,
    Lineage,
    Manifest,
    Origin,
    Role,
    StageKey,
    TargetName,
)
from edgekd.core.canonical import canonical_json, file_sha256, json_sha256
from edgekd.core.documents import to_plain
from edgekd.core.errors import SpecError
from edgekd.core.formats.golden_set import to_bytes
from edgekd.core.version import __version__
from edgekd.data.images import ReadableImages
from edgekd.deploy import agent_zipapp, sbom
from edgekd.deploy.golden_set import TRIED, golden_set
from edgekd.deploy.signing.signed import sign_bundle
from edgekd.detectors.family import detector_name
from edgekd.evaluation.report.html import render
from edgekd.evaluation.report.types import for_bundle
from edgekd.hardware.budget import LimitResult, judge, verdict
from edgekd.hardware.predict.result import PredictResult, predict_graph
from edgekd.hardware.target import to_dict

if TYPE_CHECKING:
    from edgekd.compress.steps import Step
    from edgekd.deploy.signing import Signer

_GOLDEN, _REPORT = "golden.set", "report.html"
_ROLES: Mapping[str, Role] = {
    agent_zipapp.NAME: "agent",
    CACHE: "calibration-cache",
    CALIBRATION: "calibration-set",
    DRIFT: "drift",
    "evidence.json": "evidence",
    _GOLDEN: "golden",
    PACKED: "graph",
    "labels.txt": "labels",
    PLAN: "evidence",
    _REPORT: "report",
    sbom.NAME: "sbom",
}
_BESIDE = (PACKED, PLAN, CALIBRATION)
"""Files of a bundle that are also copied beside it, for people and for the next build."""
MARGIN = 8192
"""Bytes reserved for what compression adds to the rest of a bundle: plan, drift reference, longer numbers."""


@dataclass(frozen=True)
class PackResult(StageResult):
    """The length of the bundle in bytes."""

    bytes: int


REPORT = StageKind("report", 3, StageResult, ("numpy", "opencv-python-headless"))
PACK = StageKind("pack", 5, PackResult)


def publish(
    context: StageContext, record: BuildRecord, machine: MachineRecord, signers: Sequence[Signer]
) -> BuildResult:
    """Analyse the build, pack the bundle, judge the budget, and write report and ledger."""
    request, timing = record.request, machine.timing.result
    findings = findings_of(record)
    analysis = analyse(context, record, findings, request.target, timing.host)
    bundle = pack_bundle(context, record, signers)
    before, after = (score.result.map50_95 for score in record.scores)
    predicted = _on_target(record) if request.budget.max_energy_mj else None
    lines = judge(
        request.budget,
        size=bundle.stat().st_size,
        kept=after / before if before else None,
        fps=timing.after.fps,
        basis=timing.after.basis,
        energy_mj=predicted.energy_mj if predicted else None,
    )
    facts = replace(facts_of(record), budget=lines, bundle_bytes=bundle.stat().st_size, search=request.search)
    report = analysed_report(full_report(record, facts, machine, context.done), record, findings, analysis)
    path = request.out / _REPORT
    write_file(path, render(report).encode("utf-8"))
    return BuildResult(
        record=record,
        machine=machine,
        bundle=bundle,
        report=path,
        ledger=write_ledger(request.out, _ledger(record, machine, lines, bundle, context.done)),
        target=request.target.name,
        stages=summaries(context.done),
        met=verdict(lines),
        budget=tuple(lines),
        calibration_cache=calibration_cache(record.after),
        search=request.out / SEARCH if request.search else None,
        done=tuple(context.done),
    )


def pack_bundle(context: StageContext, record: BuildRecord, signers: Sequence[Signer] = ()) -> Path:
    """Write the bundle, copy it, the graphs, plan and calibration set to the request's folder, and return its path.

    The same model, data, recipe, target and versions give the same bytes. The bundle in the store is unsigned; the copy
    is signed by `signers`. Raises SpecError, SignatureError.
    """
    request, identity, files = record.request, _identity(record), _files(record)

    def write_report(folder: Path) -> StageResult:
        _write_bundled_report(record, folder)
        return StageResult()

    report = context.run(REPORT, identity, write_report) if request.bundle_report else None
    if report:
        files[_REPORT] = report.path / _REPORT

    def work(folder: Path) -> PackResult:
        return PackResult(_pack(record, files, folder))

    agent = hashlib.sha256(agent_zipapp.agent_archive()).hexdigest()
    packed = context.run(PACK, {**identity, "report": report and report.sha256, "agent": agent}, work)
    bundle = request.out / f"{detector_name(request.model)}-{request.target.name}.edgekd"
    sign_bundle(packed.path / "bundle.edgekd", signers, bundle)
    put_result(record.shipped.path / GRAPH, request.out / GRAPH)
    for name in _BESIDE:
        put_result(files.get(name), request.out / name)
    return bundle


def bytes_beside_graph(record: BuildRecord) -> int:
    """Estimate the bytes of a bundle's files except graph and calibration cache; MARGIN is for those of later steps."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch)
        sources = {PACKED: record.encoded.path / PACKED}
        if record.request.bundle_report:
            _write_bundled_report(record, folder)
            sources[_REPORT] = folder / _REPORT
        if record.calibrated:
            sources[CALIBRATION] = record.calibrated.stage.path / CALIBRATION
        size = _pack(record, sources, folder)
    return size - record.encoded.result.bytes + MARGIN


def _ledger(
    record: BuildRecord, machine: MachineRecord, budget: Sequence[LimitResult], bundle: Path, stages: Sequence[AnyStage]
) -> Ledger:
    """Return the ledger of a build."""
    trained, timing, request = record.after.result, machine.timing.result, record.request
    lineage = {name: value for name, value in vars(_lineage(record)).items() if name != "stages"}
    students = (stage.result for stage in record.steps if isinstance(stage.result, DistillResult))
    student = next(students, None)
    latencies = read_manifest(bundle).evidence.latencies
    predicted = next((each for each in latencies if each.basis == "predicted"), None)
    return Ledger(
        edgekd=__version__,
        model=request.model.name,
        data=str(request.data),
        target=request.target.name,
        bundle=bundle.name,
        budget=tuple(budget),
        losses=trained.losses if isinstance(trained, TrainedResult) else (),
        calibration_cache=calibration_cache(record.after),
        distillation=TrainingRecord(student.losses, student.weights) if student else None,
        lineage=Origin(**lineage),
        host=timing.host,
        timing=LedgerTimings(timing_of(timing.before), timing_of(timing.after)),
        predicted=LedgerPrediction(predicted.ms, predicted.low_ms, predicted.high_ms) if predicted else None,
        search=request.search and request.search.counts,
        stages=tuple(ledger_row(stage) for stage in stages),
    )


def _pack(record: BuildRecord, files: Mapping[str, Path], folder: Path) -> int:
    """Write `bundle.edgekd` with these files and the small ones into a folder, and return its size in bytes."""
    sources = dict(files)
    for name, content in _small_files(record).items():
        (folder / name).write_bytes(content)
        sources[name] = folder / name
    sources[sbom.NAME] = folder / sbom.NAME
    listed = [file_entry(name, source, _ROLES[name]) for name, source in sources.items() if name != sbom.NAME]
    lineage, name, version = _lineage(record), detector_name(record.request.model), str(record.request.counter)
    tools = sbom.tool_components(lineage.tools)
    sources[sbom.NAME].write_bytes(sbom.sbom(name, version, listed, tools, _licences(record)))
    listed.append(file_entry(sbom.NAME, sources[sbom.NAME], "sbom"))
    entries = tuple(sorted(listed, key=lambda entry: entry.path))
    pack(_manifest(record, entries, lineage), sources, folder / "bundle.edgekd")
    return (folder / "bundle.edgekd").stat().st_size


def _identity(record: BuildRecord) -> dict[str, Any]:
    """Return everything that determines a bundle's content, except its report and agent."""
    return {
        "model": record.request.model.name,
        "target": to_dict(record.request.target),
        "lineage": asdict(_lineage(record)),
        "stages": [stage.sha256 for stage in record.reproducible],
        "edgekd": __version__,
        "counter": record.request.counter,
        "licence": record.request.licence,
        "limits": asdict(record.request.budget),
    }


def _files(record: BuildRecord) -> dict[str, Path]:
    """Return the paths of the bundle's files that earlier stages wrote."""
    files = {PACKED: record.encoded.path / PACKED}
    if CACHE in record.after.files:
        files[CACHE] = record.after.path / CACHE
    if PLAN in record.after.files:
        files[PLAN] = record.after.path / PLAN
    if record.calibrated:
        files[CALIBRATION] = record.calibrated.stage.path / CALIBRATION
    if record.drift and DRIFT in record.drift.files:
        files[DRIFT] = record.drift.path / DRIFT
    return files


def _small_files(record: BuildRecord) -> dict[str, bytes]:
    """Return the files that no stage wrote, by name: scores per class, class names, golden set and agent."""
    scores = {label: score.results for label, score in zip(("before", "after"), record.scores, strict=True)}
    labels = "".join(f"{name}\n" for name in record.after.result.spec.classes)
    return {
        "evidence.json": canonical_json(scores) + b"\n",
        "labels.txt": labels.encode("utf-8"),
        _GOLDEN: _golden(record),
        agent_zipapp.NAME: agent_zipapp.agent_archive(),
    }


def _golden(record: BuildRecord) -> bytes:
    """Return the golden set of the graph that ships, on the first scored images."""
    floating = None if record.after.key == record.floating.key else record.reference.path / GRAPH
    images = (image for _, image in ReadableImages(record.scored.samples[:TRIED], max_bad_share=0.5))
    return to_bytes(golden_set(record.shipped.path / GRAPH, floating, record.shipped.result.spec, images))


def _manifest(record: BuildRecord, entries: tuple[FileEntry, ...], lineage: Lineage) -> Manifest:
    request, tensorrt = record.request, record.request.target.software.tensorrt
    budget = request.budget
    return Manifest(
        name=detector_name(request.model),
        created_by=f"edgekd {__version__}",
        counter=request.counter,
        target=TargetName(request.target.name, request.target.compatible),
        tensorrt=tensorrt.value if tensorrt else None,
        detector=json.loads(canonical_json(to_plain(record.shipped.result.spec))),
        thresholds=record.thresholds,
        files=entries,
        limits=BuildLimits(budget.max_bytes, budget.min_retention, budget.min_fps),
        evidence=_evidence(record),
        lineage=lineage,
        licences=_licences(record),
    )


def _evidence(record: BuildRecord) -> Evidence:
    before, after = (
        _score(score.result, size, record.after.result.spec.classes)
        for score, size in zip(record.scores, (record.before.result.bytes, record.encoded.result.bytes), strict=True)
    )
    return Evidence(
        images=record.scores[1].result.images,
        before=before,
        after=after,
        retention=after.map50_95 / before.map50_95 if before.map50_95 else None,
        latencies=_predicted(record),
    )


def _on_target(record: BuildRecord) -> PredictResult | None:
    """Return the prediction for the graph that ships; None if the target cannot be predicted."""
    try:
        return predict_graph(record.shipped.path / GRAPH, record.request.target)
    except SpecError:
        return None


def _predicted(record: BuildRecord) -> tuple[Latency, ...]:
    """Return the predicted latency on the target, if there is one."""
    if (found := _on_target(record)) is None:
        return ()
    return (Latency("predicted", record.request.target.name, found.latency_ms, found.low_ms, found.high_ms, None),)


def _score(found: ScoreResult, size: int, classes: Sequence[str]) -> GraphScore:
    rows = [found.per_class.get(name) for name in classes]
    return GraphScore(found.map50_95, found.map50, size, tuple(row.map50_95 if row else None for row in rows))


def _licences(record: BuildRecord) -> tuple[Licence, ...]:
    return Licence("agent", "Apache-2.0"), Licence("model", record.request.licence or sbom.UNKNOWN)


def _lineage(record: BuildRecord) -> Lineage:
    request = record.request
    made_here = record.detector.path != request.model
    return Lineage(
        model_sha256=record.model_sha256,
        student_sha256=file_sha256(record.detector.path) if made_here else None,
        data_sha256=record.data_sha256,
        calibration_sha256=record.calibrated.images.sha256 if record.calibrated else None,
        recipe=request.recipe.name,
        recipe_sha256=json_sha256([_step_json(step) for step in request.recipe.steps]),
        seed=record.calibrated.images.rule.seed if record.calibrated else 0,
        tools=tools_of(record.reproducible),
        stages=tuple(StageKey(stage.name, stage.key) for stage in record.reproducible),
    )


def _step_json(step: Step) -> dict[str, Any]:
    """Return a step as data, with paths reduced to names."""
    return {"step": type(step).__name__, **_with_names(asdict(step))}


def _with_names(value: Any) -> Any:
    """Return settings with paths reduced to names, also in nested settings."""
    if isinstance(value, dict):
        return {name: _with_names(inner) for name, inner in value.items()}
    return Path(value).name if isinstance(value, str) else value


def _write_bundled_report(record: BuildRecord, folder: Path) -> None:
    report = for_bundle(report_of(record, facts_of(record), record.reproducible))
    (folder / _REPORT).write_text(render(report), "utf-8")

"""What a build leaves for people and for the camera: the bundle, the report, the ledger."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.builds.budget import Line
from edgekd.builds.report_data import Asked, Timings, full_report, parts_of, report_of
from edgekd.builds.run import Run, TimedRun
from edgekd.builds.stage_store import Stage, write_ledger
from edgekd.builds.stages.analyse import analysed_report
from edgekd.builds.stages.base import CACHE, CALIBRATION, DRIFT, GRAPH, PACKED, PLAN, Stages, spec_of, tools_of
from edgekd.core.atomic_files import copy_file, write_file
from edgekd.core.bundle.archive import file_entry, pack, read_manifest, stored_bytes
from edgekd.core.bundle.manifest import (
    Evidence,
    FileEntry,
    Latency,
    Licence,
    Limits,
    Lineage,
    Manifest,
    Score,
    StageKey,
    TargetName,
)
from edgekd.core.canonical import canonical_json, file_sha256, json_sha256
from edgekd.core.errors import SpecError
from edgekd.core.version import __version__
from edgekd.deploy import agent_zipapp, sbom
from edgekd.deploy.signing.signed import sign_bundle
from edgekd.evaluation.report.html import render
from edgekd.evaluation.report.types import for_bundle
from edgekd.hardware.predict.result import predict_graph
from edgekd.hardware.target import to_dict

if TYPE_CHECKING:
    from edgekd.builds.recipe import Step
    from edgekd.deploy.signing import Signer

_GOLDEN = "golden.set"
_ROLES = {
    agent_zipapp.NAME: "agent",
    CACHE: "calibration-cache",
    CALIBRATION: "calibration-set",
    DRIFT: "drift",
    "evidence.json": "evidence",
    _GOLDEN: "golden",
    PACKED: "graph",
    "labels.txt": "labels",
    PLAN: "evidence",
    "report.html": "report",
    sbom.NAME: "sbom",
}
_BESIDE = (PACKED, PLAN, CALIBRATION)
"""What of a bundle's files also lies beside it, for people and for the next build."""
MARGIN = 8192
"""Bytes by which the rest of a bundle may grow from before to after: a plan, the record of statistics, and other digits
in the report."""


def pack_bundle(run: Run, stages: Stages, signers: Sequence[Signer] = ()) -> Path:
    """Write the report that travels, pack the bundle, and put it, the graphs and the calibration set into `job.out`.

    Everything in a bundle follows from model, data, recipe, target and versions: the same inputs give the same bytes.
    What the store keeps is not signed; the copy in `job.out` is, by these signers. Raises SignatureError.
    """
    identity = _identity(run)
    report = stages.run("report", identity, lambda folder: _write_travelling_report(run, folder))
    files = _files(run, report)

    def work(folder: Path) -> Mapping[str, Any]:
        return {"bytes": _pack(run, files, folder)}

    agent = hashlib.sha256(agent_zipapp.agent_archive()).hexdigest()
    packed = stages.run("pack", {**identity, "report": report.sha256, "agent": agent}, work)
    job = run.job
    bundle = job.out / f"{job.model.stem}-{job.target.name}.edgekd"
    sign_bundle(packed.path / "bundle.edgekd", signers, bundle)
    beside = {GRAPH: run.shipped.path / GRAPH, **{name: files[name] for name in _BESIDE if name in files}}
    for name, source in beside.items():
        copy_file(source, job.out / name)
    return bundle


def budget_bytes(bundle: Path) -> int:
    """The bytes of a bundle that its budget counts: all but the agent's, which is the same for every model."""
    agents = (entry for entry in read_manifest(bundle).files if entry.role == "agent")
    return bundle.stat().st_size - sum(map(stored_bytes, agents))


def bytes_beside_graph(run: Run, stages: Stages) -> int:
    """About what a budget counts of a bundle without its graph and calibration cache: of a run that changed nothing."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch)
        _write_travelling_report(run, folder)
        sources = {"report.html": folder / "report.html", PACKED: run.encoded.path / PACKED}
        if run.calibrated:
            sources[CALIBRATION] = run.calibrated.stage.path / CALIBRATION
        _pack(run, sources, folder)
        size = budget_bytes(folder / "bundle.edgekd")
    return size - int(run.encoded.results["bytes"]) + MARGIN


def write_report(run: TimedRun, lines: Sequence[Line], bundle: Path, stages: Sequence[Stage]) -> Path:
    """Write the report for people, with this machine's timings, into `job.out`."""
    parts, on = parts_of(run), Timings(run.checked, run.compiled, run.timing)
    asked = Asked(lines, bundle.stat().st_size, run.job.search)
    report = analysed_report(full_report(parts, on, asked, stages), parts, run.findings, run.analysed)
    path = run.job.out / "report.html"
    write_file(path, render(report).encode("utf-8"))
    return path


def write_build_ledger(run: TimedRun, lines: Sequence[Line], bundle: Path, stages: Sequence[Stage]) -> Path:
    """Write `ledger.json`: what every stage took and gave, and where it all came from."""
    path = run.job.out / "ledger.json"
    lineage = asdict(_lineage(run))
    extra = {
        "edgekd": __version__,
        "model": run.job.model.name,
        "data": str(run.job.data),
        "target": run.job.target.name,
        "bundle": bundle.name,
        "budget": [asdict(line) for line in lines],
        "losses": run.after.results.get("losses", []),
        "calibration_cache": run.after.results.get("calibration_cache"),
        "distillation": _distillation(run),
        "lineage": {key: value for key, value in lineage.items() if key != "stages"},
        "host": run.timing.results["host"],
        "timing": {side: _timed(run.timing.results[side]) for side in ("before", "after")},
        "predicted": _told_of_target(bundle),
        "search": _told_of_search(run),
    }
    write_ledger(path, stages, extra)
    return path


def _timed(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger keeps of the timing of a graph."""
    total = found["total_ms"]
    return {"basis": found["basis"], "fps": found["fps"], **{f"{name}_ms": total[name] for name in ("p50", "p99")}}


def _told_of_search(run: Run) -> dict[str, Any] | None:
    """How the recipe was found; None where it was given. search.json has the rest."""
    names = ("reason", "seconds", "candidates", "refused", "tried", "thorough", "trainings", "trainings_saved")
    return None if run.job.search is None else {name: run.job.search[name] for name in names}


def _told_of_target(bundle: Path) -> dict[str, Any] | None:
    """How long a frame is predicted to take on the target, as the bundle says; None where it does not."""
    found = next((each for each in read_manifest(bundle).evidence.latencies if each.basis == "predicted"), None)
    return None if found is None else {name: getattr(found, name) for name in ("ms", "low_ms", "high_ms")}


def _distillation(run: Run) -> dict[str, Any] | None:
    """The losses and weights of each epoch of the student's training; None without a student."""
    found = next((stage.results for stage in run.steps if stage.name == "distill"), None)
    return None if found is None else {name: found[name] for name in ("losses", "weights")}


def _pack(run: Run, files: Mapping[str, Path], folder: Path) -> int:
    """Write `bundle.edgekd` with these files and the small ones into a folder, and return its size in bytes."""
    sources = dict(files)
    for name, content in _small_files(run).items():
        (folder / name).write_bytes(content)
        sources[name] = folder / name
    sources[sbom.NAME] = folder / sbom.NAME
    told = [file_entry(name, source, _ROLES[name]) for name, source in sources.items() if name != sbom.NAME]
    lineage, name, version = _lineage(run), run.job.model.stem, str(run.job.counter)
    tools = sbom.told_tools(lineage.tools)
    sources[sbom.NAME].write_bytes(sbom.sbom(name, version, told, tools, _licences(run)))
    told.append(file_entry(sbom.NAME, sources[sbom.NAME], "sbom"))
    entries = tuple(sorted(told, key=lambda entry: entry.path))
    pack(_manifest(run, entries, lineage), sources, folder / "bundle.edgekd")
    return (folder / "bundle.edgekd").stat().st_size


def _identity(run: Run) -> dict[str, Any]:
    """Everything that a bundle's content follows from."""
    return {
        "model": run.job.model.name,
        "target": to_dict(run.job.target),
        "lineage": asdict(_lineage(run)),
        "stages": [stage.sha256 for stage in run.reproducible],
        "edgekd": __version__,
        "counter": run.job.counter,
        "licence": run.job.licence,
        "limits": asdict(run.job.budget),
    }


def _files(run: Run, report: Stage) -> dict[str, Path]:
    """Where the files of the bundle lie that earlier stages made."""
    files = {PACKED: run.encoded.path / PACKED, "report.html": report.path / "report.html"}
    if CACHE in run.after.files:
        files[CACHE] = run.after.path / CACHE
    if PLAN in run.after.files:
        files[PLAN] = run.after.path / PLAN
    if run.calibrated:
        files[CALIBRATION] = run.calibrated.stage.path / CALIBRATION
    if run.watched and DRIFT in run.watched.files:
        files[DRIFT] = run.watched.path / DRIFT
    return files


def _small_files(run: Run) -> dict[str, bytes]:
    """What is made when packing: scores per class, the class names a line each, golden set and agent."""
    scores = {label: score.results for label, score in zip(("before", "after"), run.scores, strict=True)}
    labels = "".join(f"{name}\n" for name in spec_of(run.after).classes)
    return {
        "evidence.json": canonical_json(scores) + b"\n",
        "labels.txt": labels.encode("utf-8"),
        _GOLDEN: _golden(run),
        agent_zipapp.NAME: agent_zipapp.agent_archive(),
    }


def _golden(run: Run) -> bytes:
    """The golden set of the graph that ships, from the first scored images."""
    from edgekd.core.formats.golden_set import to_bytes
    from edgekd.data.images import ReadableImages
    from edgekd.deploy.golden_set import TRIED, golden_set

    floating = None if run.after.key == run.floating.key else run.floating.path / GRAPH
    images = (image for _, image in ReadableImages(run.scored.samples[:TRIED], max_bad_share=0.5))
    return to_bytes(golden_set(run.shipped.path / GRAPH, floating, spec_of(run.after), images))


def _manifest(run: Run, entries: tuple[FileEntry, ...], lineage: Lineage) -> Manifest:
    job, tensorrt = run.job, run.job.target.software.tensorrt
    budget = job.budget
    return Manifest(
        name=job.model.stem,
        created_by=f"edgekd {__version__}",
        counter=job.counter,
        target=TargetName(job.target.name, job.target.compatible),
        tensorrt=tensorrt.value if tensorrt else None,
        detector=json.loads(canonical_json(asdict(spec_of(run.after)))),
        thresholds=run.thresholds,
        files=entries,
        limits=Limits(budget.max_bytes, budget.min_retention, budget.min_fps),
        evidence=_evidence(run),
        lineage=lineage,
        licences=_licences(run),
    )


def _evidence(run: Run) -> Evidence:
    before, after = (
        _score(score.results, graph.results["bytes"], spec_of(run.after).classes)
        for score, graph in zip(run.scores, (run.before, run.encoded), strict=True)
    )
    return Evidence(
        images=run.scores[1].results["images"],
        before=before,
        after=after,
        retention=after.map50_95 / before.map50_95 if before.map50_95 else None,
        latencies=_predicted(run),
    )


def on_target(run: Run) -> Mapping[str, Any] | None:
    """What `edgekd predict` says of the graph that ships; None where the target cannot be predicted."""
    try:
        return predict_graph(run.shipped.path / GRAPH, run.job.target).document
    except SpecError:
        return None


def _predicted(run: Run) -> tuple[Latency, ...]:
    """How long a frame is predicted to take on the target; nothing where that cannot be said."""
    if (found := on_target(run)) is None:
        return ()
    ms, low, high = (float(found[name]) for name in ("latency_ms", "low_ms", "high_ms"))
    return (Latency("predicted", run.job.target.name, ms, low, high, None),)


def _score(found: Mapping[str, Any], size: int, classes: Sequence[str]) -> Score:
    told = tuple(found["per_class"].get(name, {}).get("map50_95") for name in classes)
    return Score(found["map50_95"], found["map50"], size, told)


def _licences(run: Run) -> tuple[Licence, ...]:
    return Licence("agent", "Apache-2.0"), Licence("model", run.job.licence or sbom.UNKNOWN)


def _lineage(run: Run) -> Lineage:
    job = run.job
    made_here = run.detector.path != job.model
    return Lineage(
        model_sha256=run.model_sha256,
        student_sha256=file_sha256(run.detector.path) if made_here else None,
        data_sha256=run.data_sha256,
        calibration_sha256=run.calibrated.images.sha256 if run.calibrated else None,
        recipe=job.recipe.name,
        recipe_sha256=json_sha256([_step_json(step) for step in job.recipe.steps]),
        seed=run.calibrated.images.rule.seed if run.calibrated else 0,
        tools=tools_of(run.reproducible),
        stages=tuple(StageKey(stage.name, stage.key) for stage in run.reproducible),
    )


def _step_json(step: Step) -> dict[str, Any]:
    """A step as data; of a path only the name, since where it lies says nothing."""
    told = {name: Path(value).name if isinstance(value, str) else value for name, value in asdict(step).items()}
    return {"step": type(step).__name__, **told}


def _write_travelling_report(run: Run, folder: Path) -> Mapping[str, Any]:
    report = for_bundle(report_of(parts_of(run), run.reproducible))
    (folder / "report.html").write_text(render(report), "utf-8")
    return {}

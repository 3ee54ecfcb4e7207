"""A build's stages as the rows and figures of its report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.builds.budget import Line
from edgekd.builds.run import Run
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import COSTS, DETECTIONS, GRAPH, PACKED, SAMPLES, spec_of, tools_of
from edgekd.compress.weight_formats import FORMS
from edgekd.core.bundle.manifest import Thresholds
from edgekd.core.version import __version__
from edgekd.data.images import read_image
from edgekd.data.types import Sample, Split
from edgekd.evaluation.report.types import (
    BudgetRow,
    Change,
    ClassRow,
    Latency,
    LayerRow,
    Moment,
    Report,
    SamplePicture,
    SizeRow,
    StageRow,
    Training,
    latency_of,
)
from edgekd.hardware.target import Target

PICTURES = 4


@dataclass(frozen=True)
class Parts:
    """What a report tells of: the stages of a build by what they are to it, as in `run.Run`.

    target: None where it is not known here; `aim` is what people call it. scored: None where the data is not at hand.
    """

    model: str
    aim: str
    recipe: str
    target: Target | None
    before: Stage
    floating: Stage
    after: Stage
    shipped: Stage
    encoded: Stage
    scores: tuple[Stage, Stage]
    calibrated: Stage | None
    scored: Split | None
    thresholds: Thresholds
    provenance: Mapping[str, str]
    steps: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Timings:
    """What one machine made of a build: the check of its graph, its engine, its times."""

    checked: Stage
    compiled: Stage
    timing: Stage


@dataclass(frozen=True)
class Asked:
    """What was asked of a build, the size of what came of it, and how its recipe was found, as search.json has it."""

    lines: Sequence[Line] = ()
    bundle_bytes: int | None = None
    search: Mapping[str, Any] | None = field(default=None)


def parts_of(run: Run) -> Parts:
    """The parts of a build that runs."""
    names = ("before", "floating", "after", "shipped", "encoded", "scores", "scored", "steps")
    return Parts(
        model=run.job.model.name,
        aim=run.job.target.title,
        recipe=run.job.recipe.name,
        target=run.job.target,
        calibrated=run.calibrated.stage if run.calibrated else None,
        thresholds=run.thresholds,
        provenance=provenance(run),
        **{name: getattr(run, name) for name in names},
    )


def report_of(parts: Parts, stages: Sequence[Stage]) -> Report:
    """The report of what a build compressed and scored, without what belongs to the machine it ran on."""
    before, after = (score.results for score in parts.scores)
    rare = parts.calibrated.results["rare"] if parts.calibrated else ()
    return Report(
        title=f"{Path(parts.model).stem} for {parts.aim}",
        model=parts.model,
        target=parts.aim,
        recipe=parts.recipe,
        map50_95=Change(before["map50_95"], after["map50_95"]),
        map50=Change(before["map50"], after["map50"]),
        bytes=Change(parts.before.results["bytes"], parts.encoded.results["bytes"]),
        images=after["images"],
        stages=tuple(stage_row(stage) for stage in stages),
        classes=tuple(
            ClassRow(name, row["instances"], before["per_class"][name]["map50_95"], row["map50_95"], name in rare)
            for name, row in after["per_class"].items()
        ),
        sizes=tuple(SizeRow(name, before["by_size"][name], value) for name, value in after["by_size"].items()),
        layers=layer_rows(
            parts.floating.path / GRAPH,
            parts.after.path / GRAPH,
            parts.encoded.path / PACKED,
            parts.after.results.get("errors", {}),
            _noise(parts),
            _options(parts.steps),
        ),
        class_names=spec_of(parts.after).classes,
        pictures=tuple(_pictures(parts)),
        provenance=parts.provenance,
        training=tuple(trainings(parts.steps)),
    )


def full_report(parts: Parts, on: Timings, asked: Asked, stages: Sequence[Stage]) -> Report:
    """The report of a build with its budget and this machine's timings."""
    limit = next((line.limit for line in asked.lines if line.name == "max_bytes"), None)
    return replace(
        report_of(parts, stages),
        bundle_bytes=asked.bundle_bytes,
        bundle_limit=int(limit) if limit else None,
        budget=tuple(_budget_row(line) for line in asked.lines),
        latencies=_latencies(on.timing),
        provenance={**parts.provenance, **_host(on.timing)},
        notes=tuple(_notes(on, parts.scores[1])),
        search=asked.search,
    )


def trainings(steps: Sequence[Stage]) -> list[Training]:
    """What each step that trained has logged, epoch by epoch."""
    return [
        Training(stage.name, tuple(stage.results["losses"]), tuple(stage.results.get("weights", ())))
        for stage in steps
        if stage.results.get("losses")
    ]


def stage_row(stage: Stage) -> StageRow:
    """One line of the stages table."""
    return StageRow(
        name=stage.name,
        seconds=stage.seconds,
        bytes=stage.results.get("bytes"),
        map50_95=stage.results.get("map50_95"),
        map50=stage.results.get("map50"),
        cached=stage.cached,
        note=_stage_note(stage),
    )


def layer_rows(
    before: Path,
    after: Path,
    packed: Path,
    errors: Mapping[str, float],
    snr_db: Mapping[str, float],
    options: Mapping[str, Mapping[str, float]],
) -> tuple[LayerRow, ...]:
    """The layers with weights, in graph order: how the packed graph stores them, and their bytes before and after.

    errors: what each of them is thought to cost, by its name, in any unit; snr_db: signal by noise at its output;
    options: the errors that a plan chose between.
    """
    from edgekd.core.formats.packed_graph import sections

    stored = {section.name: section for section in sections(packed.read_bytes())}
    total = sum(errors.values())
    rows = []
    for given, shipped in zip(_weights(before), _weights(after), strict=True):
        found = stored.get(next(iter(shipped.bytes)))
        encoding = found.encoding if found else "raw"
        sizes = [stored[name].stored_bytes if name in stored else count for name, count in shipped.bytes.items()]
        rows.append(
            LayerRow(
                name=shipped.name,
                op=shipped.op,
                shape=shipped.shape,
                precision=shipped.dtype if encoding == "raw" else encoding,
                bytes_before=sum(given.bytes.values()),
                bytes_after=sum(sizes),
                error_share=errors[shipped.name] / total if total and shipped.name in errors else None,
                snr_db=snr_db.get(shipped.name),
                output=shipped.output,
                options=options.get(shipped.name, {}),
            )
        )
    return tuple(rows)


def _noise(parts: Parts) -> Mapping[str, float]:
    """Signal by noise of each layer in dB, as quantizing has measured it; of a trained graph what it had before."""
    told = (stage.results["snr_db"] for stage in (parts.after, *reversed(parts.steps)) if "snr_db" in stage.results)
    return next(told, {})


def _options(steps: Sequence[Stage]) -> dict[str, dict[str, float]]:
    """The error of each format of each layer, as the last plan has measured it; none without a plan."""
    plan = next((stage for stage in reversed(steps) if COSTS in stage.files), None)
    if plan is None:
        return {}
    layers = json.loads((plan.path / COSTS).read_bytes())["layers"]
    return {layer["name"]: {option["form"]: option["error"] for option in layer["options"]} for layer in layers}


def provenance(run: Run) -> dict[str, str]:
    """Where a bundle came from: hashes and versions, nothing of the machine it was made on."""
    facts = {
        "Model": run.job.model.name,
        "Model SHA-256": run.model_sha256,
        "Scored images and labels, SHA-256": run.data_sha256,
    }
    if run.calibrated:
        images = run.calibrated.images
        facts["Calibration set"] = f"{len(images.files)} images of {images.split!r}, rule {images.rule.name}"
        facts["Calibration set SHA-256"] = images.sha256
        facts["Seed"] = str(images.rule.seed)
    facts["Recipe"] = run.job.recipe.name
    facts["Graph opset"] = str(run.before.results["opset"])
    tools = tools_of(run.reproducible)
    facts["Made with"] = ", ".join([f"edgekd {__version__}", *(f"{name} {version}" for name, version in tools.items())])
    return facts


def _host(timing: Stage) -> dict[str, str]:
    host = timing.results["host"]
    clock = f", {host['clock_mhz']:.0f} MHz" if host["clock_mhz"] else ""
    governor = f", governor {host['governor']}" if host["governor"] else ""
    return {
        "Timed on": f"{host['cpu']}, {host['threads']} threads{clock}{governor}, {host['os']}",
        "Timed with": ", ".join([host["engine"], *(f"{n} {v}" for n, v in host["libraries"].items())]),
    }


def _notes(on: Timings, score: Stage) -> list[str]:
    notes = [f"Engine: {on.compiled.results['note']}."]
    notes += [f"Not told of this machine: {reason}." for reason in on.timing.results["after"]["refused"]]
    if on.compiled.results["check"]:
        check = on.compiled.results["check"]
        notes.append(f"Parser and builder check by TensorRT for RTX (not the target's engine): {check}.")
    notes += [
        f"{finding['level'].capitalize()}: {finding['what']} ({finding['where']}): {finding['change']}."
        for finding in on.checked.results["findings"]
    ]
    notes += [f"Not scored: {name}: {reason}" for _, name, reason in score.results["skipped"]]
    return notes


def _stage_note(stage: Stage) -> str:
    results = stage.results
    if "multiply_adds" in results:
        was, now = (count / 1e9 for count in results["multiply_adds"])
        return f"{now:.2f} of {was:.2f} G multiply-adds a frame"
    if "parameters" in results:
        ours, theirs = (results[name] / 1e6 for name in ("parameters", "teacher_parameters"))
        return f"a student of {ours:.2f} M parameters beside a teacher of {theirs:.2f} M; epochs: {results['epochs']}"
    if "losses" in results:
        first, last = (sum(results["losses"][at].values()) for at in (0, -1))
        return f"loss {first:.4g} in the first epoch, {last:.4g} in the last; epochs: {results['epochs']}"
    if "forms" in results:
        counts = Counter(results["forms"].values())
        return ", ".join(f"{counts[form]} layers in {form}" for form in FORMS if counts[form]) + _cache_note(results)
    if "tried" in results:
        tried = ", ".join(f"{each['bytes'] / 1e6:.2f} MB keeps {each['kept']:.1%}" for each in results["tried"])
        return f"the smallest that keeps {results['keep']:.1%} of {results['frames']}: {tried}"
    if "onnx_bytes" in results:
        return f"the ONNX file of {results['onnx_bytes'] / 1e6:.2f} MB, packed without loss"
    if stage.name == "drift":
        few = "" if stage.files else ", too few to notice drift by"
        return f"{results['frames']} training images{few}"
    if stage.name == "calibrate":
        return f"{results['images']} images"
    if "error" in results:
        return f"largest relative error against the source {results['error']:.1e}"
    return str(results.get("how", ""))


def _cache_note(results: Mapping[str, Any]) -> str:
    cache = results.get("calibration_cache")
    if cache is None:
        return ""
    return f"; calibration cache: scales of {cache['activations']} activations, {cache['missing']} missing"


def _budget_row(line: Line) -> BudgetRow:
    basis: Any = line.basis
    value = None if line.value is None else line.text(line.value)
    name, timed = line.label.capitalize(), line.name == "min_fps"
    return BudgetRow(name, line.text(line.limit), value, line.met, basis, timed=timed)


def _latencies(timing: Stage) -> tuple[Latency, ...]:
    samples = json.loads((timing.path / SAMPLES).read_bytes())
    engine = timing.results["host"]["engine"]
    sides: tuple[Moment, ...] = ("before", "after")
    return tuple(latency_of(side, engine, timing.results[side], samples[side]) for side in sides)


def scored_samples(parts: Parts) -> list[Sample]:
    """The samples that the detections of both scores are of, in their order; none where the data is not at hand."""
    if parts.scored is None:
        return []
    left_out = {index for index, _, _ in parts.scores[0].results["skipped"]}
    return [sample for index, sample in enumerate(parts.scored.samples) if index not in left_out]


def _pictures(parts: Parts) -> list[SamplePicture]:
    """A few scored frames, from crowded to nearly empty, with what was found before and after."""
    from edgekd.evaluation.evaluate import load_detections

    samples = scored_samples(parts)
    before, after = (load_detections(score.path / DETECTIONS) for score in parts.scores)
    crowded_first = sorted((i for i, s in enumerate(samples) if len(s.truth)), key=lambda i: -len(samples[i].truth))
    places = np.linspace(0, len(crowded_first) - 1, PICTURES + 2).astype(int)[1:-1] if crowded_first else ()
    chosen = [crowded_first[at] for at in places]
    pictures = []
    for index in dict.fromkeys(chosen):
        image = read_image(samples[index].image)
        height, width = image.shape[:2]
        truth = samples[index].truth.boxes * np.array([width, height, width, height], np.float32)
        pictures.append(SamplePicture(samples[index].image.name, image, truth, before[index], after[index]))
    return pictures


@dataclass(frozen=True)
class _Weights:
    """The weights of one layer as an ONNX file has them.

    bytes: of each initializer by its name: the weights or their codes first, then scales and zero points; output: the
    tensor that the layer writes.
    """

    name: str
    output: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    bytes: Mapping[str, int]


def _weights(path: Path) -> list[_Weights]:
    """The layers with constant weights, in graph order."""
    import onnx

    from edgekd.graph.view import Graph

    graph = Graph(onnx.load(path))
    rows = []
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        source = graph.producer(node.input[1])
        names = list(source.input) if source is not None else [node.input[1]]
        values = {name: value for name in names if (value := graph.constant(name)) is not None}
        if values and len(values) == len(names):
            first = values[names[0]]
            sizes = {name: value.nbytes for name, value in values.items()}
            rows.append(_Weights(node.name, node.output[0], node.op_type, first.shape, str(first.dtype), sizes))
    return rows

"""Rows and figures of a build's report, from its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.builds.run import BuildGraphs, BuildRecord, MachineRecord
from edgekd.builds.stage_store import AnyStage, Stage, number_of
from edgekd.builds.stages.base import GRAPH, tools_of
from edgekd.builds.stages.benchmark import SAMPLES, TimingResult
from edgekd.builds.stages.encode import PACKED
from edgekd.builds.stages.quantize import COSTS, QuantizeResult
from edgekd.builds.stages.score import DETECTIONS
from edgekd.compress.quantization.sensitivity_4bit import TYPICAL_STEP
from edgekd.core.formats.packed_graph import sections
from edgekd.core.version import __version__
from edgekd.data.images import read_image
from edgekd.data.types import Sample
from edgekd.evaluation.evaluate import load_detections
from edgekd.evaluation.report.types import (
    BeforeAfter,
    BudgetRow,
    ClassRow,
    FrameLatency,
    LayerRow,
    Moment,
    Report,
    SamplePicture,
    SizeRow,
    StageRow,
    Training,
    latency_of,
)
from edgekd.evaluation.search_result import SearchResult
from edgekd.graph.model_file import read_model
from edgekd.graph.view import Graph
from edgekd.hardware.budget import LimitResult

PICTURES = 4


@dataclass(frozen=True)
class ReportFacts:
    """Facts of a report that no stage has.

    Args:
        model: File name of the model.
        target: Title of the target.
        recipe: Name of the recipe.
        provenance: Hashes and versions, by label.
        rare: Classes that are rare in the training split.
        budget: The limits and the values that were reached.
        bundle_bytes: Length of the bundle; None before it is packed.
        search: The search that found the recipe.
    """

    model: str
    target: str
    recipe: str
    provenance: Mapping[str, str]
    rare: Sequence[str] = ()
    budget: Sequence[LimitResult] = ()
    bundle_bytes: int | None = None
    search: SearchResult | None = None


def facts_of(record: BuildRecord) -> ReportFacts:
    """Return the facts of a build that are the same on every machine."""
    request = record.request
    return ReportFacts(
        model=request.model.name,
        target=request.target.title,
        recipe=request.recipe.name,
        provenance=provenance(record),
        rare=record.calibrated.stage.result.rare if record.calibrated else (),
    )


def report_of(graphs: BuildGraphs, facts: ReportFacts, stages: Sequence[AnyStage]) -> Report:
    """Return the report without budget and times."""
    before, after = (score.result for score in graphs.scores)
    quantized = graphs.after.result
    return Report(
        title=f"{Path(facts.model).stem} for {facts.target}",
        model=facts.model,
        target=facts.target,
        recipe=facts.recipe,
        map50_95=BeforeAfter(before.map50_95, after.map50_95),
        map50=BeforeAfter(before.map50, after.map50),
        bytes=BeforeAfter(graphs.before.result.bytes, graphs.encoded.result.bytes),
        images=after.images,
        task=quantized.spec.head.task,
        boxes=BeforeAfter(before.boxes.map50_95, after.boxes.map50_95) if before.boxes and after.boxes else None,
        stages=tuple(stage_row(stage) for stage in stages),
        classes=tuple(
            ClassRow(name, row.instances, before.per_class[name].map50_95, row.map50_95, name in facts.rare)
            for name, row in after.per_class.items()
        ),
        sizes=tuple(SizeRow(name, before.by_size[name], value) for name, value in after.by_size.items()),
        layers=layer_rows(
            graphs.floating.path / GRAPH,
            graphs.after.path / GRAPH,
            graphs.encoded.path / PACKED,
            quantized.errors if isinstance(quantized, QuantizeResult) else {},
            _noise(graphs),
            _options(graphs.steps),
        ),
        class_names=quantized.spec.classes,
        pictures=tuple(_pictures(graphs)),
        provenance=facts.provenance,
        training=tuple(trainings(graphs.steps)),
    )


def full_report(graphs: BuildGraphs, facts: ReportFacts, machine: MachineRecord, stages: Sequence[AnyStage]) -> Report:
    """Return the report with the budget and this machine's times."""
    limit = next((line.limit for line in facts.budget if line.name == "max_bytes"), None)
    return replace(
        report_of(graphs, facts, stages),
        bundle_bytes=facts.bundle_bytes,
        bundle_limit=int(limit) if limit else None,
        budget=tuple(_budget_row(line) for line in facts.budget),
        latencies=_latencies(machine.timing),
        provenance={**facts.provenance, **_host(machine.timing.result)},
        notes=tuple(_notes(graphs, machine)),
        search=facts.search,
    )


def trainings(steps: Sequence[AnyStage]) -> list[Training]:
    """Return the losses and weights of each step that trained, by epoch."""
    return [
        Training(stage.name, losses, number_of(stage, "weights", ()))
        for stage in steps
        if (losses := number_of(stage, "losses"))
    ]


def stage_row(stage: AnyStage) -> StageRow:
    """Return one line of the stages table."""
    return StageRow(
        name=stage.name,
        seconds=stage.seconds,
        bytes=number_of(stage, "bytes"),
        map50_95=number_of(stage, "map50_95"),
        map50=number_of(stage, "map50"),
        cached=stage.cached,
        note=stage.result.summary,
    )


def layer_rows(
    before: Path,
    after: Path,
    packed: Path,
    errors: Mapping[str, float],
    snr_db: Mapping[str, float],
    options: Mapping[str, Mapping[str, float]],
) -> tuple[LayerRow, ...]:
    """Return the layers with weights in graph order, with their storage in the packed graph.

    Args:
        before, after: ONNX files with the same layers.
        packed: The packed graph of `after`.
        errors: Estimated cost of each layer by its name, in any unit.
        snr_db: Signal-to-noise ratio at the output of each layer, in dB, by its name.
        options: Error by format of the formats that a plan chose from, for each layer by its name.
    """
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


def _noise(graphs: BuildGraphs) -> Mapping[str, float]:
    """Return the signal-to-noise ratio of each layer in dB; for a quantized graph that was trained, before training."""
    results = (stage.result for stage in (graphs.after, *reversed(graphs.steps)))
    return next((result.snr_db for result in results if isinstance(result, QuantizeResult)), {})


def _options(steps: Sequence[AnyStage]) -> dict[str, dict[str, float]]:
    """Return the error of each format of each layer, as measured for the last plan; empty without a plan.

    The error of coded INT8 is at the step that takes about as many bits as fp4x.
    """
    plan = next((stage for stage in reversed(steps) if COSTS in stage.files), None)
    if plan is None:
        return {}
    layers = json.loads((plan.path / COSTS).read_bytes())["layers"]
    return {layer["name"]: _errors(layer["options"]) for layer in layers}


def _errors(options: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {option["form"]: option["error"] for option in options if option["step"] in (None, TYPICAL_STEP)}


def provenance(record: BuildRecord) -> dict[str, str]:
    """Return the origin of a bundle by label: hashes and versions, without the machine that built it."""
    facts = {
        "Model": record.request.model.name,
        "Model SHA-256": record.model_sha256,
        "Scored images and labels, SHA-256": record.data_sha256,
    }
    if record.calibrated:
        images = record.calibrated.images
        facts["Calibration set"] = f"{len(images.files)} images of {images.split!r}, rule {images.rule.name}"
        facts["Calibration set SHA-256"] = images.sha256
        facts["Seed"] = str(images.rule.seed)
    facts["Recipe"] = record.request.recipe.name
    facts["Graph opset"] = str(record.before.result.opset)
    tools = tools_of(record.reproducible)
    facts["Made with"] = ", ".join([f"edgekd {__version__}", *(f"{name} {version}" for name, version in tools.items())])
    return facts


def _host(timing: TimingResult) -> dict[str, str]:
    host = timing.host
    clock = f", {host.clock_mhz:.0f} MHz" if host.clock_mhz else ""
    governor = f", governor {host.governor}" if host.governor else ""
    return {
        "Timed on": f"{host.cpu}, {host.threads} threads{clock}{governor}, {host.os}",
        "Timed with": ", ".join([host.engine, *(f"{name} {version}" for name, version in host.libraries.items())]),
    }


def _notes(graphs: BuildGraphs, machine: MachineRecord) -> list[str]:
    compiled = machine.compiled.result
    notes = [f"Engine: {compiled.note}."]
    notes += [f"Not reported for this machine: {reason}." for reason in machine.timing.result.after.refused]
    if compiled.check:
        notes.append(f"Parser and builder check by TensorRT for RTX (not the target's engine): {compiled.check}.")
    notes += [
        f"{finding.level.capitalize()}: {finding.what} ({finding.where}): {finding.change}."
        for finding in graphs.checked.result.findings
    ]
    notes += [f"Not scored: {name}: {reason}" for _, name, reason in graphs.scores[1].result.skipped]
    return notes


def _budget_row(line: LimitResult) -> BudgetRow:
    basis: Any = line.basis
    value, limit = line.texts
    name, timed = line.label.capitalize(), line.name == "min_fps"
    return BudgetRow(name, limit, None if line.value is None else value, line.met, basis, timed=timed)


def _latencies(timing: Stage[TimingResult]) -> tuple[FrameLatency, ...]:
    samples = json.loads((timing.path / SAMPLES).read_bytes())
    engine, sides = timing.result.host.engine, timing.result.sides
    moments: tuple[Moment, ...] = ("before", "after")
    return tuple(latency_of(moment, engine, sides[moment], samples[moment]) for moment in moments)


def scored_samples(graphs: BuildGraphs) -> list[Sample]:
    """Return the scored samples, without skipped ones, in the order of the detections; empty without the data."""
    if graphs.scored is None:
        return []
    left_out = {index for index, _, _ in graphs.scores[0].result.skipped}
    return [sample for index, sample in enumerate(graphs.scored.samples) if index not in left_out]


def _pictures(graphs: BuildGraphs) -> list[SamplePicture]:
    """Return a few scored frames, from crowded to nearly empty, with the detections before and after."""
    samples = scored_samples(graphs)
    before, after = (load_detections(score.path / DETECTIONS) for score in graphs.scores)
    crowded_first = sorted((i for i, s in enumerate(samples) if len(s.truth)), key=lambda i: -len(samples[i].truth))
    places = np.linspace(0, len(crowded_first) - 1, PICTURES + 2).astype(int)[1:-1] if crowded_first else ()
    chosen = [crowded_first[place] for place in places]
    pictures = []
    for index in dict.fromkeys(chosen):
        image = read_image(samples[index].image)
        height, width = image.shape[:2]
        truth = samples[index].truth.boxes * np.array([width, height, width, height], np.float32)
        pictures.append(SamplePicture(samples[index].image.name, image, truth, before[index], after[index]))
    return pictures


@dataclass(frozen=True)
class _Weights:
    """The weights of one layer in an ONNX file.

    Args:
        output: The tensor that the layer writes.
        bytes: Length of each initializer by name: the weights or their codes first, then scales and zero points.
    """

    name: str
    output: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    bytes: Mapping[str, int]


def _weights(path: Path) -> list[_Weights]:
    """Return the layers with constant weights, in graph order."""

    graph = Graph(read_model(path))
    rows = []
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        source = graph.producers.get(node.input[1])
        if source is not None and source.op_type == "Transpose":  # of MatMul weights, after DequantizeLinear
            source = graph.producers.get(source.input[0])
        names = list(source.input) if source is not None else [node.input[1]]
        values = {name: value for name in names if (value := graph.constant(name)) is not None}
        if values and len(values) == len(names):
            first = values[names[0]]
            sizes = {name: value.nbytes for name, value in values.items()}
            rows.append(_Weights(node.name, node.output[0], node.op_type, first.shape, str(first.dtype), sizes))
    return rows

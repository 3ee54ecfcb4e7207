"""Stage `analyse`, and the analysis of a build in its report: where accuracy was lost, in detections and in layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgekd.builds.report_data import scored_samples
from edgekd.builds.run import BuildGraphs
from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.builds.stages.quantize import QuantizeResult
from edgekd.builds.stages.recover import TrainedResult
from edgekd.builds.stages.score import DETECTIONS
from edgekd.core.errors import EdgeKDError
from edgekd.core.host_facts import HostFacts
from edgekd.data.images import draw_images, read_image
from edgekd.data.labels import Truth
from edgekd.data.types import Sample
from edgekd.evaluation.analysis import counts
from edgekd.evaluation.analysis.activations import ProbedGraph, attention_maps, similarities
from edgekd.evaluation.analysis.attention import heatmap, outlined, thumbnail
from edgekd.evaluation.analysis.crops import crops_of, kinds_of
from edgekd.evaluation.analysis.matching import Findings, Frame, compare
from edgekd.evaluation.analysis.times import LayerTimes, predicted, profiled
from edgekd.evaluation.analysis.types import Analysis, FrameAttention, GraphSimilarity, LayerAnalysis, LayerAttention
from edgekd.evaluation.evaluate import load_detections, load_shapes
from edgekd.evaluation.report.types import Report
from edgekd.hardware.budget import Basis
from edgekd.hardware.target import Target, to_dict

FRAMES = 8
"""Number of scored images on which layers are compared."""
PICTURED = 4
"""Number of frames whose attention maps are shown: those in which most objects changed."""
ATTENTION = "attention.npz"


@dataclass(frozen=True)
class AnalyseResult(StageResult):
    """Analysis of layers; attention maps are in the file ATTENTION.

    Args:
        frames: Number of images on which layers were compared.
        compared: Similarity of the layers of two graphs.
        times: Times of the layers, before and after.
        maps: For each attention map: index of the scored image, layer, correlation of both networks' maps (None if one
            network lacks the layer).
    """

    frames: int
    compared: tuple[GraphSimilarity, ...]
    times: tuple[LayerTimes, LayerTimes]
    maps: tuple[tuple[int, str, float | None], ...]


ANALYSE = StageKind("analyse", 2, AnalyseResult, ("numpy", "onnx", "onnxruntime", "onnxslim", "opencv-python-headless"))


def analyse(
    context: StageContext,
    graphs: BuildGraphs,
    findings: Findings,
    target: Target | None,
    host: HostFacts,
    frames: int = FRAMES,
) -> Stage[AnalyseResult] | None:
    """Measure similarities and times of layers, and attention maps, in the graphs of a build.

    Args:
        findings: Findings of the same graphs; they select the frames whose attention is shown.
        target: Target to predict times for; None if unknown.
        host: This machine, on which layers are timed if the target cannot be predicted.

    Returns None after a note if a graph cannot be analysed; the build does not fail.
    """
    pairs = _pairs(graphs)
    samples = scored_samples(graphs)

    def work(folder: Path) -> AnalyseResult:
        images = [image for _, image in draw_images(samples, frames, 0)]
        pictured = most_changed(findings, PICTURED)
        shown = [read_image(samples[index].image) for index in pictured]
        attention = list(attention_maps(_looked(graphs.before), _looked(graphs.shipped), shown))
        shades = {f"before{index}": each.before for index, each in enumerate(attention)}
        shades |= {f"after{index}": each.after for index, each in enumerate(attention) if each.after is not None}
        np.savez(folder / ATTENTION, **shades)  # type: ignore[arg-type]
        return AnalyseResult(
            frames=len(images),
            compared=tuple(row for pair in pairs for row in _compared(*pair, images, context)),
            times=_times(graphs, target, host.cpu),
            maps=tuple((pictured[each.frame], each.layer, _short(each.agreement)) for each in attention),
        )

    inputs = {
        "graphs": [[reference.sha256, *(each.sha256 for each in others.values())] for _, reference, others in pairs],
        "ends": [graphs.before.sha256, graphs.shipped.sha256],
        "scores": [score.key for score in graphs.scores],
        "thresholds": asdict(graphs.thresholds),
        "frames": frames,
        "target": to_dict(target) if target else None,
        "host": [host.cpu, host.threads, host.libraries],
    }
    try:
        return context.run(ANALYSE, inputs, work)
    except EdgeKDError as error:
        context.note(f"analyse: {error}")
        return None


def analysed_report(
    report: Report, graphs: BuildGraphs, findings: Findings | None, stage: Stage[AnalyseResult] | None
) -> Report:
    """Return the report with the analysis of detections and of layers.

    findings: Findings of the graphs; None without the data. stage: None without an analysis of layers.
    """
    missing = []
    if findings is None:
        missing.append("detections, and pictures of any kind: they need the images and labels that were scored")
    inside = None if stage is None else inside_of(graphs, stage, findings)
    if inside is None:
        missing.append("similarity of layers, their times and attention: nothing has looked into the networks")
    else:
        unlike = [each.name for each in inside.compared if not each.values]
        missing += [
            f"similarity {name}: no layers of the same names with maps that can be laid on each other"
            for name in unlike
        ]
        inside = replace(inside, compared=tuple(each for each in inside.compared if each.values))
    analysis = None if findings is None else _analysis_of(graphs, findings)
    return replace(report, analysis=analysis, inside=inside, missing=tuple(missing))


def findings_of(graphs: BuildGraphs) -> Findings:
    """Match the detections of both graphs with the labelled objects in the scored images, at the build's thresholds."""
    detections = [load_detections(score.path / DETECTIONS) for score in graphs.scores]
    shapes = load_shapes(graphs.scores[0].path / DETECTIONS)
    frames = [
        Frame(_in_pixels(sample.truth, width, height), before, after)
        for sample, (width, height), before, after in zip(scored_samples(graphs), shapes, *detections, strict=True)
    ]
    return compare(frames, graphs.thresholds.confidence)


def _analysis_of(graphs: BuildGraphs, findings: Findings) -> Analysis:
    classes, thresholds = graphs.after.result.spec.classes, graphs.thresholds.confidence
    return analysis_from(findings, scored_samples(graphs), classes, thresholds)


def analysis_from(
    findings: Findings, samples: Sequence[Sample], classes: tuple[str, ...], thresholds: tuple[float, ...]
) -> Analysis:
    """Return the counts and pictures of findings in samples. Raises DataError if an image cannot be read."""
    return Analysis(
        class_names=classes,
        thresholds=thresholds,
        images=len(samples),
        total=counts.total(findings),
        classes=counts.by_class(findings, classes),
        sizes=counts.by_size(findings),
        reasons=counts.reasons(findings),
        confusions=tuple(counts.confusions(findings)),
        tables=findings.confusion,
        shift=counts.shift_of(findings.objects),
        changes=kinds_of(findings),
        crops=crops_of(findings, samples, classes, thresholds),
    )


def inside_of(graphs: BuildGraphs, stage: Stage[AnalyseResult], findings: Findings | None) -> LayerAnalysis:
    """Return the analysis of layers; with attention maps only if there are findings."""
    result = stage.result
    attention = tuple(_attention(graphs, stage, findings))
    return LayerAnalysis(frames=result.frames, compared=result.compared, times=result.times, attention=attention)


def most_changed(findings: Findings, most: int) -> list[int]:
    """Return the indices of the `most` frames with most objects lost or gained, sorted; ties go to more objects."""
    moved = Counter(each.frame for each in findings.objects if each.outcome in ("lost", "gained"))
    count = Counter(each.frame for each in findings.objects)
    return sorted(sorted(count, key=lambda frame: (-moved[frame], -count[frame], frame))[:most])


def _attention(graphs: BuildGraphs, stage: Stage[AnalyseResult], findings: Findings | None) -> list[FrameAttention]:
    """Return attention maps as overlays on their frames, with lost objects outlined; none without findings."""
    if findings is None:
        return []
    samples = scored_samples(graphs)
    specs = [graph.result.spec.preprocess for graph in (graphs.before, graphs.shipped)]
    layers: dict[int, list[LayerAttention]] = {}
    found = []
    with np.load(stage.path / ATTENTION) as shades:
        for at, (frame, layer, agreement) in enumerate(stage.result.maps):
            image = read_image(samples[frame].image)
            lost = [each.box for each in findings.objects if each.frame == frame and each.outcome == "lost"]
            if frame not in layers:
                layers[frame] = []
                found.append((samples[frame].image.name, outlined(thumbnail(image), lost, image), layers[frame]))
            pair = [
                outlined(heatmap(image, shades[name], how), lost, image) if name in shades else None
                for name, how in zip((f"before{at}", f"after{at}"), specs, strict=True)
            ]
            assert pair[0] is not None, "it is the given detector's own layer"
            layers[frame].append(LayerAttention(layer, pair[0], pair[1], agreement))
    return [FrameAttention(name, picture, tuple(rows)) for name, picture, rows in found]


def _pairs(graphs: BuildGraphs) -> list[tuple[str, GraphStage, dict[str, GraphStage]]]:
    """Return the comparisons: name and graph of the reference, and the graphs compared with it.

    A student or pruned graph, and the graph shipped from it, are compared with the given detector. The shipped graph is
    compared with its float graph, and so is a quantized graph before its training.
    """
    rows = []
    if graphs.floating.key != graphs.before.key:
        rows.append(("given", graphs.before, {"float": graphs.floating, "shipped": graphs.shipped}))
    others: dict[str, GraphStage] = {}
    if isinstance(graphs.after.result, TrainedResult):
        untrained = next(step for step in reversed(graphs.steps) if isinstance(step.result, QuantizeResult))
        others["untrained"] = cast(GraphStage, untrained)
    if graphs.shipped.key != graphs.floating.key:
        others["shipped"] = graphs.shipped
    return [*rows, ("float", graphs.floating, others)] if others else rows


def _compared(
    name: str, reference: GraphStage, others: Mapping[str, GraphStage], frames: Sequence[Any], context: StageContext
) -> list[GraphSimilarity]:
    opened = [_looked(each) for each in others.values()]
    found = similarities(_looked(reference), opened, frames, context.progress)
    return [
        GraphSimilarity(name, other, {layer: _short(value) for layer, value in values.items()})
        for other, values in zip(others, found, strict=True)
    ]


def _times(graphs: BuildGraphs, target: Target | None, cpu: str) -> tuple[LayerTimes, LayerTimes]:
    """Return the times of layers before and after: both predicted for the target, else both measured here."""
    here = target is not None and target.kind == "cpu"
    if target is not None and not here:
        before, after = (predicted(graph.path / GRAPH, target) for graph in (graphs.before, graphs.shipped))
        if before is not None and after is not None:
            return before, after
    basis: Basis = "measured" if here else "stand-in"
    before, after = (profiled(graph.path / GRAPH, basis, cpu) for graph in (graphs.before, graphs.shipped))
    return before, after


def _looked(graph: GraphStage) -> ProbedGraph:
    return ProbedGraph(graph.path / GRAPH, graph.result.spec)


def _in_pixels(truth: Truth, width: int, height: int) -> Truth:
    scale = np.array([width, height, width, height], np.float32)
    return Truth(truth.boxes * scale, truth.classes, truth.crowd)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)

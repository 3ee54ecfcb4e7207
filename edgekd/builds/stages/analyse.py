"""Why and where a build lost accuracy, in detections and in layers: a stage of every build, and part of its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.builds.report_data import Parts, scored_samples
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import DETECTIONS, GRAPH, Stages, spec_of
from edgekd.core.errors import EdgeKDError
from edgekd.data.images import drawn, read_image
from edgekd.data.labels import Truth
from edgekd.data.types import Sample
from edgekd.evaluation.analysis import counts
from edgekd.evaluation.analysis.activations import ProbedGraph, attention_maps, similarities
from edgekd.evaluation.analysis.crops import crops_of, kinds_of
from edgekd.evaluation.analysis.heatmaps import heatmap, outlined, thumbnail
from edgekd.evaluation.analysis.matching import Findings, Frame, compare
from edgekd.evaluation.analysis.times import LayerTimes, predicted, profiled
from edgekd.evaluation.analysis.types import Analysis, FrameAttention, GraphSimilarity, LayerAnalysis, LayerAttention
from edgekd.evaluation.evaluate import load_detections, load_shapes
from edgekd.evaluation.report.types import Report
from edgekd.hardware.target import to_dict

FRAMES = 8
"""Scored images on which layers are compared."""
PICTURED = 4
"""Frames whose maps of attention are shown: those in which most has changed."""
SHADES = "attention.npz"


def analyse(parts: Parts, findings: Findings, stages: Stages, timing: Stage, frames: int = FRAMES) -> Stage | None:
    """Look into the graphs of a build: similarity and times of layers, maps of attention.

    findings: of the same parts; they say which frames are pictured. timing: names the machine that layers are timed on
    where the target cannot be predicted. Results: `frames`, `compared`, `times`, `maps`. None, and a note, where one of
    the graphs cannot be looked into: no build fails by that.
    """
    pairs = _pairs(parts)
    samples = scored_samples(parts)
    host = timing.results["host"]

    def work(folder: Path) -> Mapping[str, Any]:
        looked = [image for _, image in drawn(samples, frames, 0)]
        pictured = most_changed(findings, PICTURED)
        images = [read_image(samples[at].image) for at in pictured]
        seen = list(attention_maps(_looked(parts.before), _looked(parts.shipped), images))
        shades = {f"before{at}": each.before for at, each in enumerate(seen)}
        shades |= {f"after{at}": each.after for at, each in enumerate(seen) if each.after is not None}
        np.savez(folder / SHADES, **shades)  # type: ignore[arg-type]
        return {
            "frames": len(looked),
            "compared": [row for pair in pairs for row in _compared(*pair, looked, stages)],
            "times": _times(parts, host),
            "maps": [[pictured[each.frame], each.layer, _short(each.agreement)] for each in seen],
        }

    inputs = {
        "graphs": [[reference.sha256, *(each.sha256 for each in others.values())] for _, reference, others in pairs],
        "ends": [parts.before.sha256, parts.shipped.sha256],
        "scores": [score.key for score in parts.scores],
        "thresholds": asdict(parts.thresholds),
        "frames": frames,
        "target": to_dict(parts.target) if parts.target else None,
        "host": [host[name] for name in ("cpu", "threads", "libraries")],
    }
    try:
        return stages.run("analyse", inputs, work)
    except EdgeKDError as error:
        stages.note(f"analyse: {error}")
        return None


def analysed_report(report: Report, parts: Parts, findings: Findings | None, stage: Stage | None) -> Report:
    """The report with the analysis of its detections, and with what `analyse` has seen inside the networks.

    findings: of the parts; None where the data is not at hand.
    """
    missing = []
    if findings is None:
        missing.append("detections, and pictures of any kind: they need the images and labels that were scored")
    inside = None if stage is None else inside_of(parts, stage, findings)
    if inside is None:
        missing.append("similarity of layers, their times and attention: nothing has looked into the networks")
    else:
        strangers = [each.name for each in inside.compared if not each.values]
        missing += [
            f"similarity {name}: no layers of the same names with maps that can be laid on each other"
            for name in strangers
        ]
        inside = replace(inside, compared=tuple(each for each in inside.compared if each.values))
    analysis = None if findings is None else _analysis_of(parts, findings)
    return replace(report, analysis=analysis, inside=inside, missing=tuple(missing))


def findings_of(parts: Parts) -> Findings:
    """What both graphs make of every labelled object in the scored images, as a camera would count it."""
    found = [load_detections(score.path / DETECTIONS) for score in parts.scores]
    shapes = load_shapes(parts.scores[0].path / DETECTIONS)
    frames = [
        Frame(_in_pixels(sample.truth, width, height), before, after)
        for sample, (width, height), before, after in zip(scored_samples(parts), shapes, *found, strict=True)
    ]
    return compare(frames, parts.thresholds.confidence)


def _analysis_of(parts: Parts, findings: Findings) -> Analysis:
    classes, thresholds = spec_of(parts.after).classes, parts.thresholds.confidence
    return analysis_from(findings, scored_samples(parts), classes, thresholds)


def analysis_from(
    findings: Findings, samples: Sequence[Sample], classes: tuple[str, ...], thresholds: tuple[float, ...]
) -> Analysis:
    """Findings in these samples, counted and pictured. Raises DataError where an image cannot be read."""
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


def inside_of(parts: Parts, stage: Stage, findings: Findings | None) -> LayerAnalysis:
    """What `analyse` has seen; maps of attention only where the data is at hand, and with it the findings."""
    results = stage.results
    times = [LayerTimes(**each) for each in results["times"]]
    return LayerAnalysis(
        frames=results["frames"],
        compared=tuple(GraphSimilarity(**each) for each in results["compared"]),
        times=(times[0], times[1]),
        attention=tuple(_attention(parts, stage, findings)),
    )


def most_changed(findings: Findings, most: int) -> list[int]:
    """The frames in which most objects were lost and gained; those with most objects where few were."""
    moved = Counter(each.frame for each in findings.objects if each.outcome in ("lost", "gained"))
    there = Counter(each.frame for each in findings.objects)
    return sorted(sorted(there, key=lambda frame: (-moved[frame], -there[frame], frame))[:most])


def _attention(parts: Parts, stage: Stage, findings: Findings | None) -> list[FrameAttention]:
    """Maps over the frames that they are of, with the objects that were lost; none without the data."""
    if findings is None:
        return []
    samples = scored_samples(parts)
    specs = [spec_of(graph).preprocess for graph in (parts.before, parts.shipped)]
    layers: dict[int, list[LayerAttention]] = {}
    found = []
    with np.load(stage.path / SHADES) as shades:
        for at, (frame, layer, agreement) in enumerate(stage.results["maps"]):
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


def _pairs(parts: Parts) -> list[tuple[str, Stage, dict[str, Stage]]]:
    """What is compared with what: a student with the given detector, and what ships with the float graph it is of.

    Of a quantized graph that was trained also what it was before.
    """
    rows = []
    if parts.floating.key != parts.before.key:
        rows.append(("given", parts.before, {"float": parts.floating, "shipped": parts.shipped}))
    others: dict[str, Stage] = {}
    if parts.after.name == "quant_aware_distill":
        others["untrained"] = next(stage for stage in reversed(parts.steps) if stage.name == "quantize")
    if parts.shipped.key != parts.floating.key:
        others["shipped"] = parts.shipped
    return [*rows, ("float", parts.floating, others)] if others else rows


def _compared(
    name: str, reference: Stage, others: Mapping[str, Stage], frames: Sequence[Any], stages: Stages
) -> list[dict[str, Any]]:
    found = similarities(_looked(reference), [_looked(each) for each in others.values()], frames, stages.progress)
    return [
        {"reference": name, "other": other, "values": {layer: _short(value) for layer, value in values.items()}}
        for other, values in zip(others, found, strict=True)
    ]


def _times(parts: Parts, host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What layers take before and after: on the target, as predicted, or else here; both in the same way."""
    graphs, target = (parts.before, parts.shipped), parts.target
    here = target is not None and target.kind == "cpu"
    if target is not None and not here:
        told = [predicted(graph.path / GRAPH, target) for graph in graphs]
        if None not in told:
            return [asdict(each) for each in told if each is not None]
    basis, cpu = "measured" if here else "stand-in", str(host["cpu"])
    shapes = [(1, 3, how.height, how.width) for how in (spec_of(graph).preprocess for graph in graphs)]
    found = (profiled(graph.path / GRAPH, shape, basis, cpu) for graph, shape in zip(graphs, shapes, strict=True))
    return [asdict(each) for each in found]


def _looked(graph: Stage) -> ProbedGraph:
    return ProbedGraph(graph.path / GRAPH, spec_of(graph))


def _in_pixels(truth: Truth, width: int, height: int) -> Truth:
    scale = np.array([width, height, width, height], np.float32)
    return Truth(truth.boxes * scale, truth.classes, truth.crowd)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)

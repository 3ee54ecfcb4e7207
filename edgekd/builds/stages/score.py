"""Stage `score`: COCO scores on labelled images, and the detections there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.data.types import Split
from edgekd.evaluation.coco import Score
from edgekd.evaluation.evaluate import evaluate, save_detections

SCORED = "val"
"""The split that is scored; nothing is chosen, calibrated or trained on it."""
DETECTIONS = "detections.npz"
KEPT_CONFIDENCE = 0.01
"""Minimum confidence of stored detections: far below a camera's threshold, to show near misses."""


@dataclass(frozen=True)
class ScoreResult(Score, StageResult):
    """The scores of a graph, whose detections are in the file DETECTIONS.

    Args:
        skipped: Unreadable images: index in the split, name of the file, reason.
    """

    skipped: tuple[tuple[int, str, str], ...]


SCORE = StageKind("score", 3, ScoreResult, ("faster-coco-eval", "numpy", "onnxruntime", "opencv-python-headless"))


def run(context: StageContext, graph: GraphStage, split: Split, data: str, precision: str) -> Stage[ScoreResult]:
    """Score a graph; data: the fingerprint of the split. Raises DataError."""

    def work(folder: Path) -> ScoreResult:
        found = evaluate(graph.path / GRAPH, graph.result.spec, split, context.progress, f"score {precision}")
        shapes = [(width, height) for _, width, height in found.truths]
        save_detections(
            folder / DETECTIONS, [one.only(one.scores >= KEPT_CONFIDENCE) for one in found.detections], shapes
        )
        reasons = dict(found.skipped)
        images = [(index, sample.image) for index, sample in enumerate(split.samples)]
        skipped = tuple((index, image.name, reasons[image]) for index, image in images if image in reasons)
        return ScoreResult(**vars(found.score), skipped=skipped)

    return context.run(SCORE, {"graph": graph.sha256, "data": data}, work, label=precision)

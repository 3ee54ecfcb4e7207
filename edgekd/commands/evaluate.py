"""`edgekd eval`: COCO's metrics of an artifact as it ships."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgekd.commands.options import Data, Head, Split, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.core.documents import INLINE, INTERNAL, Result
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.long_tail import rare_classes
from edgekd.deploy.artifact import runnable
from edgekd.evaluation.coco import Score, TailScore, tail_score
from edgekd.evaluation.evaluate import evaluate


@dataclass(frozen=True)
class Scored(Result):
    """COCO scores of an artifact on one split.

    Args:
        tail: Scores of the rare classes; null without --tail.
        seconds: Wall time of the whole command: reading, exporting a checkpoint, inference, scoring.
        skipped: Images that could not be read and were left out.
        reasons: The reason for each skipped image.
    """

    score: Score = field(metadata=INLINE)
    tail: TailScore | None
    seconds: float
    skipped: tuple[Path, ...]
    reasons: tuple[str, ...] = field(metadata=INTERNAL)

    @property
    def map50_95(self) -> float:
        """COCO's mean average precision at IoU 0.50 to 0.95, 0 to 1."""
        return self.score.map50_95

    @property
    def map50(self) -> float:
        """COCO's mean average precision at IoU 0.50, 0 to 1."""
        return self.score.map50


def score_model(
    artifact: Annotated[str | Path, Argument("A .pt, .onnx, .packed, .edgekd bundle or converted folder.")],
    data: Data,
    *,
    split: Split = "val",
    tail: Annotated[
        float | None,
        Option("Also score the classes with less than this share of the training objects.", minimum=0, maximum=1),
    ] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Scored:
    """Score an artifact on a labelled split, as it ships: preprocessing, network, decoding and NMS. Scores are 0 to 1.

    Raises SpecError, DataError if classes differ or too many images are unreadable, DeviceError if the graph cannot
    run, BundleError. The command: `edgekd eval`. The metrics are computed by faster-coco-eval; differences to
    Ultralytics are in bench/results/scorer_agreement.md.
    """
    began = time.perf_counter()
    dataset = load_dataset(Path(data))
    rare = () if tail is None else rare_classes(dataset.split("train"), dataset.classes, tail)
    with runnable(Path(artifact), head, dataset.classes, trust_checkpoint) as (graph, spec, engine):
        require_classes(spec, dataset)
        found = evaluate(graph, spec, dataset.split(split, spec.head.task), progress, engine=engine)
    tails = None if tail is None else tail_score(found.score.per_class, rare, tail)
    images, reasons = zip(*found.skipped, strict=True) if found.skipped else ((), ())
    return Scored(found.score, tails, time.perf_counter() - began, images, reasons)

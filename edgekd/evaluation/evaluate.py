"""Evaluation of a graph on a labelled split: detections and their COCO score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekd.core.detection.decode import SCORING, Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections, DetectorSpec, Head
from edgekd.core.progress import SILENT, Progress
from edgekd.data.images import Image, ReadableImages
from edgekd.data.labels import Truth
from edgekd.data.types import Split
from edgekd.evaluation.coco import Score, score
from edgekd.evaluation.masks import Code, codes_of
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.types import HostRuntime


@dataclass(frozen=True)
class Evaluation:
    """The result on a split: score, images in order, their detections, and skipped files.

    truths: of each image, as `edgekd.evaluation.coco.score` takes them: its labels, and its width and height in pixels.
    """

    score: Score
    images: tuple[Path, ...]
    detections: tuple[Detections, ...]
    truths: tuple[tuple[Truth, int, int], ...]
    skipped: tuple[tuple[Path, str], ...]


@contextmanager
def finder(
    graph: Path, spec: DetectorSpec, thresholds: Thresholds, engine: HostRuntime = ONNXRUNTIME_CPU
) -> Iterator[Callable[[Image], Detections]]:
    """Open a graph as a detector of frames uint8 [h, w, 3] BGR, with its preprocessing, decoding and NMS.

    Raises DeviceError where the graph cannot run.
    """
    with engine.load(graph) as session:

        def find(frame: Image) -> Detections:
            batch, placement = letterbox(frame, spec.preprocess)
            return decode(session.run(batch), spec, placement, thresholds)

        yield find


def evaluate(
    graph: Path,
    spec: DetectorSpec,
    split: Split,
    progress: Progress = SILENT,
    label: str = "score",
    engine: HostRuntime = ONNXRUNTIME_CPU,
) -> Evaluation:
    """Score a graph on every readable image of a split.

    Raises DataError where too many images are unreadable, DeviceError where the graph cannot run.
    """
    with finder(graph, spec, SCORING, engine) as find:
        return judge(find, spec.classes, split, progress, label, spec.head)


def judge(
    find: Callable[[Image], Detections],
    classes: Sequence[str],
    split: Split,
    progress: Progress = SILENT,
    label: str = "score",
    head: Head | None = None,
) -> Evaluation:
    """Score a detector of these classes and this head as `evaluate` scores graphs. Raises DataError."""
    readable = ReadableImages(split.samples, progress, label=label)
    images: list[Path] = []
    detections: list[Detections] = []
    truths: list[tuple[Truth, int, int]] = []
    masks: list[list[Code]] = []
    for sample, image in readable:
        found = find(image)
        if found.masks is not None:  # stored as run-length codes: the arrays take megabytes per image
            masks.append(codes_of(found.masks))
        detections.append(replace(found, masks=None))
        images.append(sample.image)
        truths.append((sample.truth, image.shape[1], image.shape[0]))
    return Evaluation(
        score=score(detections, truths, classes, head, masks),
        images=tuple(images),
        detections=tuple(detections),
        truths=tuple(truths),
        skipped=tuple(readable.skipped),
    )


def save_detections(path: Path, detections: Sequence[Detections], shapes: Sequence[tuple[int, int]] = ()) -> None:
    """Write the detections of several images, and the widths and heights of these, into one uncompressed `.npz`.

    Keypoints, rotated boxes and masks are left out: the report's counts, pictures and score changes use boxes only.
    """
    np.savez(
        path,
        shapes=np.array(shapes, np.int64).reshape(-1, 2),
        ends=np.cumsum([len(image) for image in detections], dtype=np.int64),
        boxes=np.concatenate([image.boxes for image in detections]),
        scores=np.concatenate([image.scores for image in detections]),
        classes=np.concatenate([image.classes for image in detections]),
    )


def load_detections(path: Path) -> list[Detections]:
    """Return the detections of each image in a file of `save_detections`."""
    with np.load(path) as saved:
        parts = [np.split(saved[name], saved["ends"][:-1]) for name in ("boxes", "scores", "classes")]
    return [Detections(boxes, scores, classes) for boxes, scores, classes in zip(*parts, strict=True)]


def load_shapes(path: Path) -> np.ndarray:
    """Read the width and height in pixels of each image, int64 [n, 2], as `save_detections` wrote them."""
    with np.load(path) as saved:
        shapes: np.ndarray = saved["shapes"]
    return shapes

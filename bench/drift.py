"""Measure the drift alarm: delay for fog, noise, low light and blur, false alarms, and cost per frame.

The reference comes from the training split. Streams are drawn from another split, clean or with one corruption. Needs
`edgekd[train]`.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from common import exported
from corruptions import CORRUPTIONS, SEVERITIES, corrupted
from frame import IMAGES, Blocks, Document, Given, Option, Result, cell, head, main, note, table

from edgekd.builds.stages.drift_reference import statistics
from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.core.detection import decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections, DetectorSpec, Preprocess
from edgekd.core.drift import ALARM, STATISTICS, STREAM, WINDOW, DriftRecord, Monitor, record_of, statistics_of
from edgekd.data.dataset import load_dataset
from edgekd.data.images import ReadableImages
from edgekd.data.types import Sample
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.types import Session

MODELS = ("yolo11n.pt=coco256=val", "yolo11n-ppe.pt=ppe=val", "yolo11n-ppe.pt=ppe=test")
SEED = 0
CLEAN = "as it is"
NOTICED = 3  # goal: an alarm in every stream from this severity on
LIMIT_MS = 0.2


def seen(
    session: Session,
    spec: DetectorSpec,
    thresholds: DetectionThresholds,
    samples: Sequence[Sample],
    kind: str,
    level: int,
) -> np.ndarray:
    """Return the drift statistics of images, clean or corrupted: an array [images, statistics]."""
    found = []
    for number, (_, image) in enumerate(ReadableImages(samples)):
        frame = image if kind == CLEAN else corrupted(image, kind, level, number)
        batch, placement = letterbox(frame, spec.preprocess)
        detections = decode.decode_by_class(session.run(batch), spec, placement, thresholds)
        found.append(statistics_of(batch, placement, spec.preprocess, detections))
    return np.array(found)


def alarms(record: DriftRecord, found: np.ndarray, streams: int) -> list[int]:
    """Return the number of frames until the alarm, ascending, for the random streams that raise one."""
    rng = np.random.default_rng(SEED)
    first = (first_alarm(record, found[rng.integers(0, len(found), STREAM)]) for _ in range(streams))
    return sorted(each for each in first if each is not None)


def first_alarm(record: DriftRecord, stream: np.ndarray) -> int | None:
    drifts = map(Monitor(record).add, stream)
    return next((number for number, drift in enumerate(drifts, 1) if drift and drift.drifted), None)


def rows_of(given: Given, case: str) -> Iterator[Document]:
    model, data, name = case.split("=")
    dataset = load_dataset(given.shared / "data" / data)
    graph = given.scratch / f"{Path(model).stem}.onnx"
    spec = exported(given.shared / "models" / model, graph).spec
    usual = decode.Thresholds()
    thresholds = DetectionThresholds((usual.confidence,) * len(spec.classes), usual.iou, usual.max_detections)
    record = record_of(statistics(graph, spec, thresholds, dataset.split("train")))
    samples = dataset.split(name).samples[: given.images]
    with ONNXRUNTIME_CPU.load(graph) as session:
        for kind, level in [(CLEAN, 0), *((kind, level) for kind in CORRUPTIONS for level in SEVERITIES)]:
            found = seen(session, spec, thresholds, samples, kind, level)
            after = alarms(record, found, given.streams)
            moved = np.abs(record.normal(found).mean(axis=0) - np.array(record.mean))
            row = Document(model=model, data=f"{data} {name}", images=len(found), seen=kind, severity=level)
            row.update(streams=given.streams, alarms=len(after), frames=float(np.median(after)) if after else None)
            yield Document(row, most_frames=after[-1] if after else None, moved=STATISTICS[int(moved.argmax())])
            note(f"{case} {kind} {level}: {len(after)} of {given.streams}")


def cost_ms(rounds: int = 500) -> dict[str, float]:
    """Return median milliseconds per frame by part, on one core, for a 16:9 frame in an input of 640 x 640."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(SEED)
    preprocess = Preprocess(640, 640)
    batch, placement = letterbox(rng.integers(0, 256, (1080, 1920, 3), np.uint8), preprocess)
    found = Detections(np.zeros((9, 4), np.float32), np.full(9, 0.5, np.float32), np.zeros(9, np.int64))
    monitor = Monitor(record_of(rng.normal(size=(128, len(STATISTICS)))))
    parts: dict[str, list[float]] = {"statistics": [], "comparison": []}
    for _ in range(rounds):
        began = time.perf_counter()
        row = statistics_of(batch, placement, preprocess, found)
        between = time.perf_counter()
        monitor.add(row)
        parts["statistics"].append(between - began)
        parts["comparison"].append(time.perf_counter() - between)
    return {name: 1000 * float(np.median(each)) for name, each in parts.items()}


def page(found: Document) -> Blocks:
    yield from head("Detection of drift: delay and false alarms", found)
    yield f"""\
Alarms in {found.streams} streams of {STREAM} frames, by windows of {WINDOW}; after how many frames,
median and most; the statistic that moved farthest. Records are of training images. Goals:
at most {ALARM:.0%} where frames are as they are, every stream from severity {NOTICED} on."""
    yield table(
        "model | frames of | condition | alarms | after | at most | moved",
        (
            f"{row.model} | {row.data} | {f'{row.seen}, {row.severity}' if row.severity else row.seen} | "
            f"{row.alarms / row.streams:.1%} | {cell(row.frames, '.0f', '-')} | {cell(row.most_frames, '', '-')} | "
            f"{row.moved}"
            for row in found.rows
        ),
    )
    cost = found.cost_ms
    yield f"""\
On one core a frame that is looked at costs {sum(cost.values()):.3f} ms:
statistics {cost.statistics:.3f}, comparison {cost.comparison:.3f}; medians (limit {LIMIT_MS} ms)."""


def reached(found: Document) -> bool:
    clean = [row.alarms / row.streams for row in found.rows if not row.severity]
    wanted = [row.alarms == row.streams for row in found.rows if row.severity >= NOTICED]
    return max(clean) <= ALARM and all(wanted) and sum(found.cost_ms.values()) <= LIMIT_MS


def run(given: Given) -> Result:
    cost = cost_ms()
    rows = [row for case in given.models for row in rows_of(given, case)]
    return {"cost_ms": cost, "rows": rows}


if __name__ == "__main__":
    options = (Option("--models", MODELS, metavar="FILE.pt=DATA=SPLIT"), IMAGES, Option("--streams", 1000))
    main(run, page, *options, holds=reached)

"""How soon a camera notices fog, noise, low light and blur, how often it is wrong, and what watching costs a frame.

The record is made of training images, as a build makes it. Streams of 200 frames are drawn from images of another
split, as they are, or all of them under one of the corruptions of `corruptions.py` at one severity. An alarm where they
are as they are is false. The cost is timed on one core, of the statistics and of the comparison.

    python bench/drift.py [--models FILE.pt=DATA=SPLIT ...] [--images N] [--streams N]

The environment needs `edgekd[train]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results
from corruptions import CORRUPTIONS, SEVERITIES, corrupted

from edgekd.builds.stages.drift_reference import statistics
from edgekd.core.bundle.manifest import Thresholds
from edgekd.core.detection import decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections, DetectorSpec, Preprocess
from edgekd.core.drift import ALARM, STATISTICS, STREAM, WINDOW, Monitor, Record, record_of, statistics_of
from edgekd.data.dataset import load_dataset
from edgekd.data.images import ReadableImages
from edgekd.data.types import Split
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.types import Session

MODELS = ("yolo11n.pt=coco256=val", "yolo11n-ppe.pt=ppe=val", "yolo11n-ppe.pt=ppe=test")
OPSET, SEED, CLEAN = 17, 0, "as it is"
NOTICED = 3
"""From this severity on an alarm is wanted in every stream."""
LIMIT_MS = 0.2


def seen(
    session: Session,
    spec: DetectorSpec,
    thresholds: Thresholds,
    split: Split,
    images: int | None,
    kind: str,
    level: int,
) -> np.ndarray:
    """The statistics of a split's images, as they are or corrupted."""
    found = []
    for number, (_, image) in enumerate(ReadableImages(split.samples[:images])):
        frame = image if kind == CLEAN else corrupted(image, kind, level, number)
        batch, at = letterbox(frame, spec.preprocess)
        there = decode.decode_by_class(session.run(batch), spec, at, thresholds)
        found.append(statistics_of(batch, at, spec.preprocess, there))
    return np.array(found)


def alarms(record: Record, found: np.ndarray, streams: int) -> list[int | None]:
    """Of each stream after how many frames it is called drifted; None where it is not."""
    rng = np.random.default_rng(SEED)
    return [first_alarm(record, found[rng.integers(0, len(found), STREAM)]) for _ in range(streams)]


def first_alarm(record: Record, stream: np.ndarray) -> int | None:
    """After how many frames of a stream it is called drifted."""
    monitor = Monitor(record)
    for number, row in enumerate(stream, 1):
        drift = monitor.add(row)
        if drift and drift.drifted:
            return number
    return None


def rows_of(given: argparse.Namespace, told: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for the images as they are, and one for each corruption and severity."""
    model, data, name = told.split("=")
    dataset = load_dataset(given.shared / "data" / data)
    graph = folder / f"{Path(model).stem}.onnx"
    spec = export(load(given.shared / "models" / model), graph, OPSET).spec
    usual = decode.Thresholds()
    thresholds = Thresholds((usual.confidence,) * len(spec.classes), usual.iou, usual.max_detections)
    record = record_of(statistics(graph, spec, thresholds, dataset.split("train")))
    with ONNXRUNTIME_CPU.load(graph) as session:
        for kind, level in [(CLEAN, 0), *((kind, level) for kind in CORRUPTIONS for level in SEVERITIES)]:
            found = seen(session, spec, thresholds, dataset.split(name), given.images, kind, level)
            when = alarms(record, found, given.streams)
            after = sorted(each for each in when if each is not None)
            moved = np.abs(record.normal(found).mean(axis=0) - np.array(record.mean))
            yield {
                "model": model,
                "data": f"{data} {name}",
                "images": len(found),
                "seen": kind,
                "severity": level,
                "streams": given.streams,
                "alarms": len(after),
                "frames": float(np.median(after)) if after else None,
                "most_frames": after[-1] if after else None,
                "moved": STATISTICS[int(moved.argmax())],
            }
            print(f"{told} {kind} {level}: {len(after)} of {given.streams}", file=sys.stderr, flush=True)


def cost_ms(rounds: int = 500) -> dict[str, float]:
    """Medians on one core, for an input of 640 x 640 with a frame of 16:9 in it."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(SEED)
    how = Preprocess(640, 640)
    batch, at = letterbox(rng.integers(0, 256, (1080, 1920, 3), np.uint8), how)
    found = Detections(np.zeros((9, 4), np.float32), np.full(9, 0.5, np.float32), np.zeros(9, np.int64))
    monitor = Monitor(record_of(rng.normal(size=(128, len(STATISTICS)))))
    parts: dict[str, list[float]] = {"statistics": [], "comparison": []}
    for _ in range(rounds):
        began = time.perf_counter()
        row = statistics_of(batch, at, how, found)
        between = time.perf_counter()
        monitor.add(row)
        parts["statistics"].append(between - began)
        parts["comparison"].append(time.perf_counter() - between)
    return {name: 1000 * float(np.median(each)) for name, each in parts.items()}


def page(found: dict[str, Any]) -> list[str]:
    """The document as a page."""
    rows = found["rows"]
    cells = [
        [
            row["model"],
            row["data"],
            row["seen"] if not row["severity"] else f"{row['seen']}, {row['severity']}",
            f"{row['alarms'] / row['streams']:.1%}",
            "-" if row["frames"] is None else f"{row['frames']:.0f}",
            "-" if row["most_frames"] is None else str(row["most_frames"]),
            row["moved"],
        ]
        for row in rows
    ]
    cost = found["cost_ms"]
    return [
        "# How soon drift is noticed",
        "",
        f"`{found['command']}`",
        "",
        f"Alarms in {found['streams']} streams of {STREAM} frames, by windows of {WINDOW}; after how many frames,",
        "median and most; what moved farthest. Records are of training images. Aimed at:",
        f"at most {ALARM:.0%} where frames are as they are, every stream from severity {NOTICED} on.",
        "",
        *table(["model", "frames of", "seen", "alarms", "after", "at most", "moved"], cells),
        "",
        f"On one core a frame that is looked at costs {sum(cost.values()):.3f} ms:",
        f"statistics {cost['statistics']:.3f}, comparison {cost['comparison']:.3f}; medians (limit {LIMIT_MS} ms).",
        "",
        *conditions_lines(found),
    ]


def reached(found: dict[str, Any]) -> bool:
    """Whether all that is aimed at holds."""
    clean = [row["alarms"] / row["streams"] for row in found["rows"] if not row["severity"]]
    wanted = [row["alarms"] == row["streams"] for row in found["rows"] if row["severity"] >= NOTICED]
    return max(clean) <= ALARM and all(wanted) and sum(found["cost_ms"].values()) <= LIMIT_MS


def main() -> int:
    """0 where all that is aimed at holds, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="FILE.pt=DATA=SPLIT")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--out", type=Path, default=RESULTS / "drift.json")
    given = parser.parse_args()
    use_cores(given.threads)
    command = f"python bench/drift.py --models {' '.join(given.models)} --streams {given.streams}"
    found: dict[str, Any] = {
        "command": command + (f" --images {given.images}" if given.images else ""),
        "streams": given.streams,
        **conditions(given.threads),
        "cost_ms": cost_ms(),
    }
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        found["rows"] = [row for told in given.models for row in rows_of(given, told, Path(folder))]
    write_results(given.out, found, page(found))
    return 0 if reached(found) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Where edgekd's scores and Ultralytics' `val` differ on one graph: in the detections, or in the metric.

The same ONNX graph is scored by edgekd and by Ultralytics' `val` (batch 1, `rect=False`). Ultralytics computes average
precision in its own way; its detections are therefore also scored with COCO's metric, as edgekd's are. What is left
then is the difference between the two pipelines: letterbox, decoding and NMS.

    python bench/scorer_agreement.py [--shared FOLDER] [--images N]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    RESULTS,
    SHARED,
    conditions,
    conditions_lines,
    copy_data,
    table,
    ultralytics_environment,
    write_results,
)

from edgekd.compress.quantization.quantize import quantize
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.data.types import Dataset
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.evaluation.coco import score
from edgekd.evaluation.evaluate import evaluate

MODELS = ("yolo11n.pt", "yolo26n.pt")
LIMIT = 0.005


def by_coco(predictions: Path, data: Dataset) -> float:
    """mAP50-95 of Ultralytics' `predictions.json`, whose categories count from 1, with COCO's metric."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in json.loads(predictions.read_text()):
        found.setdefault(int(row["image_id"]), []).append(row)
    detections, truths = [], []
    for sample in data.split("val").samples:
        rows = found.get(int(sample.image.stem), [])
        boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([row["score"] for row in rows], np.float32)
        detections.append(Detections(boxes, scores, np.array([row["category_id"] - 1 for row in rows], np.int64)))
        height, width = read_image(sample.image).shape[:2]
        truths.append((sample.truth, width, height))
    return score(detections, truths, data.classes).map50_95


def row_of(graph: Path, spec: Any, data: Dataset, folder: Path) -> dict[str, float]:
    """The three scores of one graph."""
    from ultralytics import YOLO

    out = folder / f"val-{graph.stem}"
    settings = {"batch": 1, "rect": False, "device": "cpu", "plots": False, "verbose": False, "workers": 0}
    with redirect_stdout(sys.stderr):
        box = (
            YOLO(str(graph), task="detect")
            .val(
                data=str(data.source),
                imgsz=spec.preprocess.height,
                save_json=True,
                project=str(out),
                name="val",
                **settings,
            )
            .box
        )
    return {
        "edgekd": evaluate(graph, spec, data.split("val")).score.map50_95,
        "ultralytics": float(box.map),
        "ultralytics_detections_by_coco": by_coco(next(out.rglob("predictions.json")), data),
    }


def measure(shared: Path, images: int | None, folder: Path) -> list[dict[str, Any]]:
    """Float and INT8 graphs of each model."""
    os.environ.update(ultralytics_environment(folder / "settings"))
    data = load_dataset(copy_data(shared / "data/coco256", folder / "data", images))
    rows = []
    for model in MODELS:
        stem = Path(model).stem
        exact, int8 = folder / f"{stem}-float32.onnx", folder / f"{stem}-int8.onnx"
        spec = export(load(shared / "models" / model), exact, 17).spec
        frames = (letterbox(read_image(s.image), spec.preprocess)[0] for s in data.split("train").samples)
        quantize(exact, int8, frames)
        for graph in (exact, int8):
            rows.append({"graph": graph.stem, **row_of(graph, spec, data, folder)})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--images", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "scorer_agreement.json")
    args = parser.parse_args()
    found: dict[str, Any] = {"command": "python bench/scorer_agreement.py", **conditions(2)}
    with tempfile.TemporaryDirectory() as folder:
        found["rows"] = measure(args.shared.resolve(), args.images, Path(folder))
    names = ("edgekd", "ultralytics", "ultralytics_detections_by_coco")
    lines = [
        [r["graph"], *(f"{r[n]:.4f}" for n in names), *(f"{r['edgekd'] - r[n]:+.4f}" for n in names[1:])]
        for r in found["rows"]
    ]
    worst = max(abs(r["edgekd"] - r["ultralytics_detections_by_coco"]) for r in found["rows"])
    head = ["graph", "edgekd", "Ultralytics `val`", "its detections, COCO metric", "difference", "same metric"]
    page = ["# One graph, two scorers: mAP50-95", "", f"`{found['command']}`", "", *table(head, lines), ""]
    page += [
        f"With one metric the pipelines are at most {worst:.4f} apart (limit {LIMIT}).",
        "",
        *conditions_lines(found),
    ]
    write_results(args.out, found, page)
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

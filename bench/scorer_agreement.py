"""Measure whether edgekd's scores and Ultralytics' `val` differ because of the detections or of the metric.

Ultralytics computes average precision differently. So its detections (batch 1, `rect=False`) are also scored with
COCO's metric. The remaining difference is that of the pipelines: letterbox, decoding and NMS.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from common import Detector, copy_data, exported, images_of, ultralytics_environment
from frame import IMAGES, Blocks, Document, Given, Result, head, main, note, table

from edgekd.core.detection.types import Detections
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.data.types import Dataset
from edgekd.evaluation.coco import score

MODELS = ("yolo11n.pt", "yolo26n.pt")
OTHERS = ("ultralytics", "ultralytics_detections_by_coco")
LIMIT = 0.005


def by_coco(predictions: Path, data: Dataset) -> float:
    """Return mAP50-95 by COCO's metric of Ultralytics' `predictions.json`, whose category ids start at 1."""
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


def row_of(detector: Detector, data: Dataset, folder: Path) -> dict[str, float]:
    from ultralytics import YOLO

    graph, spec = detector.graph, detector.spec
    out = folder / f"val-{graph.stem}"
    settings = {"batch": 1, "rect": False, "device": "cpu", "plots": False, "verbose": False, "workers": 0}
    settings |= {"imgsz": spec.preprocess.height, "save_json": True, "project": str(out), "name": "val"}
    with redirect_stdout(sys.stderr):
        box = YOLO(str(graph), task="detect").val(data=str(data.source), **settings).box
    ours = detector.map50_95(data.split("val"))
    scores = (float(box.map), by_coco(next(out.rglob("predictions.json")), data))
    return {"edgekd": ours, **dict(zip(OTHERS, scores, strict=True))}


def run(given: Given) -> Result:
    folder, shared, rows = given.scratch, given.shared.resolve(), []
    os.environ.update(ultralytics_environment(folder / "settings"))
    data = load_dataset(copy_data(shared / "data/coco256", folder / "data", given.images))
    for model in MODELS:
        exact, int8 = (folder / f"{Path(model).stem}-{form}.onnx" for form in ("float32", "int8"))
        source = exported(shared / "models" / model, exact)
        source.quantized(int8, source.frames(images_of(data.split("train"))))
        for detector in (source, Detector(int8, source.spec)):
            rows.append({"graph": detector.graph.stem, **row_of(detector, data, folder)})
            note(rows[-1])
    return {"rows": rows}


def worst(found: Document) -> float:
    return max(abs(row.edgekd - row.ultralytics_detections_by_coco) for row in found.rows)


def page(found: Document) -> Blocks:
    yield from head("One graph, two scorers: mAP50-95", found)
    yield table(
        "graph | edgekd | Ultralytics `val` | its detections, COCO metric | difference | same metric",
        (
            " | ".join(
                [
                    row.graph,
                    *(f"{row[name]:.4f}" for name in ("edgekd", *OTHERS)),
                    *(f"{row.edgekd - row[name]:+.4f}" for name in OTHERS),
                ]
            )
            for row in found.rows
        ),
    )
    yield f"With one metric the pipelines are at most {worst(found):.4f} apart (limit {LIMIT})."


if __name__ == "__main__":
    main(run, page, IMAGES, holds=lambda found: worst(found) <= LIMIT)

"""Score a trained demo detector on unseen scenes: `score.py DIR [--out FILE]`, where DIR is the output of train.py."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from demo_scenes.scenes import render, split_seeds
from demo_scenes.traffic import CLASSES

from edgekd.core.detection.decode import SCORING, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.documents import to_plain
from edgekd.data.labels import Truth
from edgekd.evaluation.coco import score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = args.folder / "detector.onnx"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rows, columns = session.get_inputs()[0].shape[2:]
    spec = DetectorSpec(CLASSES, Preprocess(rows, columns), Head("yolo"))
    found, truths = [], []
    for seed in split_seeds("detector-val", args.scenes):
        scene = render(seed)
        batch, placement = letterbox(scene.image, spec.preprocess)
        found.append(decode(session.run(None, {"images": batch})[0], spec, placement, SCORING))
        height, width = scene.image.shape[:2]
        shares = (scene.boxes / np.array([width, height, width, height])).astype(np.float32)
        truths.append((Truth(shares, scene.classes, np.zeros(len(shares), np.bool_)), width, height))
    result = to_plain(score(found, truths, CLASSES))
    training = json.loads((args.folder / "training.json").read_text())
    # Paths of the training machine are meaningless elsewhere.
    arguments = {name: value for name, value in training.pop("arguments").items() if name not in ("out", "start")}
    options = " ".join(f"--{name} {value}" for name, value in arguments.items())
    record = {
        "command": f"train.py {options}; score.py --scenes {args.scenes}",
        "training": training,
        "score": {"scenes": args.scenes, "confidence": SCORING.confidence, "nms_iou": SCORING.iou, **result},
        "bytes": model.stat().st_size,
        "scored_with": {
            "python": platform.python_version(), "onnxruntime": onnxruntime.__version__, "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
    }  # fmt: skip
    text = json.dumps(record, indent=2) + "\n"
    if args.out:
        args.out.write_text(text)
    print(json.dumps(record["score"], indent=1))


if __name__ == "__main__":
    main()

"""The detector and the data set of `tiny` with two keypoints per square: its first and last corner.

The detector predicts the corners of its own boxes. The last corner is labelled as hidden.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import tiny
from onnx import helper, numpy_helper

SHAPE = [2, 3]
"""Number of keypoints per object, and of values per keypoint: x, y, visibility."""
VISIBLE = (0.9, 0.2)
"""Predicted probability that each keypoint is visible."""


def write_model(path: Path) -> Path:
    """Write the detector: head float32 [1, 4 + classes + 6, 84], with Ultralytics' metadata."""
    model = onnx.load(tiny.write_model(path))
    boxes = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == "boxes")[0]
    corners = (boxes[:2] - boxes[2:] / 2, boxes[:2] + boxes[2:] / 2)
    rows = [part for corner, share in zip(corners, VISIBLE, strict=True) for part in (corner, share + 0 * corner[:1])]
    keypoints = np.concatenate(rows)[None].astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(keypoints, "keypoints"))
    model.graph.node[-1].input.append("keypoints")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value += keypoints.shape[1]
    names = str(dict(enumerate(tiny.CLASSES)))
    helper.set_model_props(model, {"names": names, "task": "pose", "kpt_shape": str(SHAPE)})
    onnx.save(model, path)
    return path


def write_data(folder: Path, train: int = 12, val: int = 8) -> Path:
    """Write the scenes of `tiny` with the keypoints of every square, and `kpt_shape` in the data.yaml."""
    tiny.write_data(folder, train, val)
    for file in sorted(folder.glob("labels/*/*.txt")):
        rows = (list(map(float, line.split())) for line in file.read_text("ascii").splitlines())
        lines = [
            f"{int(label)} {x} {y} {w} {h} {x - w / 2:.6f} {y - h / 2:.6f} 2 {x + w / 2:.6f} {y + h / 2:.6f} 1\n"
            for label, x, y, w, h in rows
        ]
        file.write_text("".join(lines), "ascii")
    with (folder / "data.yaml").open("a", encoding="ascii") as yaml:
        yaml.write(f"kpt_shape: {SHAPE}\n")
    return folder

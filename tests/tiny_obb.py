"""The detector and the data set of `tiny`, with every box rotated by one angle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import tiny
from onnx import helper, numpy_helper

from edgekd.core.detection.rotated import corners_of

ANGLE = 0.1
"""Angle of the detector's boxes and of the labels in radians."""


def write_model(path: Path) -> Path:
    """Write the detector: head float32 [1, 4 + classes + 1, 84], with Ultralytics' metadata."""
    model = onnx.load(tiny.write_model(path))
    output = model.graph.output[0].type.tensor_type.shape.dim
    angles = np.full((1, 1, output[2].dim_value), ANGLE, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(angles, "angles"))
    model.graph.node[-1].input.append("angles")
    output[1].dim_value += 1
    helper.set_model_props(model, {"names": str(dict(enumerate(tiny.CLASSES))), "task": "obb"})
    onnx.save(model, path)
    return path


def write_data(folder: Path, train: int = 12, val: int = 8) -> Path:
    """Write the scenes of `tiny`, labelled with the corners of every square rotated about its centre."""
    tiny.write_data(folder, train, val)
    for file in sorted(folder.glob("labels/*/*.txt")):
        table = np.array([line.split() for line in file.read_text("ascii").splitlines()], np.float64).reshape(-1, 5)
        corners = corners_of(np.concatenate([table[:, 1:], np.full((len(table), 1), ANGLE)], axis=1)).clip(0, 1)
        rows = zip(table[:, 0].astype(int), corners.reshape(-1, 8), strict=True)
        file.write_text("".join(f"{label} {' '.join(f'{x:.6f}' for x in row)}\n" for label, row in rows), "ascii")
    return folder

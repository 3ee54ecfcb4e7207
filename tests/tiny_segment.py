"""The detector and the data set of `tiny` with a mask of every square: its left half.

Each box predicts one prototype of four, which are 1 in one half of every cell and -1 in the other; the first is the
left half of cells of 16 pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import tiny
from onnx import TensorProto, helper, numpy_helper

COUNT = 4
"""Number of prototypes, and of coefficients per box."""
PIXELS = tiny.SIDE // 4
"""Side of a prototype in pixels."""


def write_model(path: Path) -> Path:
    """Write the detector: outputs float32 [1, 4 + classes + 4, 84] and [1, 4, 16, 16], with Ultralytics' metadata."""
    model = onnx.load(tiny.write_model(path))
    rows, columns = np.mgrid[:PIXELS, :PIXELS]
    halves = [columns % 4 < 2, columns % 4 >= 2, rows % 4 < 2, rows % 4 >= 2]
    coefficients = np.zeros((1, COUNT, tiny.CELLS), np.float32)
    coefficients[:, 0] = 1
    for name, value in {"halves": np.stack(halves)[None] * 2.0 - 1, "coefficients": coefficients}.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    model.graph.node[-1].input.append("coefficients")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value += COUNT
    model.graph.node.append(helper.make_node("Identity", ["halves"], ["output1"], "prototypes"))
    shape = [1, COUNT, PIXELS, PIXELS]
    model.graph.output.append(helper.make_tensor_value_info("output1", TensorProto.FLOAT, shape))
    helper.set_model_props(model, {"names": str(dict(enumerate(tiny.CLASSES))), "task": "segment"})
    onnx.save(model, path)
    return path


def write_data(folder: Path, train: int = 12, val: int = 8) -> Path:
    """Write the scenes of `tiny`, with the left half of every square as its polygon."""
    tiny.write_data(folder, train, val)
    for file in sorted(folder.glob("labels/*/*.txt")):
        rows = (list(map(float, line.split())) for line in file.read_text("ascii").splitlines())
        lines = []
        for label, x, y, w, h in rows:
            corners = (x - w / 2, y - h / 2, x, y - h / 2, x, y + h / 2, x - w / 2, y + h / 2)
            lines.append(f"{int(label)} {' '.join(f'{corner:.6f}' for corner in corners)}\n")
        file.write_text("".join(lines), "ascii")
    return folder

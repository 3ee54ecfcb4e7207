"""A detector and a data set small enough for whole builds in a test.

The scenes are dark and noisy, with red and green squares. The detector is an ONNX graph with hand-set weights that
finds them. Its errors are known: its boxes are always 16 pixels wide, the squares 14 to 18 pixels, so mAP50 is 1 and
mAP50-95 is clearly lower.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
CLASSES = ("red", "green")
_PLANES = {"red": 2, "green": 1}  # in BGR
_CELL = 16
CELLS = sum((SIDE // stride) ** 2 for stride in (8, 16, 32))


def write_model(path: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write the detector: input float32 [1, 3, 64, 64] RGB, `yolo` head float32 [1, 4 + classes, 84]."""
    weights: dict[str, np.ndarray] = {"boxes": _anchors()}
    nodes = []

    def conv(name: str, source: str, kernel: np.ndarray, bias: list[float], stride: int) -> str:
        weights[f"{name}.weight"] = kernel.astype(np.float32)
        weights[f"{name}.bias"] = np.array(bias, np.float32)
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        size = list(kernel.shape[2:])
        nodes.append(helper.make_node("Conv", inputs, [name], name, kernel_shape=size, strides=[stride, stride]))
        return name

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"], f"{source}.relu"))
        return f"{source}.relu"

    # Colour minus the other channels, averaged over cells of 8, 16 and 32 pixels.
    colours = np.array([[1, -0.5, -0.5], [-0.5, 1, -0.5]])
    mean = np.eye(2)[:, :, None, None] * np.ones((2, 2)) / 4
    level8 = relu(conv("cells8", "images", colours[:, :, None, None] * np.ones((8, 8)) / 64, [0, 0], 8))
    level16 = relu(conv("cells16", level8, mean, [0, 0], 2))
    level32 = relu(conv("cells32", level16, mean, [0, 0], 2))
    scores = []
    for name, source, gain, bias in (("p3", level8, 0, -9), ("p4", level16, 12, -4), ("p5", level32, 0, -9)):
        out = conv(name, source, np.eye(2)[:, :, None, None] * gain, [bias, bias], 1)
        nodes.append(helper.make_node("Reshape", [out, "rows"], [f"{name}.rows"], f"{name}.rows"))
        scores.append(f"{name}.rows")
    weights["rows"] = np.array([1, 2, -1], np.int64)
    nodes.append(helper.make_node("Concat", scores, ["logits"], "logits", axis=2))
    nodes.append(helper.make_node("Sigmoid", ["logits"], ["scores"], "scores"))
    nodes.append(helper.make_node("Concat", ["boxes", "scores"], ["output0"], "output0", axis=1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, CELLS])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    # Opset 13, which the oldest target's parser supports.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if classes:
        helper.set_model_props(model, {"names": str(dict(enumerate(classes)))})
    onnx.save(model, path)
    return path


def write_data(folder: Path, train: int = 12, val: int = 8) -> Path:
    """Write the scenes in YOLO layout: images as PNG, labels, and a data.yaml with `path: .`."""
    for split, count, seed in (("train", train, 1), ("val", val, 2)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for index in range(count):
            image, labels = _scene(rng)
            cv2.imwrite(str(folder / "images" / split / f"{index:03}.png"), image)
            (folder / "labels" / split / f"{index:03}.txt").write_text("".join(labels), "ascii")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}", "ascii")
    return folder


def _anchors() -> np.ndarray:
    """Return boxes cx, cy, w, h float32 [1, 4, 84] in input pixels: each cell's own square."""
    rows = []
    for stride in (8, 16, 32):
        ys, xs = np.mgrid[: SIDE // stride, : SIDE // stride] * stride + stride // 2
        rows.append(np.stack([xs.ravel(), ys.ravel(), np.full(xs.size, stride), np.full(xs.size, stride)]))
    return np.concatenate(rows, axis=1)[None].astype(np.float32)


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Return an image uint8 [64, 64, 3] BGR with two to five squares, and its label lines."""
    image = rng.integers(0, 50, (SIDE, SIDE, 3), np.uint8)
    labels = []
    for cell in rng.choice((SIDE // _CELL) ** 2, rng.integers(2, 6), replace=False):
        which = int(rng.integers(len(CLASSES)))
        size = int(rng.integers(14, 19))
        centre = np.array([cell % 4, cell // 4]) * _CELL + _CELL // 2
        low, high = np.clip([centre - size // 2, centre + (size + 1) // 2], 0, SIDE)
        patch = image[low[1] : high[1], low[0] : high[0]]
        patch[:, :, _PLANES[CLASSES[which]]] = rng.integers(150, 256)
        (x, y), (w, h) = (low + high) / 2 / SIDE, (high - low) / SIDE
        labels.append(f"{which} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n")
    return image, labels

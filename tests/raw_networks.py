"""Small networks with random weights, to which the outputs of any detector's export can be added."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("red", "green")
STRIDES = (8, 16, 32)
STRIDES_TO_64 = (8, 16, 32, 64)
WIDTH_OF_MAPS = 8
Size = tuple[int, int]


class Network:
    """A pyramid of convolutions with random weights, to which outputs are added. size: height, width."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *size])]
        self.outputs: list[Any] = []
        self._rng = np.random.default_rng(0)
        # Values vary as in a trained network, for any range of the frames.
        self._image = self.add("InstanceNormalization", ["images", np.ones(3, np.float32), np.zeros(3, np.float32)])
        self._levels: dict[Sequence[float], list[str]] = {}

    def add(self, operator: str, inputs: Sequence[Any], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or of several. inputs: names, and constants."""
        name = f"n{len(self.nodes)}"
        names = []
        for index, value in enumerate(inputs):
            if not isinstance(value, str):
                self.weights[f"{name}.{index}"] = np.asarray(value)
            names.append(value if isinstance(value, str) else f"{name}.{index}")
        results = [f"{name}.out{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, results, name, **attributes))
        return results if outputs > 1 else results[0]

    def conv(self, source: str, channels: tuple[int, int], side: int, spread: float, mean: float, pads: Size) -> str:
        """Add a convolution with kernel and stride `side`."""
        weight = self._rng.normal(0, spread / math.sqrt(channels[0] * side**2), (*channels[::-1], side, side))
        bias = np.full(channels[1], mean)
        inputs = [source, weight.astype(np.float32), bias.astype(np.float32)]
        return str(self.add("Conv", inputs, kernel_shape=[side] * 2, strides=[side] * 2, pads=[0, 0, *pads]))

    def maps(
        self, channels: int, strides: Sequence[float] = STRIDES, spread: float = 1.0, mean: float = 0.0
    ) -> list[str]:
        """Return feature maps [1, channels, h, w] of the levels with these strides."""
        if strides not in self._levels:
            self._levels[strides] = list(self._pyramid(strides))
        return [self.conv(each, (WIDTH_OF_MAPS, channels), 1, spread, mean, (0, 0)) for each in self._levels[strides]]

    def _pyramid(self, strides: Sequence[float]) -> Iterator[str]:
        source, width, sides = self._image, 3, self.size
        for stride in strides:
            cells = cells_of(self.size, stride)
            side = math.ceil(sides[0] / cells[0])
            pads = (side * cells[0] - sides[0], side * cells[1] - sides[1])
            source = self.add("LeakyRelu", [self.conv(source, (width, WIDTH_OF_MAPS), side, 2.0, 0.0, pads)], alpha=0.3)
            yield source
            width, sides = WIDTH_OF_MAPS, cells

    def rows(self, maps: Sequence[str], columns: int) -> str:
        """Return the values of the cells of all levels as rows, [1, n, columns]."""
        flat = [self.add("Reshape", [each, np.array([1, columns, -1])]) for each in maps]
        return str(self.join([self.add("Transpose", [each], perm=[0, 2, 1]) for each in flat], 1))

    def join(self, parts: Sequence[str], axis: int) -> str:
        return str(self.add("Concat", parts, axis=axis))

    def sigmoid(self, source: str) -> str:
        return str(self.add("Sigmoid", [source]))

    def decoded(self, strides: Sequence[float] = STRIDES) -> str:
        """Return boxes cx, cy, w, h in pixels [1, n, 4], computed as in an export."""
        return str(self.add("Mul", [self.sigmoid(self.rows(self.maps(4, strides), 4)), np.float32(min(self.size))]))

    def corners(self, boxes: str, axis: int = 2) -> str:
        """Return boxes x1, y1, x2, y2 of boxes cx, cy, w, h."""
        centre, sides = self.add("Split", [boxes], outputs=2, axis=axis)
        half = self.add("Mul", [sides, np.float32(0.5)])
        return self.join([self.add("Sub", [centre, half]), self.add("Add", [centre, half])], axis)

    def scores(self, count: int = len(CLASSES), strides: Sequence[float] = STRIDES) -> str:
        """Return scores of classes from 0 to 1, [1, n, count]."""
        return self.sigmoid(self.rows(self.maps(count, strides, mean=-1.0), count))

    def best(self, first_class: int) -> tuple[str, str, str]:
        """Return the best 30 pairs: boxes x1, y1, x2, y2 [1, 30, 4], scores [1, 30] and classes int64 [1, 30]."""
        flat = self.add("Reshape", [self.scores(), np.array([1, -1])])
        scores, places = self.add("TopK", [flat, np.array([30])], outputs=2)
        index = self.add("Reshape", [self.add("Div", [places, np.array(len(CLASSES))]), np.array([-1])])
        boxes = self.add("Gather", [self.corners(self.decoded()), index], axis=1)
        classes = self.add("Add", [self.add("Mod", [places, np.array(len(CLASSES))]), np.array(first_class)])
        return boxes, scores, classes

    def give(self, name: str, source: str, kind: int = TensorProto.FLOAT) -> None:
        """Make a tensor an output with this name. Its shape is inferred."""
        self.nodes.append(helper.make_node("Identity", [source], [name], f"{name}.node"))
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

    def model(self) -> Any:
        """Return the ModelProto with opset 13, output shapes and class names."""
        weights = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, "family", self.inputs, self.outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(model, {"names": str(dict(enumerate(CLASSES)))})
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def cells_of(size: Size, stride: float) -> Size:
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)

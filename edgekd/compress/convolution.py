"""A convolution with constant weights as a matrix on patches of its input. Pure NumPy on what a node says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgekd.compress.graph import Graph


@dataclass(frozen=True, eq=False)
class Convolution:
    """weights float32 [O, I / groups, kh, kw] of the node `name`; bias float32 [O]; the rest as in ONNX's Conv.

    pads: top, left, bottom, right; or ONNX's `auto_pad`, by which the size of the input says how much.
    """

    name: str
    weights: np.ndarray
    bias: np.ndarray
    groups: int
    strides: tuple[int, int]
    pads: tuple[int, int, int, int] | Literal["SAME_UPPER", "SAME_LOWER"]
    dilations: tuple[int, int]

    @property
    def matrices(self) -> np.ndarray:
        """The weights as float32 [groups, O / groups, K], K = I / groups * kh * kw."""
        return self.weights.reshape(self.groups, len(self.weights) // self.groups, -1)

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of this size."""
        reach, (top, left, bottom, right) = self._reach, self._margins(height, width)
        return (
            (height + top + bottom - reach[0]) // self.strides[0] + 1,
            (width + left + right - reach[1]) // self.strides[1] + 1,
        )

    def patches(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        """What the output positions `at` (flat indices [n]) read of values float32 [1, I, h, w]: [groups, n, K]."""
        height, width = values.shape[2:]
        across, margins = self.positions(height, width)[1], self._margins(height, width)
        kernel = np.indices(self.weights.shape[2:])  # [2, kh, kw]
        top = (at // across * self.strides[0] - margins[0])[:, None, None] + kernel[0] * self.dilations[0]
        left = (at % across * self.strides[1] - margins[1])[:, None, None] + kernel[1] * self.dilations[1]
        inside = (top >= 0) & (top < height) & (left >= 0) & (left < width)
        places = np.clip(top, 0, height - 1) * width + np.clip(left, 0, width - 1)
        found = values[0].reshape(values.shape[1], -1)[:, places] * inside  # [I, n, kh, kw]
        grouped = found.reshape(self.groups, -1, *found.shape[1:]).transpose(0, 2, 1, 3, 4)
        return np.ascontiguousarray(grouped).reshape(self.groups, len(at), -1)

    @property
    def _reach(self) -> list[int]:
        return [(side - 1) * step + 1 for side, step in zip(self.weights.shape[2:], self.dilations, strict=True)]

    def _margins(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of an input of this size."""
        if not isinstance(self.pads, str):
            return self.pads
        sides = zip((height, width), self.strides, self._reach, strict=True)
        down, right = (max((-(-side // stride) - 1) * stride + reach - side, 0) for side, stride, reach in sides)
        half = (down // 2, right // 2)
        rest = (down - half[0], right - half[1])
        return (*half, *rest) if self.pads == "SAME_UPPER" else (*rest, *half)


def convolution(graph: Graph, node: Any) -> Convolution | None:
    """What a Conv node does; None for one with computed weights or bias, or that is not two-dimensional."""
    from onnx import helper

    weights = graph.constant(node.input[1])
    bias = (
        graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(weights) if weights is not None else 0)
    )
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if weights is None or bias is None or weights.ndim != 4:
        return None
    padding = said.get("auto_pad", b"NOTSET").decode("ascii")
    return Convolution(
        name=node.name,
        weights=weights,
        bias=bias.astype(np.float32),
        groups=said.get("group", 1),
        strides=tuple(said.get("strides", (1, 1))),
        pads=padding if padding.startswith("SAME") else tuple(said.get("pads", (0, 0, 0, 0))),
        dilations=tuple(said.get("dilations", (1, 1))),
    )

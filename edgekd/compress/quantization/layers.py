"""Layers: convolutions and matrix products with constant weights, each as a matrix applied to patches of its input.

NumPy only. A convolution has a patch for each output position; the patches of a MatMul or Gemm are the rows of its
input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgekd.graph.view import Graph, attributes

MIN_PRODUCT_SIDE = 16
"""A matrix whose sides are all smaller is not a layer, but arithmetic such as a conversion of boxes."""


@dataclass(frozen=True, eq=False)
class LayerView(ABC):
    """A layer of the float graph.

    name: node name; weights float32 [O, ...], outputs first; bias float32 [O], zeros without one; weights_name,
    bias_name: names of the initializers, `bias_name` None without a bias; groups: 1 for a product.
    """

    name: str
    weights: np.ndarray
    bias: np.ndarray
    weights_name: str
    bias_name: str | None
    groups: int

    @property
    def matrices(self) -> np.ndarray:
        """The weights as float32 [groups, O / groups, K]: each output reads K inputs."""
        return self.weights.reshape(self.groups, len(self.weights) // self.groups, -1)

    @abstractmethod
    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of patches in an input of this shape."""

    @abstractmethod
    def patches(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the patches at indices `at` [n] of an input: float32 [groups, n, K]."""

    def draw_patches(self, inputs: Sequence[np.ndarray], needed: int) -> list[np.ndarray]:
        """Draw indices of patches with a fixed seed, equally many per input: at least `needed` in total, or all."""
        size = self.count(inputs[0].shape)
        each = min(-(-needed // len(inputs)), size)
        rng = np.random.default_rng(0)
        return [rng.choice(size, each, replace=False, shuffle=False) for _ in inputs]

    def stored(self, weights: np.ndarray) -> np.ndarray:
        """Return weights [O, ...] in the layout of the float graph's node."""
        return weights

    def initializers(self, weights: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
        """Return the float graph's initializers for other weights [O, ...] and another bias [O]."""
        biases = {} if self.bias_name is None else {self.bias_name: bias}
        return {self.weights_name: self.stored(weights), **biases}


@dataclass(frozen=True, eq=False)
class ProductView(LayerView):
    """A Gemm with weights [O, K], or a MatMul with weights [K, O] (`transposed`)."""

    transposed: bool

    def count(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape[:-1]))

    def patches(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.reshape(-1, values.shape[-1])[at][None])

    def stored(self, weights: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(weights.T) if self.transposed else weights


@dataclass(frozen=True, eq=False)
class ConvolutionView(LayerView):
    """A convolution with weights float32 [O, I / groups, kh, kw]; the rest as in ONNX's Conv.

    pads: top, left, bottom, right; or ONNX's `auto_pad`, with which they follow from the input's size.
    """

    strides: tuple[int, int]
    pads: tuple[int, int, int, int] | Literal["SAME_UPPER", "SAME_LOWER"]
    dilations: tuple[int, int]

    def count(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(self.positions(*shape[2:])))

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the output for an input of this size."""
        reach, (top, left, bottom, right) = self._reach, self._margins(height, width)
        return (
            (height + top + bottom - reach[0]) // self.strides[0] + 1,
            (width + left + right - reach[1]) // self.strides[1] + 1,
        )

    def patches(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the patches of the output positions `at` (flat indices [n]) of values float32 [1, I, h, w]."""
        height, width = values.shape[2:]
        across, margins = self.positions(height, width)[1], self._margins(height, width)
        kernel = np.indices(self.weights.shape[2:])  # [2, kh, kw]
        top = (at // across * self.strides[0] - margins[0])[:, None, None] + kernel[0] * self.dilations[0]
        left = (at % across * self.strides[1] - margins[1])[:, None, None] + kernel[1] * self.dilations[1]
        inside = (top >= 0) & (top < height) & (left >= 0) & (left < width)
        places = np.clip(top, 0, height - 1) * width + np.clip(left, 0, width - 1)
        columns = values[0].reshape(values.shape[1], -1).take(places.ravel(), axis=1)
        if not inside.all():
            columns *= inside.ravel()
        grouped = columns.reshape(self.groups, -1, len(at), kernel[0].size).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(grouped).reshape(self.groups, len(at), -1)

    @property
    def _reach(self) -> list[int]:
        return [(side - 1) * step + 1 for side, step in zip(self.weights.shape[2:], self.dilations, strict=True)]

    def _margins(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the padding of an input of this size: top, left, bottom, right."""
        if not isinstance(self.pads, str):
            return self.pads
        sides = zip((height, width), self.strides, self._reach, strict=True)
        down, right = (max((-(-side // stride) - 1) * stride + reach - side, 0) for side, stride, reach in sides)
        half = (down // 2, right // 2)
        rest = (down - half[0], right - half[1])
        return (*half, *rest) if self.pads == "SAME_UPPER" else (*rest, *half)


def is_layer(graph: Graph, node: Any) -> bool:
    """Return whether a node is a convolution, or a product with a constant matrix, not below MIN_PRODUCT_SIDE."""
    if node.op_type not in ("Gemm", "MatMul"):
        return bool(node.op_type == "Conv")
    shape = graph.shape(node.input[1])
    return shape is not None and len(shape) == 2 and max(shape) >= MIN_PRODUCT_SIDE


def is_dfl(graph: Graph, node: Any) -> bool:
    """Return whether a layer is the fixed sum of Distribution Focal Loss (weights 0, 1, 2, ...)."""
    weights = graph.constant(node.input[1])
    if weights is None or 1 not in (weights.shape[:1] if node.op_type == "Conv" else weights.shape):
        return False
    values = weights.ravel()
    return bool((values == range(len(values))).all())


def layer_of(graph: Graph, node: Any) -> LayerView | None:
    """Return the view of a layer; None for computed parameters, and for unsupported kinds such as 3-D convolutions."""
    return _convolution(graph, node) if node.op_type == "Conv" else _product(graph, node)


def _convolution(graph: Graph, node: Any) -> ConvolutionView | None:
    """Return the view; None for computed weights or bias, and unless the convolution is 2-D."""
    weights, options = graph.constant(node.input[1]), attributes(node)
    name = node.input[2] if len(node.input) > 2 else None
    bias = np.zeros(0 if weights is None else len(weights)) if name is None else graph.constant(name)
    if weights is None or bias is None or weights.ndim != 4:
        return None
    padding = options.get("auto_pad", b"NOTSET").decode("ascii")
    return ConvolutionView(
        name=node.name,
        weights=weights,
        bias=bias.astype(np.float32),
        weights_name=node.input[1],
        bias_name=name,
        groups=options.get("group", 1),
        strides=tuple(options.get("strides", (1, 1))),
        pads=padding if padding.startswith("SAME") else tuple(options.get("pads", (0, 0, 0, 0))),
        dilations=tuple(options.get("dilations", (1, 1))),
    )


def _product(graph: Graph, node: Any) -> ProductView | None:
    """Return the view; None for a Gemm that `rewrite.own_parameters` has not normalized."""
    weights, options = graph.constant(node.input[1]), attributes(node)
    if weights is None or weights.ndim != 2 or weights.dtype != np.float32:
        return None
    transposed = node.op_type == "MatMul"
    outputs_first = np.ascontiguousarray(weights.T) if transposed else weights
    name = bias_of_product(graph, node)
    bias = np.zeros(len(outputs_first), np.float32) if name is None else graph.constant(name)
    plain = transposed or (options.get("transA", 0), options.get("transB", 0)) == (0, 1)
    scaled = any(options.get(factor, 1.0) != 1.0 for factor in ("alpha", "beta"))
    if not plain or scaled or bias is None or bias.shape != outputs_first.shape[:1]:
        return None
    return ProductView(node.name, outputs_first, bias, node.input[1], name, groups=1, transposed=transposed)


def bias_of_product(graph: Graph, node: Any) -> str | None:
    """Return the name of a product's bias: a Gemm's third input, or the summand of an Add after a MatMul.

    Exporters write a linear layer as MatMul and Add. None if the Add is not the only reader, or its other input is
    computed or has another shape than [O].
    """
    if node.op_type == "Gemm":
        return node.input[2] if len(node.input) > 2 and node.input[2] else None
    readers = graph.consumers(node.output[0])
    if len(readers) != 1 or readers[0][0].op_type != "Add" or node.output[0] in graph.outputs:
        return None
    addition, index = readers[0]
    other: str = addition.input[1 - index]
    weights = graph.shape(node.input[1])
    return other if weights is not None and graph.shape(other) == weights[1:] else None

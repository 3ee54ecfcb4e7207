"""Read the convolutions of a Q/DQ graph and write them back, so that training needs no new export.

Matrix products are not trained. Only initializers change: nodes, edges and names of the graph that
`quantization.quantize` wrote do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.quantization.rewrite import weights_pair
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.atomic_files import write_file
from edgekd.core.errors import CompressError
from edgekd.core.formats import coded_int8, fp4x
from edgekd.core.formats.int8 import dequantize_channels
from edgekd.graph.model_file import read_model
from edgekd.graph.view import Graph

MIN_RMS = 1e-3
"""Lower bound of an output's root mean square, in codes: for outputs whose weights are all zero."""


@dataclass(frozen=True, eq=False)
class QdqConvolution:
    """One convolution with constant weights.

    node: its name; parameter: name of its weights in the float graph; weights [O, I, kh, kw]: codes int8 with `scales`
    float32 [O], or float32 without scales; bias float32 [O], or None; input_scale: INT8 scale of its input, None for a
    float input.
    """

    node: str
    parameter: str
    weights: np.ndarray
    scales: np.ndarray | None
    bias: np.ndarray | None
    input_scale: float | None

    @property
    def form(self) -> WeightFormat:
        """Format of the weights: `fp4x` or `coded` if it can represent the codes, else `int8`; `float16` for floats."""
        if self.scales is None:
            return "float16"
        if fp4x.representable(self.weights):
            return "fp4x"
        return "int8" if coded_int8.encode(self.weights) is None else "coded"

    @property
    def coded_steps(self) -> np.ndarray | None:
        """Integer step of each input in `coded`, float32 [I, 1, 1]; None in other forms."""
        coded = coded_int8.encode(self.weights) if self.form == "coded" else None
        return None if coded is None else coded.columns.steps.astype(np.float32)[:, None, None]

    @property
    def mean_step(self) -> float:
        """Estimated step of weights in `coded`, as in `reconstruct.coded_with_feedback`; only for this format."""
        steps = self.coded_steps
        assert steps is not None, "a layer in `coded`"
        mean_step = np.exp(np.log(steps).mean())
        rms = np.sqrt(np.square(self.weights.astype(np.float32)).mean(axis=(1, 2, 3)))
        return float(np.median(mean_step / np.maximum(rms, MIN_RMS)))

    @property
    def values(self) -> np.ndarray:
        """Weights as the engine uses them, float32 [O, I, kh, kw]."""
        return self.weights if self.scales is None else dequantize_channels(self.weights, self.scales)


def read_layers(path: Path) -> tuple[QdqConvolution, ...]:
    """Return the convolutions of a Q/DQ graph, in graph order, except those with computed weights.

    Raises CompressError for a graph with quantized matrix products, which training would treat as float.
    """

    graph = Graph(read_model(path))
    products = [node.name for node in graph.nodes if node.op_type in ("Gemm", "MatMul") and weights_pair(graph, node)]
    if products:
        raise CompressError(
            f"layer {products[0]}",
            expected="convolutions alone to be quantized, to train them",
            found=f"{len(products)} matrix products, too",
            fix="use recipe ptq or mixed, or a plan in which they are float16",
        )
    return tuple(_layer(graph, node, names) for node, names in _convolutions(graph))


def write_layers(source: Path, out: Path, layers: Iterable[QdqConvolution]) -> None:
    """Write `out`: the Q/DQ graph `source` with some or all convolutions replaced by `layers`.

    Raises CompressError if a layer does not fit `source`, or two layers set different values of a shared scale.
    """
    import onnx
    from onnx import numpy_helper

    model = read_model(source)
    graph = Graph(model)
    changed = _changes(graph, layers)
    for initializer in model.graph.initializer:
        if initializer.name in changed:
            initializer.CopyFrom(numpy_helper.from_array(changed[initializer.name], initializer.name))
    onnx.checker.check_model(model)
    write_file(out, model.SerializeToString())


def _changes(graph: Graph, layers: Iterable[QdqConvolution]) -> dict[str, np.ndarray]:
    """Return the new values of the initializers, by name."""
    names_of = {node.name: names for node, names in _convolutions(graph)}
    changed: dict[str, np.ndarray] = {}
    for layer in layers:
        names = names_of.get(layer.node)
        if names is None:
            raise CompressError(f"layer {layer.node}", expected="a convolution of the graph", found="none of that name")
        old_scale = graph.constant(names.get("input_scale", ""))
        dtype = np.float32 if old_scale is None else old_scale.dtype  # float16 for a strongly typed builder
        scale = None if layer.input_scale is None else np.array(layer.input_scale, dtype)
        parts = {"weights": layer.weights, "scales": layer.scales, "bias": layer.bias, "input_scale": scale}
        given = {part: value for part, value in parts.items() if value is not None}
        for part in sorted({*given, *names}):
            found, before = given.get(part), graph.constant(names.get(part, ""))
            if _kind(found) != _kind(before):
                raise CompressError(f"layer {layer.node}: its {part}", expected=_kind(before), found=_kind(found))
        for part, value in given.items():
            if not np.array_equal(changed.setdefault(names[part], value), value):
                raise CompressError(f"layer {layer.node}: {names[part]}", expected="one value for all who read it")
    return changed


def _kind(value: np.ndarray | None) -> str:
    return "none" if value is None else f"{value.dtype} {list(value.shape)}"


def _convolutions(graph: Graph) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """Yield each convolution with constant weights, and the names of its initializers, by part."""
    for node in graph.nodes:
        if node.op_type != "Conv":
            continue
        pair = weights_pair(graph, node)
        names = {"weights": node.input[1]} if pair is None else {"weights": pair.input[0], "scales": pair.input[1]}
        if len(node.input) > 2 and node.input[2]:
            names["bias"] = node.input[2]
        if (before := graph.producers.get(node.input[0])) is not None and before.op_type == "DequantizeLinear":
            names["input_scale"] = before.input[1]
        if graph.constant(names["weights"]) is not None:
            yield node, names


def _layer(graph: Graph, node: Any, names: Mapping[str, str]) -> QdqConvolution:
    values = {part: graph.constant(name) for part, name in names.items()}
    scale = values.get("input_scale")
    weights = values["weights"]
    assert weights is not None, "the convolutions have constant weights"
    return QdqConvolution(
        node=node.name,
        parameter=names["weights"].removesuffix(f"/{node.name}/int8"),
        weights=weights,
        scales=values.get("scales"),
        bias=values.get("bias"),
        input_scale=None if scale is None else float(scale),
    )

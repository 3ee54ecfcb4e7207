"""Properties of quantized graphs, and differences between scores with their standard error over the images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgekd.core.detection.types import DetectorSpec
from edgekd.core.formats.qdq_graph import COMPUTING
from edgekd.evaluation.coco import score
from edgekd.evaluation.evaluate import Evaluation
from edgekd.evaluation.output_noise import ReferenceOutputs
from edgekd.graph.view import Graph

RESAMPLES = 100
"""Number of bootstrap samples of the images for the standard error of a difference between two scores."""


def float_head_patterns(graph: Path) -> tuple[str, ...]:
    """Return patterns that match the layers that edgekd leaves in float: the last ones before the outputs, and DFL."""
    from edgekd.compress.quantization.placement import float_head

    model = onnx.load(graph)
    head = float_head(Graph(model))
    names = [node.name for node in model.graph.node if node.op_type in COMPUTING and node.name in head]
    return tuple(f"^{re.escape(name)}$" for name in names)


def facts(graph: Path) -> dict[str, Any]:
    """Return `int8_convolutions`: count with INT8 weights, and of all; `symmetric`: whether all zero points are 0."""
    import onnx

    loaded = onnx.load(graph).graph
    nodes = loaded.node
    constants = {each.name: each for each in loaded.initializer}
    constants.update({node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"})
    pairs = [node for node in nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    zeros = [numpy_helper.to_array(constants[node.input[2]]) for node in pairs if len(node.input) > 2]
    dequantized = {node.output[0] for node in pairs if node.op_type == "DequantizeLinear"}
    weights = [node.input[1] in dequantized for node in nodes if node.op_type == "Conv"]
    return {
        "int8_convolutions": (sum(weights), len(weights)),
        # Some tools quantize biases to INT32.
        "symmetric": all(zero.dtype in (np.int8, np.int32) and not zero.any() for zero in zeros),
    }


def described(graph: Path, spec: DetectorSpec) -> Path:
    """Write a copy with classes and strides as metadata, which some tools drop and Ultralytics' `val` needs."""
    from edgekd.detectors.onnx import describe_in

    model = onnx.load(graph)
    describe_in(model, spec)
    copy = graph.with_name(f"{graph.stem}-described.onnx")
    onnx.save(model, copy)
    return copy


Reference = ReferenceOutputs
"""The noise measure that the search uses to rank candidates."""


@dataclass(frozen=True)
class Difference:
    """Difference in mAP50-95 of two graphs on the same images, and its standard error over the images."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.error:.4f}"


def difference(one: Evaluation, other: Evaluation, classes: Sequence[str]) -> Difference:
    """Compare two evaluations of the same images by a paired bootstrap."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(one.truths), len(one.truths)) for _ in range(RESAMPLES)]

    def scores(found: Evaluation) -> np.ndarray:
        drawn = ([[part[at] for at in draw] for part in (found.detections, found.truths)] for draw in draws)
        return np.array([score(detections, truths, classes).map50_95 for detections, truths in drawn])

    spread = scores(one) - scores(other)
    return Difference(one.score.map50_95 - other.score.map50_95, float(spread.std(ddof=1)))

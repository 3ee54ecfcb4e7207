"""How far a quantized graph is from its float graph, as far as 128 images can tell: noise, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.compress.quantization.sensitivity_4bit import last_products, relative_error
from edgekd.evaluation.coco import score
from edgekd.evaluation.evaluate import Evaluation
from edgekd.graph.session import cpu_session
from edgekd.graph.view import Graph

RESAMPLES = 100
"""Times that images are drawn anew, with repetition, to see how much a difference of two scores depends on them."""


class Reference:
    """The outputs of a float graph's last convolutions and matrix products on frames float32 [1, 3, h, w].

    Before sigmoid, box decoding and selection, where every place of every frame counts: noise there needs no labels and
    hardly depends on which images they are.
    """

    def __init__(self, graph: Path, frames: Sequence[np.ndarray]) -> None:
        import onnx

        model = onnx.load(graph)
        self._frames = frames
        self._ends = last_products(Graph(model))
        self._wanted = self._values(model)

    def noise(self, graph: Path) -> float | None:
        """Noise by signal of another version of the graph, a mean over the products; None where it renamed them."""
        import onnx

        model = onnx.load(graph)
        made = {name for node in model.graph.node for name in node.output}
        if not made.issuperset(self._ends):
            return None
        pairs = zip(zip(*self._wanted, strict=True), zip(*self._values(model), strict=True), strict=True)
        return float(np.mean([relative_error(wanted, found) for wanted, found in pairs]))

    def _values(self, model: Any) -> list[list[np.ndarray]]:
        import onnx

        source = model.graph.input[0].name
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._ends)
        session = cpu_session(model)
        return [session.run(list(self._ends), {source: frame}) for frame in self._frames]


@dataclass(frozen=True)
class Difference:
    """The mAP50-95 of one graph less that of another on the same images, and its standard error over the images."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.error:.4f}"


def difference(one: Evaluation, other: Evaluation, classes: Sequence[str]) -> Difference:
    """Of two evaluations of the same images; both see the same draws, so what is common to them cancels out."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(one.truths), len(one.truths)) for _ in range(RESAMPLES)]

    def scores(found: Evaluation) -> np.ndarray:
        drawn = ([[part[at] for at in draw] for part in (found.detections, found.truths)] for draw in draws)
        return np.array([score(detections, truths, classes).map50_95 for detections, truths in drawn])

    spread = scores(one) - scores(other)
    return Difference(one.score.map50_95 - other.score.map50_95, float(spread.std(ddof=1)))

"""From a detector to the float32 ONNX graph that everything after works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import ParityError
from edgekd.detectors import Detector

TOLERANCE = 1e-3
"""Largest error of an exported graph, relative to the largest value of each output row."""


@dataclass(frozen=True)
class Exported:
    """A graph on disk: its contract, its opset, and its largest relative error against the detector."""

    spec: DetectorSpec
    opset: int
    error: float


def export(detector: Detector, graph: Path, opset: int) -> Exported:
    """Write `graph`: simplified, self-describing, batch 1, and proven to compute what the detector computes.

    Raises ParityError where it does not.
    """
    import onnx

    from edgekd.detectors.onnx import describe_in, opset_of
    from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

    spec = detector.export(graph, opset)
    model = _simplify(onnx.load(graph))
    describe_in(model, spec)
    onnx.save(model, graph)
    frame = probe(spec)
    with ONNXRUNTIME_CPU.load(graph) as session:
        error = parity_error(detector.reference(frame), session.run(frame))
    if not error <= TOLERANCE:
        raise ParityError(
            f"{detector.path}: the exported graph computes something else",
            expected=f"a relative error of at most {TOLERANCE:g}",
            found=f"{error:.3g}",
            fix="export the model to ONNX with its own tools and pass that",
        )
    return Exported(spec, opset_of(model), error)


def probe(spec: DetectorSpec, seed: int = 0) -> np.ndarray:
    """A deterministic frame float32 [1, 3, h, w] with structure at several scales, in the range the network expects."""
    from edgekd.core.detection.preprocess import to_tensor

    height, width = spec.preprocess.height, spec.preprocess.width
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    smooth = np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width]
    return to_tensor(smooth, spec.preprocess)


def parity_error(expected: np.ndarray, found: np.ndarray) -> float:
    """Largest difference, relative to the largest magnitude in its row: boxes and scores count alike."""
    if expected.shape != found.shape:
        return float("inf")
    scale = np.abs(expected).max(axis=-1, keepdims=True) + 1e-3
    return float((np.abs(expected - found) / scale).max())


def _simplify(model: Any) -> Any:
    """Constants folded, batch norms merged, unused nodes gone, shapes inferred."""
    import onnxslim

    return onnxslim.slim(model)

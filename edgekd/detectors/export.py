"""Export of a detector to the float32 ONNX graph that compression starts with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.decode import candidate_rows
from edgekd.core.detection.parity import has_places, largest_error, nearest
from edgekd.core.detection.preprocess import to_tensor
from edgekd.core.detection.types import DetectorSpec, Head
from edgekd.core.errors import ParityError
from edgekd.detectors import Detector
from edgekd.detectors.onnx import describe_in
from edgekd.graph.model_file import read_model
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import opset_of

TOLERANCE = 1e-3
"""Largest error of an exported graph, relative to the largest value of each output row."""


@dataclass(frozen=True)
class Exported:
    """An exported graph: its contract, its opset, and its largest relative error compared with the detector."""

    spec: DetectorSpec
    opset: int
    error: float


def export(detector: Detector, graph: Path, opset: int) -> Exported:
    """Export a detector to `graph`, simplified, self-describing, with batch 1, and compare the outputs of both.

    Raises ParityError if they differ by more than TOLERANCE.
    """
    import onnx
    import onnxslim

    spec = checked_spec(detector.export(graph, opset), f"{detector.path}: detector")
    model = onnxslim.slim(read_model(graph))  # constants folded, batch norms merged, shapes inferred
    describe_in(model, spec)
    onnx.save(model, graph)
    frame = probe(spec)
    with ONNXRUNTIME_CPU.load(graph) as session:
        found, expected = session.run(frame), detector.reference(frame)
    error = _error(found, expected, spec.head)
    if not error <= TOLERANCE:
        raise ParityError(
            f"{detector.path}: the exported graph computes something else",
            expected=f"a relative error of at most {TOLERANCE:g}",
            found=f"{error:.3g}",
            fix="export the model to ONNX with its own tools and pass that",
        )
    return Exported(spec, opset_of(model), error)


def _error(found: np.ndarray, expected: np.ndarray, head: Head) -> float:
    """Return the largest relative error of an output, in any order of queries: nearly equal scores can change it."""
    if head.kind == "yolo" and not has_places(head) and found.shape == expected.shape:
        found, expected = (candidate_rows(output, head) for output in (found, expected))
        found, expected = nearest(found, expected, head).T, expected.T
    return largest_error(found, expected)


def probe(spec: DetectorSpec, seed: int = 0) -> np.ndarray:
    """Return a deterministic test frame float32 [1, 3, h, w] with structure at several scales, preprocessed."""
    height, width = spec.preprocess.height, spec.preprocess.width
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    smooth = np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width]
    return to_tensor(smooth, spec.preprocess)

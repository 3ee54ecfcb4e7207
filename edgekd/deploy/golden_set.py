"""Make the golden set of a graph with ONNX Runtime, for the agent's self-test on the camera."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from edgekd.agent.engines.parity import output_error
from edgekd.core.detection.decode import candidate_confidence, candidate_rows
from edgekd.core.detection.preprocess import letterbox, to_tensor
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import CompressError
from edgekd.core.formats.golden_set import GoldenSet, coarse
from edgekd.data.images import Image
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

FRAMES = 3  # in a golden set: those with the highest sum of confidences
TRIED = 12  # frames that these are chosen from
SIDE = 160  # longest side of a stored frame, in pixels
BEST = 32  # compared candidates of highest confidence
SPREAD = 32  # further compared candidates, evenly spread
MIN_TOLERANCE = (0.01, 0.03)
"""Minimum tolerances of boxes and of scores: several times the error of float16 relative to float32."""
INT8_FACTOR = 2.0
"""Tolerance of a quantized graph relative to the error of the float graph: runtimes round INT8 differently."""


def golden_set(graph: Path, floating: Path | None, spec: DetectorSpec, images: Iterable[Image]) -> GoldenSet:
    """Return the golden set of a graph from the first images uint8 [h, w, 3] BGR, at least one.

    floating: float graph of a quantized one, else None. Raises DeviceError if a graph cannot run, CompressError if its
    output is not finite in float16.
    """
    zoom, reduced = _reduced(spec.preprocess)
    frames = np.stack([_frame(image, reduced) for image in islice(images, TRIED)])
    precision = "float" if floating is None else "int8"
    tried = GoldenSet(precision, MIN_TOLERANCE, (), zoom, frames, np.empty(0), np.empty(0))
    outputs = _outputs(graph, tried, spec.preprocess)
    rows = [candidate_rows(output, spec.head) for output in outputs]
    confidence = [float(np.sort(candidate_confidence(each, spec.head))[-BEST:].sum()) for each in rows]
    chosen = sorted(np.argsort(confidence, kind="stable")[-FRAMES:].tolist())
    places = np.stack([_places(rows[index], spec.head) for index in chosen])
    values = np.stack([rows[index][place] for index, place in zip(chosen, places, strict=True)])
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise CompressError("golden set: an output", expected="numbers that are finite in float16", found="others")
    golden = replace(tried, output=outputs[0].shape, frames=frames[chosen], places=places, values=half)
    return golden if floating is None else replace(golden, tolerance=_tolerance(floating, golden, spec))


def _outputs(graph: Path, golden: GoldenSet, preprocess: Preprocess) -> list[np.ndarray]:
    """Return a graph's output for each frame, with one thread for a deterministic order of summation."""
    with ONNXRUNTIME_CPU.load(graph, threads=1) as session:
        canvases = (golden.canvas(index, preprocess.height, preprocess.width) for index in range(len(golden.frames)))
        return [session.run(to_tensor(canvas, preprocess)) for canvas in canvases]


def _tolerance(floating: Path, golden: GoldenSet, spec: DetectorSpec) -> tuple[float, float]:
    """Return the tolerance of boxes and scores of a quantized graph."""
    outputs = _outputs(floating, golden, spec.preprocess)
    errors = [output_error(output, golden, index, spec.head) for index, output in enumerate(outputs)]
    boxes, scores = max(error.boxes for error in errors), max(error.scores for error in errors)
    lowest = MIN_TOLERANCE
    return max(lowest[0], round(INT8_FACTOR * boxes, 4)), max(lowest[1], round(INT8_FACTOR * scores, 4))


def _reduced(preprocess: Preprocess) -> tuple[int, Preprocess]:
    """Return the scale between input and stored frame, and the preprocessing of the latter, not normalised."""
    zoom = max(1, -(-max(preprocess.height, preprocess.width) // SIDE))
    height, width = -(-preprocess.height // zoom), -(-preprocess.width // zoom)
    return zoom, replace(preprocess, height=height, width=width, input="uint8", float_bytes=False)


def _frame(image: Image, reduced: Preprocess) -> np.ndarray:
    """Return a stored frame uint8 [h, w, 3] BGR."""
    return coarse(letterbox(image, reduced)[0][0])


def _places(rows: np.ndarray, head: Head) -> np.ndarray:
    """Return the indices of the compared candidates of [n, f], uint32 [m], ascending; m depends on n alone."""
    order = np.argsort(-candidate_confidence(rows, head), kind="stable")
    rest = np.sort(order[BEST:])
    spread = rest[np.linspace(0, len(rest) - 1, min(SPREAD, len(rest))).astype(np.int64)] if len(rest) else rest
    return np.sort(np.concatenate([order[:BEST], spread])).astype(np.uint32)

"""The golden set of a graph: made on the host with ONNX Runtime, checked on the camera by the agent's self-test."""

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

FRAMES, TRIED = 3, 12
"""Frames that ship, and frames they are chosen from: those in which the network finds most."""
SIDE = 160
"""Longest side of a stored frame, in pixels."""
BEST, SPREAD = 32, 32
"""Candidates that are compared: the surest, and as many again spread evenly over all."""
LEAST_TOLERANCE = (0.01, 0.03)
"""Of boxes and scores: several times what float16 in place of float32 changes."""
ALLOWED = 2.0
"""How far an engine of a quantized graph may be from the graph, as a multiple of how far its float self is.

Two runtimes that both compute INT8 round differently, and how much that matters depends on the network.
"""


def golden_set(graph: Path, floating: Path | None, spec: DetectorSpec, images: Iterable[Image]) -> GoldenSet:
    """The golden set of a graph from the first images uint8 [h, w, 3] BGR, of which there must be one.

    floating: the float graph that a quantized one was made from, else None. Raises DeviceError where a graph cannot
    run, CompressError where its output is not finite in float16.
    """
    zoom, small = _reduced(spec.preprocess)
    stored = np.stack([_frame(image, small) for image in islice(images, TRIED)])
    precision = "float" if floating is None else "int8"
    tried = GoldenSet(precision, LEAST_TOLERANCE, (), zoom, stored, np.empty(0), np.empty(0))
    outputs = _outputs(graph, tried, spec.preprocess)
    rows = [candidate_rows(output, spec.head) for output in outputs]
    found = [float(np.sort(candidate_confidence(each, spec.head))[-BEST:].sum()) for each in rows]
    chosen = sorted(np.argsort(found, kind="stable")[-FRAMES:].tolist())
    places = np.stack([_places(rows[index], spec.head) for index in chosen])
    values = np.stack([rows[index][places[at]] for at, index in enumerate(chosen)])
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    if not np.isfinite(narrow).all():
        raise CompressError("golden set: an output", expected="numbers that are finite in float16", found="others")
    golden = replace(tried, output=outputs[0].shape, frames=stored[chosen], places=places, values=narrow)
    return golden if floating is None else replace(golden, tolerance=_tolerance(floating, golden, spec))


def _outputs(graph: Path, golden: GoldenSet, how: Preprocess) -> list[np.ndarray]:
    """Return a graph's output for each frame. One thread: the same order of sums each time."""
    with ONNXRUNTIME_CPU.load(graph, threads=1) as session:
        canvases = (golden.canvas(index, how.height, how.width) for index in range(len(golden.frames)))
        return [session.run(to_tensor(canvas, how)) for canvas in canvases]


def _tolerance(floating: Path, golden: GoldenSet, spec: DetectorSpec) -> tuple[float, float]:
    """How far boxes and scores may be from those of a quantized graph."""
    outputs = _outputs(floating, golden, spec.preprocess)
    drifts = [output_error(output, golden, index, spec.head) for index, output in enumerate(outputs)]
    boxes, scores = max(each.boxes for each in drifts), max(each.scores for each in drifts)
    least = LEAST_TOLERANCE
    return max(least[0], round(ALLOWED * boxes, 4)), max(least[1], round(ALLOWED * scores, 4))


def _reduced(how: Preprocess) -> tuple[int, Preprocess]:
    """How much smaller a stored frame is than the input, and how a camera frame becomes one, without normalising."""
    zoom = max(1, -(-max(how.height, how.width) // SIDE))
    height, width = -(-how.height // zoom), -(-how.width // zoom)
    return zoom, replace(how, height=height, width=width, color="bgr", scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def _frame(image: Image, small: Preprocess) -> np.ndarray:
    """A stored frame uint8 [h, w, 3] BGR."""
    planes = letterbox(image, small)[0][0]
    return coarse(np.ascontiguousarray(planes.transpose(1, 2, 0)).astype(np.uint8))


def _places(rows: np.ndarray, head: Head) -> np.ndarray:
    """Which candidates of [n, f] are compared, uint32 [m], ascending: always as many for the same n."""
    order = np.argsort(-candidate_confidence(rows, head), kind="stable")
    rest = np.sort(order[BEST:])
    spread = rest[np.linspace(0, len(rest) - 1, min(SPREAD, len(rest))).astype(np.int64)] if len(rest) else rest
    return np.sort(np.concatenate([order[:BEST], spread])).astype(np.uint32)

"""Activations of several graphs on the same frames: similarity of layers, and attention maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import DeviceError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.images import Image
from edgekd.evaluation.analysis.attention import agreement, as_image, attention
from edgekd.evaluation.analysis.similarity import LinearCka, at_same_positions, samples
from edgekd.evaluation.analysis.tap_points import TapPoint, head_inputs, tap_points
from edgekd.graph.model_file import read_model
from edgekd.graph.nvfp4 import expanded
from edgekd.graph.session import copied, cpu_session, parts_within
from edgekd.graph.view import Graph

POSITIONS = 1024
"""Positions of a frame at which layers are compared."""
MAX_SUM_BYTES = 400_000_000
"""Maximum bytes of the covariance sums of one pass; a network whose layers need more is run in several passes."""

Similarity = Mapping[str, float | None]
"""CKA of layers by the tensor that they write; None where one of them is constant."""


@dataclass(frozen=True)
class ProbedGraph:
    """An ONNX file whose activations are read, and how its frames are preprocessed."""

    path: Path
    spec: DetectorSpec


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention of two networks in frame `frame`, at the layer that writes `layer`, as images uint8 [h, w].

    agreement: Correlation of both maps. after, agreement: None where the other network has no such layer.
    """

    frame: int
    layer: str
    before: np.ndarray
    after: np.ndarray | None
    agreement: float | None


def similarities(
    reference: ProbedGraph, others: Sequence[ProbedGraph], frames: Sequence[Image], progress: Progress = SILENT
) -> tuple[Similarity, ...]:
    """Return for each of `others` the CKA of its layers with those of the reference that write the same tensors.

    Maps of a larger input are average-pooled to the size of the smaller one. Layers are left out if they are missing,
    or if the size of their maps is no multiple of the smaller one.

    Args:
        frames: uint8 [h, w, 3] BGR.

    Raises:
        DeviceError: One of the graphs cannot run.
    """
    probes = [_Probe(each) for each in (reference, *others)]
    results: list[dict[str, float | None]] = [{} for _ in others]
    for points in _passes(probes[0].graph):
        for probe in probes:
            probe.open(points)
        sums: list[dict[str, LinearCka]] = [{} for _ in others]
        for frame in progress.items(frames, "compare layers"):
            expected, *outputs = (probe.run(frame) for probe in probes)
            for similarity, output in zip(sums, outputs, strict=True):
                _add_frame(similarity, points, expected, output)
        for values, similarity in zip(results, sums, strict=True):
            values |= {name: each.value() for name, each in similarity.items()}
    return tuple(results)


def attention_maps(before: ProbedGraph, after: ProbedGraph, frames: Sequence[Image]) -> Iterator[AttentionMap]:
    """Yield the attention of both networks at each layer that the heads of `before` read, frame by frame.

    Raises DeviceError where one of the graphs cannot run.
    """
    probes = [_Probe(each) for each in (before, after)]
    points = head_inputs(probes[0].graph)
    for probe in probes:
        probe.open(points)
    for index, frame in enumerate(frames):
        first, second = (probe.run(frame) for probe in probes)
        for point in points:
            ours = attention(first[point.output])
            theirs = attention(second[point.output]) if point.output in second else None
            pair = None if theirs is None else at_same_positions(ours[None, None], theirs[None, None])
            yield AttentionMap(
                frame=index,
                layer=point.output,
                before=as_image(ours),
                after=None if theirs is None else as_image(theirs),
                agreement=None if pair is None else agreement(*pair),
            )


def _add_frame(
    sums: dict[str, LinearCka],
    points: Sequence[TapPoint],
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
) -> None:
    for point in points:
        if point.output not in actual:
            continue
        pair = at_same_positions(expected[point.output], actual[point.output], channels_last=point.channels_last)
        if pair is not None:
            first, second = (samples(each, POSITIONS, channels_last=point.channels_last) for each in pair)
            sums.setdefault(point.output, LinearCka()).add(first, second)


def _passes(graph: Graph) -> Iterator[list[TapPoint]]:
    """Yield lists of layers whose sums, three float64 [channels, channels] each, take at most MAX_SUM_BYTES."""
    writers = {node.output[0]: node for node in graph.nodes}

    def sum_bytes(point: TapPoint) -> int:
        shape = graph.shape(writers[point.output].input[1]) or (1,)
        return 24 * int(max(shape) if point.channels_last else shape[0]) ** 2

    return parts_within(tap_points(graph), sum_bytes, MAX_SUM_BYTES)


class _Probe:
    """A graph that is opened again for each set of layers whose activations are read."""

    def __init__(self, probed: ProbedGraph) -> None:

        self._spec = probed.spec
        self._path = probed.path
        self.graph = Graph(expanded(read_model(probed.path)))
        self._written = {name for node in self.graph.nodes for name in node.output}
        self._session: Any = None
        self._tensors: dict[str, str] = {}

    def open(self, points: Sequence[TapPoint]) -> None:
        """Open a session whose outputs are these layers, after their activation functions if those tensors exist.

        Raises DeviceError.
        """
        import onnx

        tensors = {
            point.output: next((name for name in (point.activated, point.output) if name in self._written), None)
            for point in points
        }
        self._tensors = {output: name for output, name in tensors.items() if name is not None}
        model = copied(self.graph.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(self._tensors.values()))
        try:
            self._session = cpu_session(model) if self._tensors else None
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise DeviceError(f"{self._path}: ONNX Runtime cannot open the graph: {error}") from error

    def run(self, frame: Image) -> dict[str, np.ndarray]:
        """Return the activations of a frame, by the tensor that each layer writes. Raises DeviceError."""
        if self._session is None:
            return {}
        batch = letterbox(frame, self._spec.preprocess)[0]
        names = list(dict.fromkeys(self._tensors.values()))
        try:
            outputs = self._session.run(names, {self._session.get_inputs()[0].name: batch})
        except Exception as error:
            raise DeviceError(f"{self._path}: ONNX Runtime cannot run the graph: {error}") from error
        values = dict(zip(names, outputs, strict=True))
        return {output: values[name] for output, name in self._tensors.items()}

"""Several graphs run side by side on the same frames, and looked into: similarity of layers, maps of attention."""

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
from edgekd.evaluation.analysis.attention import agreement, as_shade, attention
from edgekd.evaluation.analysis.similarity import LinearCka, alike, samples
from edgekd.evaluation.analysis.tap_points import Place, places, read_by_heads
from edgekd.graph.session import cpu_session
from edgekd.graph.view import Graph

POSITIONS = 1024
"""Positions of a frame at which layers are compared."""
MOST_BYTES = 400_000_000
"""Of sums that are gathered at once; a network whose layers need more is run several times."""

Similarity = Mapping[str, float | None]
"""CKA of layers by the tensor that they write; None where one of them says nothing."""


@dataclass(frozen=True)
class Looked:
    """A graph to look into, and what it takes."""

    graph: Path
    spec: DetectorSpec


@dataclass(frozen=True, eq=False)
class Map:
    """Where two networks look in frame `frame`, at the layer that writes `layer`: shades uint8 [h, w] of both.

    agreement: correlation of the two. after, agreement: None where the other network has no such layer.
    """

    frame: int
    layer: str
    before: np.ndarray
    after: np.ndarray | None
    agreement: float | None


def similarities(
    reference: Looked, others: Sequence[Looked], frames: Sequence[Image], progress: Progress = SILENT
) -> tuple[Similarity, ...]:
    """How alike the layers of each of `others` are to those of the reference that write tensors of the same names.

    frames: uint8 [h, w, 3] BGR. Maps of a larger input are averaged over areas to those of a smaller one; layers that
    are not there, or whose maps do not divide, are left out. Raises DeviceError where one of the graphs cannot run.
    """
    insides = [_Inside(each) for each in (reference, *others)]
    found: list[dict[str, float | None]] = [{} for _ in others]
    for part in _parts(insides[0].graph):
        for inside in insides:
            inside.open(part)
        sums: list[dict[str, LinearCka]] = [{} for _ in others]
        for frame in progress.items(frames, "compare layers"):
            ours, *theirs = (inside.run(frame) for inside in insides)
            for gathered, values in zip(sums, theirs, strict=True):
                _gather(gathered, part, ours, values)
        for known, gathered in zip(found, sums, strict=True):
            known |= {name: each.value() for name, each in gathered.items()}
    return tuple(found)


def maps(before: Looked, after: Looked, frames: Sequence[Image]) -> Iterator[Map]:
    """Where both networks look, at each of the layers that the heads of `before` read, frame by frame.

    Raises DeviceError where one of the graphs cannot run.
    """
    insides = [_Inside(each) for each in (before, after)]
    shown = read_by_heads(insides[0].graph)
    for inside in insides:
        inside.open(shown)
    for at, frame in enumerate(frames):
        ours, theirs = (inside.run(frame) for inside in insides)
        for place in shown:
            first, second = attention(ours[place.output]), None
            if place.output in theirs:
                second = attention(theirs[place.output])
            pair = None if second is None else alike(first[None, None], second[None, None])
            yield Map(
                frame=at,
                layer=place.output,
                before=as_shade(first),
                after=None if second is None else as_shade(second),
                agreement=None if pair is None else agreement(*pair),
            )


def _gather(
    sums: dict[str, LinearCka], part: Sequence[Place], ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> None:
    for place in part:
        if place.output not in theirs:
            continue
        if (pair := alike(ours[place.output], theirs[place.output], place.rows)) is not None:
            first, second = (samples(each, place.rows, POSITIONS) for each in pair)
            sums.setdefault(place.output, LinearCka()).add(first, second)


def _parts(graph: Graph) -> Iterator[list[Place]]:
    """The layers, as many at a time as there is memory for their sums: three squares of their channels, in float64."""
    part: list[Place] = []
    room = MOST_BYTES
    writes = {node.output[0]: node for node in graph.nodes}
    for place in places(graph):
        weights = graph.shape(writes[place.output].input[1]) or (1,)
        needed = 24 * (max(weights) if place.rows else weights[0]) ** 2
        if part and needed > room:
            yield part
            part, room = [], MOST_BYTES
        part.append(place)
        room -= needed
    if part:
        yield part


class _Inside:
    """A graph, opened anew for each set of layers that is looked at."""

    def __init__(self, looked: Looked) -> None:
        import onnx

        from edgekd.graph.nvfp4 import expanded

        self._spec = looked.spec
        self._name = looked.graph
        self.graph = Graph(expanded(onnx.load(looked.graph)))
        self._made = {name for node in self.graph.nodes for name in node.output}
        self._session: Any = None
        self._asked: dict[str, str] = {}

    def open(self, looked_at: Sequence[Place]) -> None:
        """Look at these layers: behind their activations where the graph has them, else at what they write."""
        import onnx

        names = {
            place.output: next((n for n in (place.shown, place.output) if n in self._made), None) for place in looked_at
        }
        self._asked = {output: name for output, name in names.items() if name is not None}
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(self._asked.values()))
        try:
            self._session = cpu_session(model) if self._asked else None
        except Exception as error:  # ONNX Runtime's own share no base class
            raise DeviceError(f"{self._name}: ONNX Runtime cannot look into the graph: {error}") from error

    def run(self, frame: Image) -> dict[str, np.ndarray]:
        """What the layers show of a frame, by the tensor that they write."""
        if self._session is None:
            return {}
        batch = letterbox(frame, self._spec.preprocess)[0]
        wanted = list(dict.fromkeys(self._asked.values()))
        try:
            found = self._session.run(wanted, {self._session.get_inputs()[0].name: batch})
        except Exception as error:
            raise DeviceError(f"{self._name}: ONNX Runtime cannot run the graph: {error}") from error
        values = dict(zip(wanted, found, strict=True))
        return {output: values[name] for output, name in self._asked.items()}

"""Input and output of the shipped graph: raw frames instead of normalised planes, only the best candidates, batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from edgekd.core.detection.types import DetectorSpec, Head, InputFormat
from edgekd.core.errors import SpecError
from edgekd.detectors.heads.decoding import append_decoding
from edgekd.detectors.heads.description import HeadDescription
from edgekd.detectors.onnx import describe_in
from edgekd.graph.batches import take_batches
from edgekd.graph.raw_input import take_raw_frames
from edgekd.graph.selection import keep_best

Postprocess = Literal["host", "graph"]


@dataclass(frozen=True)
class Interface:
    """Input and output of a graph.

    Args:
        input: Format of the input.
        postprocess: `graph`: the graph decodes and selects the best candidates; `host`: its output is the detector's
            own.
        float_bytes: As in `Preprocess`.
        batch: As in `DetectorSpec`.
    """

    input: InputFormat = "float32"
    postprocess: Postprocess = "host"
    float_bytes: bool = False
    batch: int = 1


def with_interface(model: Any, spec: DetectorSpec, interface: Interface, where: str) -> DetectorSpec:
    """Change the interface of a graph in place; return its contract, which is also written into the graph.

    where: start of error messages. Raises SpecError if that is impossible.
    """
    if interface.input != "float32":
        preprocess = replace(spec.preprocess, input=interface.input, float_bytes=interface.float_bytes)
        take_raw_frames(model, preprocess, where)
        spec = replace(spec, preprocess=preprocess)
    if interface.postprocess == "graph" and spec.head.kind != "end2end":
        decoded = _decoded(model, spec, where)
        spec = replace(spec, head=keep_best(model, decoded, len(spec.classes), several=interface.batch > 1))
    if interface.batch > 1:
        take_batches(model, where)
        spec = replace(spec, batch=interface.batch)
    describe_in(model, spec)
    return spec


def _decoded(model: Any, spec: DetectorSpec, where: str) -> Head:
    """Append the decoding of a `yolox` head in place; return the head of kind `yolo`. Raises SpecError."""
    if spec.head.kind == "yolo":
        return spec.head
    if spec.head.extra:
        found = f"a yolox head with {spec.head.beside_boxes}"
        raise SpecError(f"{where}: no selection of candidates", expected="boxes alone", found=found)
    described = HeadDescription(
        predictions=(model.graph.output[0].name,),
        columns=("boxes", "objectness", "scores"),
        coding="grid",
        unit="cells",
        activation="none",
        background="none",
        strides=spec.head.strides,
        nms=spec.head.nms,
    )
    return append_decoding(model, described, (spec.preprocess.height, spec.preprocess.width), where)

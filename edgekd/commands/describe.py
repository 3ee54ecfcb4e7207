"""`edgekd describe`: how the outputs of a model become detections, as a file for `--head`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.commands.options import Head, Model, Trust
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.documents import Result
from edgekd.core.toml import non_default, toml_text
from edgekd.deploy.artifact import opened
from edgekd.detectors.family import detector_file, require_family
from edgekd.detectors.heads.description import HeadDescription
from edgekd.detectors.onnx import understand
from edgekd.graph.view import load_graph


@dataclass(frozen=True)
class Described(Result):
    """A detector, as edgekd interprets it.

    Args:
        model: Path of the model.
        detector: Contract of the graph that compression starts from: classes, input, and output.
        description: The same as TOML, for `--head`.
        unsure: Keys of the description whose values are usual for such outputs, but are not confirmed by the graph.
    """

    model: Path
    detector: DetectorSpec
    description: str
    unsure: tuple[str, ...]


def describe(model: Model, *, head: Head = None, trust_checkpoint: Trust = False) -> Described:
    """Describe the detector in a model. Raises SpecError. The command: `edgekd describe`."""
    model = detector_file(Path(model))
    if require_family(model).is_graph:
        understood = understand(load_graph(model), model, head)
        spec, completed = understood.spec, understood.completed
        described = completed.description if completed else _of_kind(spec)
        unsure = completed.unsure if completed else ()
    else:
        with opened(model, head, (), trust_checkpoint) as (_, spec):
            described, unsure = _of_kind(spec), ()
    return Described(model, spec, toml_text(non_default(described.with_spec(spec))), unsure)


def _of_kind(spec: DetectorSpec) -> HeadDescription:
    head, keypoints = spec.head, spec.head.keypoints
    described = HeadDescription(
        kind=head.kind,
        nms=head.nms,
        strides=head.strides,
        rotated=head.rotated or None,
        masks=True if head.masks else None,
    )
    if keypoints is None:
        return described
    shape = len(keypoints.sigmas), keypoints.dimensions
    return replace(described, keypoints=shape, keypoint_sigmas=keypoints.sigmas)

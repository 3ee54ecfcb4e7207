"""Completion of a head's description from the graph, by shapes, names and operators of its outputs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekd.core.errors import SpecError
from edgekd.detectors.heads.description import Coding, HeadDescription, Part, Unit
from edgekd.graph.view import Dims, Graph

USUAL_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32), (8, 16, 32, 64, 128), (16,))
"""Strides of detectors, the most common ones first."""
ANCHORS_OF_YOLOV5 = 3
"""Boxes per cell of YOLOv5 and YOLOv7."""

_NAMES: Mapping[Part, tuple[str, ...]] = {
    "objectness": ("obj",),
    "scores": ("cls", "class", "score", "conf", "logit", "prob", "label"),
    "boxes": ("box", "reg", "dis", "loc", "det"),
}
"""Parts of the names of outputs, by role."""
_PASSING = (
    "Reshape",
    "Transpose",
    "Concat",
    "Identity",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Flatten",
    "Cast",
    "Mul",
    "Sqrt",
)
"""Operators that move values without changing them, or multiply scores of classes by objectness."""
_INTEGERS = (6, 7)  # TensorProto.INT32, INT64
_FIX = "describe it in a TOML file, --head FILE.toml: see `edgekd describe`"


@dataclass(frozen=True)
class Completion:
    """A complete description.

    unsure: keys with values that are common for such outputs, but not confirmed by the graph.
    """

    description: HeadDescription
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """An output of a graph. kind: element type, a number of TensorProto."""

    name: str
    shape: Dims
    kind: int

    @property
    def is_map(self) -> bool:
        """True for a feature map [1, c, h, w] or [1, anchors, h, w, c]."""
        return len(self.shape) >= 4

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(str(side or '?') for side in self.shape)}]"


def complete(model: Any, given: HeadDescription, size: tuple[int, int], where: str) -> Completion:
    """Complete a description of a head whose outputs have roles.

    model: a graph with a fixed input size; size: height and width of the input; where: start of error messages. Raises
    SpecError if the roles of outputs or the strides cannot be found.
    """
    graph = Graph(model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    outputs = [Output(name, graph.shapes[name], types[name]) for name in graph.outputs]
    _require_names(given, outputs, where)
    described = _with_roles(given, outputs, size, where)
    by_name = {output.name: output for output in outputs}
    described, unsure = _with_coding(described, by_name, size, where)
    source = (described.scores or described.predictions)[0]
    if described.activation is None:
        activated = described.labels is not None or _activated(graph, source)
        described = replace(described, activation="none" if activated else "sigmoid")
        unsure += () if activated else ("activation",)
    ends = described.labels is not None or described.unit == "fraction"
    nms = described.nms if described.nms is not None else not ends
    return Completion(replace(described, nms=nms, background=described.background or "none"), unsure)


def has_roles(described: HeadDescription) -> bool:
    """Return whether a description has roles of outputs, or the parts or coding of boxes, instead of a kind."""
    return described.kind is None and any(
        (described.boxes, described.predictions, described.labels, described.coding, described.columns)
    )


def is_yolov5(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Return whether the shape is that of an output [1, n, 5 + classes] with three boxes per cell."""
    return len(shape) == 3 and shape[2] > 5 and shape[1] == ANCHORS_OF_YOLOV5 * cells(size, USUAL_STRIDES[0])


def cells(size: tuple[int, int], strides: Sequence[float]) -> int:
    """Return the number of cells of all levels; rows and columns are rounded up."""
    return sum(math.ceil(size[0] / stride) * math.ceil(size[1] / stride) for stride in strides)


def _require_names(given: HeadDescription, outputs: list[Output], where: str) -> None:
    labels = (given.labels,) if given.labels else ()
    for name in (*given.boxes, *given.scores, *given.objectness, *given.predictions, *labels):
        if name not in {output.name for output in outputs}:
            raise SpecError(f"{where}: no output {name}", expected=_listed(outputs), fix="correct the name")


def _with_roles(given: HeadDescription, outputs: list[Output], size: tuple[int, int], where: str) -> HeadDescription:
    """Return the description with outputs for all roles. Raises SpecError."""
    if given.predictions or (given.boxes and given.scores):
        return given
    if len(outputs) == 1 or given.columns:
        usual: tuple[Part, ...] = ("boxes", "objectness", "scores")
        levels = tuple(output.name for output in sorted(outputs, key=_positions, reverse=True))
        return replace(given, predictions=levels, columns=given.columns or usual)
    integers = [output for output in outputs if output.kind in _INTEGERS]
    if len(outputs) == 3 and len(integers) == 1:
        return _finished(given, outputs, integers[0], where)
    roles = _levels(outputs, size, where)
    objectness = roles.get("objectness", ())
    return replace(given, boxes=roles["boxes"], scores=roles["scores"], objectness=objectness)


def _finished(given: HeadDescription, outputs: list[Output], labels: Output, where: str) -> HeadDescription:
    boxes = [output for output in outputs if output.shape and output.shape[-1] == 4]
    scores = [output for output in outputs if output is not labels and output not in boxes]
    if len(boxes) != 1 or len(scores) != 1:
        raise _unknown(outputs, where)
    return replace(given, boxes=(boxes[0].name,), scores=(scores[0].name,), labels=labels.name)


def _levels(outputs: list[Output], size: tuple[int, int], where: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the outputs of each role, finest level first: by names, else by numbers of columns.

    Raises SpecError if neither is clear.
    """
    by_name: dict[str, list[Output]] = defaultdict(list)
    by_columns: dict[str, list[Output]] = defaultdict(list)
    columns = {output.name: _columns(output, outputs, size) for output in outputs}
    one_each = sorted(set(columns.values()) - {1, 4})
    # Objectness has one column, boxes have four unless their distances have distributions; scores have the rest.
    roles = {1: "objectness", 4: "boxes"} | ({one_each[0]: "scores"} if len(one_each) == 1 else {})
    for output in outputs:
        by_name[_role_by_name(output)].append(output)
        by_columns[roles.get(columns[output.name], "")].append(output)
    for grouped in (by_name, by_columns):
        levels = {len(group) for group in grouped.values()}
        if {"boxes", "scores"} <= set(grouped) <= {"boxes", "scores", "objectness"} and len(levels) == 1:
            return {
                role: tuple(output.name for output in sorted(group, key=_positions, reverse=True))
                for role, group in grouped.items()
            }
    raise _unknown(outputs, where)


def _role_by_name(output: Output) -> str:
    """Return the role that an output's name suggests; an empty string for none or several."""
    fitting = [role for role, parts in _NAMES.items() if any(part in output.name.lower() for part in parts)]
    return fitting[0] if len(fitting) == 1 else ""


def _columns(output: Output, outputs: list[Output], size: tuple[int, int]) -> int:
    """Return the number of values per box of an output; 0 if unknown."""
    if output.is_map:
        return output.shape[-1 if len(output.shape) == 5 else 1] or 0
    if len(output.shape) < 3:
        return output.shape[-1] or 0 if len(output.shape) == 2 else 0
    first, last = output.shape[1] or 0, output.shape[2] or 0
    shared = {side for other in outputs if other is not output for side in other.shape[1:]}
    if (first in shared) != (last in shared):
        return last if first in shared else first
    single = {cells(size, (stride,)) for strides in USUAL_STRIDES for stride in strides}
    boxes = single | {cells(size, strides) for strides in USUAL_STRIDES}
    return first if last in boxes and first not in boxes else last


def _positions(output: Output) -> int:
    """Return the number of values of an output, which is larger at finer levels."""
    return math.prod(side or 1 for side in output.shape)


def _with_coding(
    described: HeadDescription, outputs: Mapping[str, Output], size: tuple[int, int], where: str
) -> tuple[HeadDescription, tuple[str, ...]]:
    """Return the description with strides and the coding of boxes, and the keys that the graph does not confirm."""
    unsure: tuple[str, ...] = ()
    first = outputs[(described.boxes or described.predictions)[0]]
    if described.bins is None:
        distances = described.boxes and not described.labels and described.coding in (None, "ltrb")
        found = _columns(first, list(outputs.values()), size) if distances else 4
        described = replace(described, bins=found // 4 if found > 4 and found % 4 == 0 else 1)
    if not described.strides:
        described = replace(described, strides=_strides(described, outputs, size))
    if described.coding is None:
        coding, unit, sure = _usual_coding(described, first)
        described = replace(described, coding=coding, unit=described.unit or unit)
        unsure += () if sure else ("coding", "unit")
    unit = "cells" if described.coding in ("ltrb", "grid", "anchors") else "pixels"
    described = replace(described, unit=described.unit or unit)
    if described.coding in ("ltrb", "priors") and described.cell_offset is None:
        described, unsure = replace(described, cell_offset=0.5), (*unsure, "cell_offset")
    if described.coding in ("ltrb", "grid", "anchors", "priors") and not described.strides:
        fix = "add `strides = [...]`"
        raise SpecError(f"{where}: strides", expected="pixels of a cell at each level", found=str(first), fix=fix)
    return described, unsure


def _usual_coding(described: HeadDescription, first: Output) -> tuple[Coding, Unit, bool]:
    """Return the common coding and unit of such outputs, and whether any other is unlikely."""
    if described.labels:
        return "xyxy", "pixels", True
    if described.predictions:
        return ("anchors", "cells", True) if described.anchors else ("cxcywh", "pixels", not first.is_map)
    if described.bins and described.bins > 1:
        return "ltrb", "cells", True
    if described.objectness:
        return "grid", "cells", True
    if first.is_map or len(described.boxes) > 1:
        return "ltrb", "cells", False
    return ("xyxy", "pixels", False) if described.strides else ("cxcywh", "fraction", True)


def _strides(described: HeadDescription, outputs: Mapping[str, Output], size: tuple[int, int]) -> tuple[int, ...]:
    """Return the strides of the levels in pixels; empty for boxes without a grid."""
    levels = [outputs[name] for name in described.boxes or described.predictions]
    if all(level.is_map for level in levels):
        heights = [level.shape[2] for level in levels]
        return tuple(round(size[0] / height) for height in heights if height)
    width = 4 * (described.bins or 1)
    counts = [level.shape[2 if level.shape[1] == width else 1] or 0 if len(level.shape) == 3 else 0 for level in levels]
    if len(levels) > 1:
        single = sorted({stride for strides in USUAL_STRIDES for stride in strides})
        found = [next((each for each in single if cells(size, (each,)) == count), 0) for count in counts]
        return tuple(found) if all(found) else ()
    return next((strides for strides in USUAL_STRIDES if counts[0] in _boxes(size, strides)), ())


def _boxes(size: tuple[int, int], strides: Sequence[int]) -> tuple[int, int]:
    return cells(size, strides), ANCHORS_OF_YOLOV5 * cells(size, strides)


def _activated(graph: Graph, tensor: str) -> bool:
    """Return whether an output's values are scores by a sigmoid or softmax; False for logits."""
    pending, seen = [tensor], set[str]()
    while pending:
        name = pending.pop()
        node = graph.producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in ("Sigmoid", "Softmax", "HardSigmoid"):
            return True
        if node.op_type in _PASSING:
            pending += graph.activations(node)
    return False


def _unknown(outputs: list[Output], where: str) -> SpecError:
    return SpecError(
        f"{where}: the outputs are not recognised",
        expected="`boxes` and `scores`, as the names of outputs",
        found=_listed(outputs),
        fix=_FIX,
    )


def _listed(outputs: list[Output]) -> str:
    return ", ".join(map(str, outputs))

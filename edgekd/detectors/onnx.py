"""Detectors in ONNX graphs, with a head that is recognised or described."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np

from edgekd.core.canonical import short_int
from edgekd.core.detection.checked_spec import MAX_CLASSES, checked_spec
from edgekd.core.detection.types import DetectorSpec, Head, Keypoints, Masks, Preprocess, Task, spec_from_json
from edgekd.core.documents import to_plain
from edgekd.core.errors import SpecError
from edgekd.detectors.family import Family
from edgekd.detectors.heads.completion import Completion, complete, has_roles, is_yolov5
from edgekd.detectors.heads.decoding import append_decoding
from edgekd.detectors.heads.description import HeadDescription, read_description
from edgekd.detectors.heads.inputs import fix_input, image_inputs, set_constants
from edgekd.detectors.keypoints import keypoints_of
from edgekd.detectors.literals import read_literal
from edgekd.detectors.masks import join_prototypes
from edgekd.graph.opset import to_opset
from edgekd.graph.rehearsal import rehearse
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import inputs_of, load_graph, onnx_type_name, opset_of

SPEC_KEY = "edgekd.detector"
"""The metadata property with the description of a graph that edgekd wrote."""

MIN_OPSET = 13
"""Lowest opset of an exported graph: Q/DQ per channel needs it."""
TASKS: tuple[str, ...] = get_args(Task)
"""Ultralytics' names of the supported tasks."""
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_DESCRIBE = (
    "describe it with --head NAME or --head FILE.toml: `kind`, or the roles of outputs such as `boxes` and `scores`; "
    "`edgekd describe` prints such a file"
)


@dataclass(frozen=True)
class Understood:
    """A detector in a graph. spec: contract of the graph, including appended decoding.

    completed: the completed description of a head whose outputs have roles; None for one output of a known kind.
    appended: whether nodes were added to the graph.
    """

    spec: DetectorSpec
    completed: Completion | None = None
    appended: bool = False


class OnnxDetector:
    """An ONNX file; it contains no code that could run.

    head: a kind of head, the name of a shipped description, or a TOML file that describes it; None to recognise it.
    classes: class names, if the graph has none.
    """

    family = "onnx"
    libraries: tuple[str, ...] = ()

    def __init__(self, path: Path, head: str | None = None, classes: tuple[str, ...] = (), **_: Any) -> None:
        self.path = path
        self._head = head
        self._classes = classes

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the graph with batch 1, and an opset from MIN_OPSET to `opset`. Raises SpecError."""
        import onnx

        model = load_graph(self.path)
        understood = understand(model, self.path, self._head, self._classes, opset)
        spec, size = understood.spec, (understood.spec.preprocess.height, understood.spec.preprocess.width)
        if spec.preprocess.input != "float32":
            fix = "start from the model that it was built from"
            raise SpecError(
                f"{self.path}: takes raw frames", expected="an input float32", found=spec.preprocess.input, fix=fix
            )
        if not understood.appended:
            rehearse(self.path, size)
            fix_input(model, size)
            model = to_opset(model, min(max(opset_of(model), MIN_OPSET), opset), str(self.path))
        onnx.save(model, graph)
        return replace(spec, batch=1)

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the file's own output in float32 for a batch [1, 3, h, w], with decoding if the export appends it."""
        import onnx

        model = load_graph(self.path)
        if not understand(model, self.path, self._head, self._classes).appended:
            with ONNXRUNTIME_CPU.load(self.path) as session:
                return session.run(batch)
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            decoded = Path(scratch) / "decoded.onnx"
            onnx.save(model, decoded)
            with ONNXRUNTIME_CPU.load(decoded) as session:
                return session.run(batch)


FAMILY = Family(name="onnx", title="ONNX", suffix=".onnx", load=OnnxDetector, is_graph=True)


def understand(
    model: Any, path: Path, head: str | None = None, names: tuple[str, ...] = (), opset: int | None = None
) -> Understood:
    """Describe the detector in a graph: by edgekd's metadata, by `head`, or recognised by its shapes and names.

    If the agent cannot decode the outputs, their decoding is appended to the graph in place. names: class names, if the
    graph has none; opset: highest opset that the graph may then have. Raises SpecError.
    """
    metadata = _metadata(model)
    if head is None and SPEC_KEY in metadata:
        return Understood(_own_description(model, metadata[SPEC_KEY], path))
    given = _given(head, metadata, path)
    size = _input_size(model, metadata, given, path)
    of_masks = metadata.get("task") == "segment" and not has_roles(given)
    if of_masks if given.masks is None else given.masks:
        _prepare(model, path, size, opset)
        masks = join_prototypes(model, str(path))
        return Understood(_of_one_output(model, given, size, path, names, masks), appended=True)
    if not _decoded_by_the_agent(model, given, size):
        return _with_decoding(model, given, size, path, names, opset)
    return Understood(_of_one_output(model, given, size, path, names))


def describe(model: Any, path: Path, head: str | None = None, names: tuple[str, ...] = ()) -> DetectorSpec:
    """Describe the detector in a graph with one output of a known kind, like `understand`. Raises SpecError."""
    metadata = _metadata(model)
    if head is None and SPEC_KEY in metadata:
        return _own_description(model, metadata[SPEC_KEY], path)
    given = _given(head, metadata, path)
    if len(model.graph.output) != 1:
        raise SpecError(f"{path}: wrong outputs", expected="one output", found=_outputs_text(model))
    return _of_one_output(model, given, _input_size(model, metadata, given, path), path, names)


def _of_one_output(
    model: Any,
    given: HeadDescription,
    size: tuple[int, int],
    path: Path,
    names: tuple[str, ...],
    masks: Masks | None = None,
) -> DetectorSpec:
    """Describe a head with one output, of a given or recognised kind. size: height and width of the input."""
    metadata = _metadata(model)
    classes, keypoints = _class_names(metadata), _keypoints(given, metadata, path)
    shape = _shape(model.graph.output[0])
    rotated = metadata.get("task") == "obb" if given.rotated is None else given.rotated
    head, pixels = Head("yolo", keypoints=keypoints, rotated=rotated, masks=masks), _pixels(masks)
    shape = [*shape[:2], *(side - pixels for side in shape[2:])]
    kind: Any = given.kind or _recognise(model, shape, size, len(classes), path, head.extra)
    cells = (shape[2] if kind == "yolo" else shape[1]) if len(shape) == 3 else 0
    fitting = next((strides for strides in _STRIDES if _cells(size, strides) == cells), _STRIDES[0])
    nms = given.nms if given.nms is not None else kind != "end2end"
    classes = given.classes or classes or names or _numbered(kind, shape, path, head.extra)
    usual = Preprocess(*size, color="bgr", scale=1.0, center=False) if kind == "yolox" else Preprocess(*size)
    strides = tuple(map(round, given.strides)) or fitting
    spec = DetectorSpec(classes, given.preprocess(usual), replace(head, kind=kind, nms=nms, strides=strides))
    checked_spec(spec, f"{path}: detector")
    _require_shape(spec, shape, path)
    return spec


def _pixels(masks: Masks | None) -> int:
    return masks.height * masks.width if masks else 0


def _metadata(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _given(head: str | None, metadata: dict[str, str], path: Path) -> HeadDescription:
    """Return the description that `head` names.

    Raises SpecError for an invalid description, and without one for metadata with an unsupported task.
    """
    task = metadata.get("task", TASKS[0])
    if head is None and task not in TASKS:
        expected, fix = f"task {' or '.join(TASKS)}", "export a detector"
        raise SpecError(f"{path}: its task is not supported", expected=expected, found=task[:80], fix=fix)
    return read_description(head)


def _keypoints(given: HeadDescription, metadata: dict[str, str], path: Path) -> Keypoints | None:
    """Return the keypoints in the last columns, from the description or Ultralytics' metadata. Raises SpecError."""
    of_pose = metadata.get("task") == "pose"
    shape = given.keypoints or (read_literal(metadata.get("kpt_shape", "")) if of_pose else None)
    return keypoints_of(shape, given.keypoint_sigmas, str(path)) if shape or of_pose else None


def _outputs_text(model: Any) -> str:
    return ", ".join(f"{each.name} {_shape(each)}" for each in model.graph.output)


def _decoded_by_the_agent(model: Any, given: HeadDescription, size: tuple[int, int]) -> bool:
    """Return whether a graph has one input, and one output of a given kind, or of one to be recognised."""
    one = len(inputs_of(model)) == 1 and len(model.graph.output) == 1
    if given.kind or not one:
        return one
    return not has_roles(given) and not is_yolov5(_shape(model.graph.output[0]), size)


def _with_decoding(
    model: Any,
    given: HeadDescription,
    size: tuple[int, int],
    path: Path,
    names: tuple[str, ...],
    opset: int | None,
) -> Understood:
    """Append the decoding of outputs that have roles, in place. Raises SpecError."""
    if given.kind:
        expected = f'one output, as `kind = "{given.kind}"` says'
        raise SpecError(f"{path}: wrong outputs", expected=expected, found=_outputs_text(model), fix=_DESCRIBE)
    _prepare(model, path, size, opset, given.constants or {})
    completed = complete(model, given, size, str(path))
    head = append_decoding(model, completed.description, size, str(path))
    known = given.classes or _class_names(_metadata(model)) or names
    shape = _shape(model.graph.output[0])
    count = shape[1] - 4 if head.kind == "yolo" else len(known)
    classes = known or _numbered(head.kind, shape, path)
    if len(classes) != count:
        expected = f"{count} class names, one for each column of scores"
        fix = "set `classes`, or `class_columns` and `background`, in a TOML file for --head"
        raise SpecError(f"{path}: wrong classes", expected=expected, found=f"{len(classes)} names", fix=fix)
    # Transformers without a grid of cells are trained on frames that are stretched to the input.
    usual = Preprocess(*size, stretch=completed.description.unit == "fraction")
    spec = DetectorSpec(classes, given.preprocess(usual), head)
    return Understood(checked_spec(spec, f"{path}: detector"), completed, appended=True)


def _prepare(
    model: Any,
    path: Path,
    size: tuple[int, int],
    opset: int | None,
    constants: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> None:
    """Rehearse a graph; then, in place, give it fixed inputs and an opset in which nodes can be appended."""
    rehearse(path, size)
    own = opset_of(model)
    fix_input(model, size)
    set_constants(model, constants, size, str(path))
    model.CopyFrom(to_opset(model, min(max(own, MIN_OPSET), opset or max(own, MIN_OPSET)), str(path)))


def _own_description(model: Any, text: str, path: Path) -> DetectorSpec:
    """Return the description in a graph's metadata. It is not trusted: anyone can write it. Raises SpecError."""
    where = f"{path}: metadata {SPEC_KEY}"
    try:
        spec = spec_from_json(json.loads(text, parse_int=short_int))
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"{where}: damaged", found=repr(error)[:200], fix=_DESCRIBE) from error
    checked_spec(spec, where)
    shape = _shape(model.graph.output[0]) if len(model.graph.output) == 1 else []
    axis, beside = {"yolo": (1, 4), "yolox": (2, 5), "end2end": (2, 6)}[spec.head.kind]
    columns = spec.head.extra + (beside if spec.head.kind == "end2end" else beside + len(spec.classes))
    if len(shape) == 3 and shape[axis] not in (0, columns):
        expected = f"an output with {columns} values a box"
        raise SpecError(f"{where}: not of this graph", expected=expected, found=str(shape), fix=_DESCRIBE)
    return spec


def describe_in(model: Any, spec: DetectorSpec) -> None:
    """Write the spec into the graph, for edgekd and, under its own keys, for Ultralytics' `predict` and `val`."""
    import onnx

    size, keypoints = [spec.preprocess.height, spec.preprocess.width], spec.head.keypoints
    entries = {
        SPEC_KEY: json.dumps(to_plain(spec), sort_keys=True),
        "names": str(dict(enumerate(spec.classes))),
        "stride": str(max(spec.head.strides)),
        "task": spec.head.task,
        "imgsz": str(size),
        **({"kpt_shape": str([len(keypoints.sigmas), keypoints.dimensions])} if keypoints else {}),
    }
    onnx.helper.set_model_props(model, dict(sorted(entries.items())))


def _recognise(model: Any, shape: list[int], size: tuple[int, int], classes: int, path: Path, extra: int) -> str:
    """Return the kind of head that matches an output's shape; extra: columns after the scores. Raises SpecError."""
    if len(shape) == 3:
        _, rows, columns = shape
        cells = [_cells(size, strides) for strides in _STRIDES]
        undecoded = not any(node.op_type == "Exp" for node in model.graph.node)
        if columns in cells and rows > 4 + extra and classes in (0, rows - 4 - extra):
            return "yolo"
        if rows in cells and columns > 5 + extra and undecoded and classes in (0, columns - 5 - extra):
            return "yolox"
        if columns == 6 + extra and 0 < rows <= 1000 and rows not in cells:
            return "end2end"
    raise SpecError(
        f"{path}: the head is not recognised",
        expected="one output [1, 4 + classes, n], undecoded [1, n, 5 + classes] or [1, n, 6]",
        found=f"{shape} for an input of {size[0]}x{size[1]}" + (f" and {classes} class names" if classes else ""),
        fix=_DESCRIBE,
    )


def _require_shape(spec: DetectorSpec, shape: list[int], path: Path) -> None:
    """Raise SpecError for a description that the output's shape contradicts."""
    count, kind, extra = len(spec.classes), spec.head.kind, spec.head.extra
    size = (spec.preprocess.height, spec.preprocess.width)
    expected = {
        "yolo": [1, 4 + count + extra, _cells(size, spec.head.strides)],
        "yolox": [1, _cells(size, spec.head.strides), 5 + count + extra],
        "end2end": [1, shape[1] if len(shape) == 3 else 300, 6 + extra],
    }[kind]
    if len(shape) != 3 or any(side not in (0, fitting) for side, fitting in zip(shape, expected, strict=True)):
        raise SpecError(
            f"{path}: wrong outputs for a {kind} head with {count} classes and strides {list(spec.head.strides)}",
            expected=str(expected),
            found=str(shape),
            fix=_DESCRIBE,
        )


def _input_size(model: Any, metadata: dict[str, str], given: HeadDescription, path: Path) -> tuple[int, int]:
    """Return height and width of the input; for a dynamic input the training size in the metadata. Raises SpecError."""
    images = image_inputs(model)
    others = len(inputs_of(model)) > 1 and (given.kind or (len(model.graph.output) == 1 and not has_roles(given)))
    shape = _shape(images[0]) if len(images) == 1 and not others else []
    if len(shape) != 4 or shape[1] != 3:
        raise SpecError(
            f"{path}: wrong inputs",
            expected="one input float32 [1, 3, height, width]",
            found=", ".join(
                f"{value.name} {onnx_type_name(value.type.tensor_type.elem_type)} {_shape(value)}"
                for value in inputs_of(model)
            )
            or "none",
            fix="export the network alone, in float32 and without preprocessing",
        )
    height, width = shape[2:]
    if not (height and width):
        height, width = _size_in(metadata)
    if not (height and width):
        raise SpecError(f"{path}: the input size is dynamic", found=str(shape), fix="export it with a fixed size")
    return height, width


def _size_in(metadata: dict[str, str]) -> tuple[int, int]:
    """Return height and width from Ultralytics' metadata, `[640, 640]`; zeros without it."""
    size = read_literal(metadata.get("imgsz", ""))
    if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return 0, 0


def _class_names(metadata: dict[str, str]) -> tuple[str, ...]:
    """Return class names from metadata: Ultralytics' dictionary by number, or a list; empty without any."""
    names = read_literal(metadata.get("names", ""))
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        return tuple(str(names[key]) for key in sorted(names, key=int))
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _numbered(kind: str, shape: list[int], path: Path, extra: int = 0) -> tuple[str, ...]:
    """Return numbered names, as many as the output has classes; extra: columns after the scores. Raises SpecError."""
    count = {"yolo": shape[1] - 4, "yolox": shape[2] - 5}.get(kind, extra) - extra if len(shape) == 3 else 0
    if count > MAX_CLASSES:
        expected = f"at most {MAX_CLASSES} classes"
        raise SpecError(f"{path}: too many classes", expected=expected, found=str(count), fix=_DESCRIBE)
    if count < 1:
        raise SpecError(
            f"{path}: the class names are not in the graph",
            expected="metadata `names`, or `classes` in a head description",
            fix="add `classes = [...]` to a TOML with `kind` and pass it with --head FILE.toml",
        )
    return tuple(f"class{index}" for index in range(count))


def _cells(size: tuple[int, int], strides: tuple[int, ...]) -> int:
    return sum((size[0] // stride) * (size[1] // stride) for stride in strides)


def _shape(value: Any) -> list[int]:
    """Return the shape of a graph's input or output; 0 for a dynamic dimension."""
    return [axis.dim_value for axis in value.type.tensor_type.shape.dim]

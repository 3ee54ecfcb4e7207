"""Detectors that come as ONNX graphs, with a head that is recognised or described."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekd.core.canonical import short_int
from edgekd.core.detection.checked_spec import MAX_CLASSES, checked_spec
from edgekd.core.detection.types import HEADS, DetectorSpec, Head, Preprocess, spec_from_json
from edgekd.core.errors import SpecError
from edgekd.core.toml import parse_table, read_toml
from edgekd.detectors.family import Family
from edgekd.detectors.literals import read_literal
from edgekd.graph.opset import to_opset
from edgekd.graph.rehearsal import rehearse
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import inputs_of, load_graph, onnx_type_name, opset_of

SPEC_KEY = "edgekd.detector"
"""The metadata property in which a graph that edgekd wrote describes itself."""

MIN_OPSET = 13
"""Least opset of an exported graph: Q/DQ per channel needs it."""
_FLOAT32 = 1  # TensorProto.FLOAT
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
_DESCRIBE = (
    "describe it with --head yolo|yolox|end2end, or --head FILE.toml with `kind` and, where they differ, `nms`, "
    "`strides`, `classes`, `color`, `scale`, `mean`, `std`, `pad_value`, `center`, `upscale`"
)


@dataclass(frozen=True)
class _HeadFile:
    """A TOML file that describes a detector; None for the default of the kind, or what the graph says."""

    kind: Literal["yolo", "yolox", "end2end"]
    nms: bool | None = None
    strides: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    color: Literal["rgb", "bgr"] | None = None
    scale: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pad_value: int | None = None
    center: bool | None = None
    upscale: bool | None = None


class OnnxDetector:
    """An ONNX file, in which nothing can be executed.

    head: a kind of head, or a TOML file that describes it; None to recognise it. classes: names where the graph has
    none.
    """

    family = "onnx"
    libraries: tuple[str, ...] = ()

    def __init__(self, path: Path, head: str | None = None, classes: tuple[str, ...] = (), **_: Any) -> None:
        self.path = path
        self._head = head
        self._classes = classes

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the graph with batch 1, and an opset from MIN_OPSET to `opset`."""
        import onnx

        model = load_graph(self.path)
        spec = describe(model, self.path, self._head, self._classes)
        rehearse(self.path, (spec.preprocess.height, spec.preprocess.width))
        inputs = inputs_of(model)
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        shape = model.graph.input[0].type.tensor_type.shape
        for axis, size in zip(shape.dim, (1, 3, spec.preprocess.height, spec.preprocess.width), strict=True):
            axis.dim_value = size
        onnx.save(to_opset(model, min(max(opset_of(model), MIN_OPSET), opset), str(self.path)), graph)
        return spec

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the file's own output in float32 for a batch [1, 3, h, w]."""
        with ONNXRUNTIME_CPU.load(self.path) as session:
            return session.run(batch)


FAMILY = Family(name="onnx", title="ONNX", suffix=".onnx", load=OnnxDetector, is_graph=True)


def describe(model: Any, path: Path, head: str | None = None, names: tuple[str, ...] = ()) -> DetectorSpec:
    """Describe the detector in a graph: by edgekd's metadata, by `head`, or recognised by its shapes and names.

    names: of the classes, where the graph has none.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if head is None and SPEC_KEY in metadata:
        return _own_description(model, metadata[SPEC_KEY], path)
    if len(model.graph.output) != 1:
        raise SpecError(
            f"{path}: wrong outputs",
            expected="one output that holds all detections",
            found=", ".join(f"{o.name} {_shape(o)}" for o in model.graph.output),
            fix="export the model with its predictions concatenated",
        )
    size = _input_size(model, metadata, path)
    classes = _class_names(metadata)
    described = _read_head(head)
    shape = _shape(model.graph.output[0])
    kind: Any = described.pop("kind", None) or _recognise(model, shape, size, len(classes), path)
    cells = (shape[2] if kind == "yolo" else shape[1]) if len(shape) == 3 else 0
    fitting = next((strides for strides in _STRIDES if _cells(size, strides) == cells), _STRIDES[0])
    strides = tuple(described.pop("strides", None) or fitting)
    nms = described.pop("nms", kind != "end2end")
    classes = tuple(described.pop("classes", classes)) or names or _numbered(kind, shape, path)
    usual = Preprocess(*size, color="bgr", scale=1.0, center=False) if kind == "yolox" else Preprocess(*size)
    spec = DetectorSpec(classes, replace(usual, **described), Head(kind, nms=nms, strides=strides))
    checked_spec(spec, f"{path}: detector")
    _require_shape(spec, shape, path)
    return spec


def _own_description(model: Any, text: str, path: Path) -> DetectorSpec:
    """Return the description that edgekd wrote into a graph, which anybody can write. Raises SpecError."""
    where = f"{path}: metadata {SPEC_KEY}"
    try:
        spec = spec_from_json(json.loads(text, parse_int=short_int))
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"{where}: damaged", found=repr(error)[:200], fix=_DESCRIBE) from error
    checked_spec(spec, where)
    shape = _shape(model.graph.output[0]) if len(model.graph.output) == 1 else []
    axis, beside = {"yolo": (1, 4), "yolox": (2, 5), "end2end": (2, 6)}[spec.head.kind]
    columns = beside if spec.head.kind == "end2end" else beside + len(spec.classes)
    if len(shape) == 3 and shape[axis] not in (0, columns):
        expected = f"an output with {columns} values a box"
        raise SpecError(f"{where}: not of this graph", expected=expected, found=str(shape), fix=_DESCRIBE)
    return spec


def describe_in(model: Any, spec: DetectorSpec) -> None:
    """Write the spec into the graph, for edgekd and, under its own keys, for Ultralytics' `predict` and `val`."""
    import onnx

    size = [spec.preprocess.height, spec.preprocess.width]
    entries = {
        SPEC_KEY: json.dumps(asdict(spec), sort_keys=True),
        "names": str(dict(enumerate(spec.classes))),
        "stride": str(max(spec.head.strides)),
        "task": "detect",
        "imgsz": str(size),
    }
    onnx.helper.set_model_props(model, dict(sorted(entries.items())))


def _recognise(model: Any, shape: list[int], size: tuple[int, int], classes: int, path: Path) -> str:
    """Return the only kind of head that an output's shape fits. Raises SpecError."""
    if len(shape) == 3:
        _, rows, columns = shape
        cells = [_cells(size, strides) for strides in _STRIDES]
        undecoded = not any(node.op_type == "Exp" for node in model.graph.node)
        if columns in cells and rows > 4 and classes in (0, rows - 4):
            return "yolo"
        if rows in cells and columns > 5 and undecoded and classes in (0, columns - 5):
            return "yolox"
        if columns == 6 and 0 < rows <= 1000 and rows not in cells:
            return "end2end"
    raise SpecError(
        f"{path}: the head is not recognised",
        expected="one output [1, 4 + classes, n], undecoded [1, n, 5 + classes] or [1, n, 6]",
        found=f"{shape} for an input of {size[0]}x{size[1]}" + (f" and {classes} class names" if classes else ""),
        fix=_DESCRIBE,
    )


def _require_shape(spec: DetectorSpec, shape: list[int], path: Path) -> None:
    """Raise SpecError for a description that the output's shape contradicts."""
    count, kind = len(spec.classes), spec.head.kind
    size = (spec.preprocess.height, spec.preprocess.width)
    expected = {
        "yolo": [1, 4 + count, _cells(size, spec.head.strides)],
        "yolox": [1, _cells(size, spec.head.strides), 5 + count],
        "end2end": [1, shape[1] if len(shape) == 3 else 300, 6],
    }[kind]
    if len(shape) != 3 or any(side not in (0, fitting) for side, fitting in zip(shape, expected, strict=True)):
        raise SpecError(
            f"{path}: wrong outputs for a {kind} head with {count} classes and strides {list(spec.head.strides)}",
            expected=str(expected),
            found=str(shape),
            fix=_DESCRIBE,
        )


def _read_head(head: str | None) -> dict[str, Any]:
    """Read `--head`: a dictionary with at least `kind`; empty without it."""
    if head is None:
        return {}
    if head in HEADS:
        return {"kind": head}
    if not head.endswith(".toml"):
        raise SpecError("--head", expected=", ".join(HEADS) + " or a .toml file", found=head)
    described = parse_table(_HeadFile, read_toml(Path(head)), head)
    for key, values, low, high in (
        ("strides", described.strides or (), 1, math.inf),
        ("std", described.std or (), sys.float_info.min, math.inf),
        ("pad_value", (described.pad_value or 0,), 0, 255),
    ):
        if not all(low <= value <= high for value in values):
            raise SpecError(f"{head}: {key}", expected=f"{low:g} to {high:g}", found=str(values))
    return {key: value for key, value in asdict(described).items() if value is not None}


def _input_size(model: Any, metadata: dict[str, str], path: Path) -> tuple[int, int]:
    """Return height and width of the input; for a dynamic input, the size of its training from the metadata."""
    inputs = inputs_of(model)
    shape = _shape(inputs[0]) if len(inputs) == 1 else []
    if len(shape) != 4 or shape[1] != 3 or inputs[0].type.tensor_type.elem_type != _FLOAT32:
        raise SpecError(
            f"{path}: wrong inputs",
            expected="one input float32 [1, 3, height, width]",
            found=", ".join(
                f"{value.name} {onnx_type_name(value.type.tensor_type.elem_type)} {_shape(value)}" for value in inputs
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


def _numbered(kind: str, shape: list[int], path: Path) -> tuple[str, ...]:
    """Return numbered names, as many as the output has classes. Raises SpecError."""
    count = {"yolo": shape[1] - 4, "yolox": shape[2] - 5}.get(kind, 0) if len(shape) == 3 else 0
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

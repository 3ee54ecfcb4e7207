"""Opset conversion of ONNX models, in a child process with limits: onnx's converter is native code."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgekd.core.errors import SpecError, first_line
from edgekd.core.limited_process import run_limited
from edgekd.graph import nvfp4
from edgekd.graph.model_file import read_model, reading
from edgekd.graph.rehearsal import limits_for
from edgekd.graph.view import opset_of

_LAYER_NORM = 17
"""First opset with LayerNormalization."""


def raise_opset(model: Any, opset: int, name: str) -> Any:
    """Return a model at this opset or a newer one. name: of its file, for errors. Raises SpecError."""
    return to_opset(model, opset, name) if opset_of(model) < opset else model


def raise_for_nvfp4(model: Any, name: str) -> Any:
    """Return a float model at an opset that has NVFP4. name: of its file, for errors. Raises SpecError."""
    raised = raise_opset(model, nvfp4.OPSET, name)
    raised.ir_version = max(raised.ir_version, nvfp4.IR_VERSION)
    return raised


def to_opset(model: Any, opset: int, name: str) -> Any:
    """Return the model at an opset; a parity check has to verify it.

    name: of its file, for errors. Raises SpecError.
    """
    import onnx

    if opset_of(model) == opset:
        return model
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        source, out = Path(folder, "source.onnx"), Path(folder, "converted.onnx")
        with reading(Path(name)):  # no message of Protocol Buffers is longer than 2 GB
            onnx.save(model, source)
        limits = limits_for(source.stat().st_size, values=0)
        run_limited("edgekd.graph.opset:convert_file", [str(source), str(out), opset, name], limits, name, "onnx")
        return read_model(out)


def convert_file(source: str, out: str, opset: int, name: str) -> None:
    """Write the model in `source` to `out` at another opset: what is done in the child. Raises SpecError."""
    import onnx

    model = read_model(Path(source))
    own = opset_of(model)
    try:
        convert = _lowered if own > opset else onnx.version_converter.convert_version
        onnx.save(convert(model, opset), out)
    except MemoryError:
        raise
    except Exception as error:
        raise SpecError(
            f"{name}: opset {own} cannot be converted",
            expected=f"opset {opset}",
            found=first_line(error),
            fix=f"export the model again with opset {opset}",
        ) from error


def _lowered(model: Any, opset: int) -> Any:
    """Return the model with the same nodes at an older opset; raises for an operator, input or attribute that it lacks.

    onnx's converter refuses to pass Reshape 14, and most changes that only added types. The parity check of the export
    verifies that no operator changed its meaning.
    """
    import onnx

    own = opset_of(model)
    if opset < _LAYER_NORM:
        nodes = [part for node in model.graph.node for part in _decomposed(node, model.graph.initializer)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    for entry in model.opset_import:
        entry.version = opset if entry.domain in ("", "ai.onnx") else entry.version
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx"):
            older, newer = (onnx.defs.get_schema(node.op_type, version) for version in (opset, own))
            kept = [a for a in node.attribute if a.name in older.attributes or not _is_default(a, newer)]
            del node.attribute[:]
            node.attribute.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    return model


def _decomposed(node: Any, initializers: Any) -> list[Any]:
    """Return a LayerNormalization over the last axes as nodes of older opsets; any other node as it is."""
    import numpy as np
    from onnx import helper, numpy_helper

    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axis = settings.get("axis", -1)
    if node.op_type != "LayerNormalization" or axis >= 0 or any(node.output[1:]):
        return [node]
    source, gamma, *beta = filter(None, node.input)
    name, axes = node.name or node.output[0], list(range(axis, 0))
    values = {"two": 2.0, "epsilon": settings.get("epsilon", 1e-5)}
    initializers.extend(
        numpy_helper.from_array(np.array(value, np.float32), f"{name}/{key}") for key, value in values.items()
    )
    steps = [
        ("ReduceMean", [source], "mean"),
        ("Sub", [source, f"{name}/mean"], "centred"),
        ("Pow", [f"{name}/centred", f"{name}/two"], "squares"),
        ("ReduceMean", [f"{name}/squares"], "variance"),
        ("Add", [f"{name}/variance", f"{name}/epsilon"], "positive"),
        ("Sqrt", [f"{name}/positive"], "deviation"),
        ("Div", [f"{name}/centred", f"{name}/deviation"], "unit"),
        ("Mul", [f"{name}/unit", gamma], "scaled"),
        *(("Add", [f"{name}/scaled", each], "shifted") for each in beta),
    ]
    last = len(steps) - 1
    return [
        helper.make_node(
            operator,
            inputs,
            [node.output[0] if index == last else f"{name}/{output}"],
            f"{name}/{output}",
            **({"axes": axes} if operator == "ReduceMean" else {}),
        )
        for index, (operator, inputs, output) in enumerate(steps)
    ]


def _is_default(attribute: Any, schema: Any) -> bool:
    """Return whether an attribute has its default value."""
    import onnx

    default = schema.attributes[attribute.name].default_value
    return bool(default.name) and onnx.helper.get_attribute_value(attribute) == onnx.helper.get_attribute_value(default)

"""Opset conversion of ONNX models, in a child process with limits: onnx's converter is native code."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.errors import SpecError, first_line
from edgekd.core.limited_process import run_limited
from edgekd.graph import nvfp4
from edgekd.graph.model_file import read_model, reading
from edgekd.graph.node_writer import NodeWriter
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
    """Return the model converted to an opset. The caller must verify it with a parity check.

    name: of its file, for errors. Raises SpecError.
    """
    import onnx

    if opset_of(model) == opset:
        return model
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        source, out = Path(folder, "source.onnx"), Path(folder, "converted.onnx")
        with reading(Path(name)):  # fails above 2 GB, the limit of Protocol Buffers
            onnx.save(model, source)
        limits = limits_for(source.stat().st_size, values=0)
        run_limited("edgekd.graph.opset:convert_file", [str(source), str(out), opset, name], limits, name, "onnx")
        return read_model(out)


def convert_file(source: str, out: str, opset: int, name: str) -> None:
    """Write the model in `source` to `out` at another opset; called in the child process. Raises SpecError."""
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

    onnx's converter cannot go below version 14 of Reshape, nor below most versions that only added types. The parity
    check of the export verifies that no operator changed its meaning.
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
    from onnx import helper

    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axis = settings.get("axis", -1)
    if node.op_type != "LayerNormalization" or axis >= 0 or any(node.output[1:]):
        return [node]
    source, gamma, *beta = filter(None, node.input)
    axes, epsilon = list(range(axis, 0)), np.array(settings.get("epsilon", 1e-5), np.float32)
    writer = NodeWriter(node.name or node.output[0])
    centred = writer.add("Sub", [source, writer.add("ReduceMean", [source], axes=axes)])
    squares = writer.add("Pow", [centred, np.array(2, np.float32)])
    variance = writer.add("Add", [writer.add("ReduceMean", [squares], axes=axes), epsilon])
    scaled = writer.add("Mul", [writer.add("Div", [centred, writer.add("Sqrt", [variance])]), gamma])
    for each in beta:
        writer.add("Add", [scaled, each])
    writer.rename_last(node.output[0])
    initializers.extend(writer.constants)
    return writer.nodes


def _is_default(attribute: Any, schema: Any) -> bool:
    """Return whether an attribute has its default value."""
    import onnx

    default = schema.attributes[attribute.name].default_value
    return bool(default.name) and onnx.helper.get_attribute_value(attribute) == onnx.helper.get_attribute_value(default)

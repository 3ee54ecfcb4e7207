"""The tiny detector with its first three layers in INT8, its scales set by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import tiny
from onnx import helper, numpy_helper

INPUT_SCALES = {"cells8": 1 / 127, "cells16": 1 / 127, "cells32": 1 / 127}
"""Scale of the input of each INT8 layer, whose values are 0 to 1."""


def write_int8(path: Path) -> Path:
    """Write the detector of `tiny` as a Q/DQ graph: weights per channel, activations per tensor."""
    model = onnx.load(tiny.write_model(path))
    constants = {each.name: each for each in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.name in INPUT_SCALES:
            weights = numpy_helper.to_array(constants[f"{node.name}.weight"])
            nodes += _quantizers(model, node.name, node.input[0], weights)
            node.input[0], node.input[1] = f"{node.name}.x", f"{node.name}.w"
            model.graph.initializer.remove(constants[f"{node.name}.weight"])
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _quantizers(model: onnx.ModelProto, name: str, source: str, weights: np.ndarray) -> list[onnx.NodeProto]:
    scales = (np.abs(weights).reshape(len(weights), -1).max(axis=1) / 127).astype(np.float32)
    codes = np.rint(weights / scales[:, None, None, None]).astype(np.int8)
    for label, value in (
        ("x_scale", np.float32(INPUT_SCALES[name])),
        ("x_zero", np.int8(0)),
        ("w_codes", codes),
        ("w_scales", scales),
        ("w_zeros", np.zeros(len(weights), np.int8)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}.{label}"))
    scale = [f"{name}.x_scale", f"{name}.x_zero"]
    weighs = [f"{name}.w_codes", f"{name}.w_scales", f"{name}.w_zeros"]
    return [
        helper.make_node("QuantizeLinear", [source, *scale], [f"{name}.codes"], f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.codes", *scale], [f"{name}.x"], f"{name}.dequantize"),
        helper.make_node("DequantizeLinear", weighs, [f"{name}.w"], f"{name}.weights", axis=0),
    ]

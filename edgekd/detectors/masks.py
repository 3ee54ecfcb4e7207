"""One output for a network with masks: candidates, followed by the pixels of its prototypes."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.core.detection.types import Masks
from edgekd.core.errors import SpecError

OUTPUT = "detections"
_PREFIX = "edgekd.masks"


def join_prototypes(model: Any, where: str) -> Masks:
    """Replace the outputs [1, c, n] and [1, k, h, w] of a graph, in place, by one [1, c, n + h * w].

    The last k of a candidate's c values are its coefficients; for pixels of prototypes only these rows are used.
    Raises SpecError for other outputs.
    """
    import onnx

    from edgekd.graph.view import Graph

    shapes = Graph(model).shapes
    outputs = sorted((len(shapes.get(each.name, ())), each.name) for each in model.graph.output)
    ranks, names = [rank for rank, _ in outputs], [name for _, name in outputs]
    sides = [side or 0 for name in names for side in shapes.get(name, ())]
    if ranks != [3, 4] or not all(sides) or sides[4] > sides[1] - 5:
        raise SpecError(
            f"{where}: outputs of a detector with masks",
            expected="[1, 4 + classes + coefficients, n] and prototypes [1, coefficients, height, width]",
            found=", ".join(f"{name} {list(shapes.get(name, ()))}" for name in names),
            fix="pass the checkpoint, or export it with a fixed size and without NMS (end2end=False)",
        )
    _, columns, count, _, coefficients, height, width = sides
    constants = {
        "shape": np.array([1, coefficients, height * width], np.int64),
        "pads": np.array([0, columns - coefficients, 0, 0, 0, 0], np.int64),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, f"{_PREFIX}.{name}") for name, value in constants.items()
    )
    pixels, padded = f"{_PREFIX}.pixels", f"{_PREFIX}.padded"
    for operator, inputs, output, attributes in (
        ("Reshape", [names[1], f"{_PREFIX}.shape"], pixels, {}),
        ("Pad", [pixels, f"{_PREFIX}.pads"], padded, {}),
        ("Concat", [names[0], padded], OUTPUT, {"axis": 2}),
    ):
        model.graph.node.append(onnx.helper.make_node(operator, inputs, [output], output, **attributes))
    shape = [1, columns, count + height * width]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))
    return Masks(coefficients, height, width)


def joined(found: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Return the outputs [1, c, n] and [1, k, h, w] joined like in the graph by `join_prototypes`."""
    columns, coefficients = found.shape[1], prototypes.shape[1]
    pixels = prototypes.reshape(1, coefficients, -1)
    return np.concatenate([found, np.pad(pixels, ((0, 0), (columns - coefficients, 0), (0, 0)))], axis=2)

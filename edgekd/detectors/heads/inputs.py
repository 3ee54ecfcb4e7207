"""Inputs of an ONNX detector: the image, with a batch of 1 and a fixed size, and constants for all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgekd.core.errors import SpecError
from edgekd.graph.view import inputs_of

_FLOAT32 = 1  # TensorProto.FLOAT

_KNOWN: Mapping[str, Callable[[int, int], tuple[float, ...]]] = {
    "orig_target_sizes": lambda height, width: (width, height),  # RT-DETR, D-FINE, DEIM
    "im_shape": lambda height, width: (height, width),  # PaddleDetection
    "scale_factor": lambda height, width: (1, 1),  # PaddleDetection
}
"""Values of inputs that known exporters add, for a frame of the input's own height and width."""


def image_inputs(model: Any) -> list[Any]:
    """Return the inputs that are float32 [n, 3, h, w]."""
    found = []
    for value in inputs_of(model):
        kind = value.type.tensor_type
        if kind.elem_type == _FLOAT32 and len(kind.shape.dim) == 4 and kind.shape.dim[1].dim_value == 3:
            found.append(value)
    return found


def fix_input(model: Any, size: tuple[int, int]) -> None:
    """Set the image's shape to batch 1 and this height and width, in place; remove initializers from the inputs."""
    inputs = inputs_of(model)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for image in image_inputs(model):
        for axis, side in zip(image.type.tensor_type.shape.dim, (1, 3, *size), strict=True):
            axis.dim_value = side


def set_constants(model: Any, given: Mapping[str, tuple[float, ...]], size: tuple[int, int], where: str) -> None:
    """Replace each input except the image by a constant, in place: from `given`, or known by its name.

    size: height and width of the input; where: start of error messages. Raises SpecError for an input without a value,
    and for unknown names in `given`.
    """
    import onnx

    image = image_inputs(model)[0].name
    for value in [each for each in inputs_of(model) if each.name != image]:
        kind = value.type.tensor_type
        known = _KNOWN.get(value.name)
        values = given.get(value.name) or (known(*size) if known else ())
        shape = [axis.dim_value or 1 for axis in kind.shape.dim]
        if not values or math.prod(shape) != len(values):
            expected = f"{math.prod(shape)} numbers for the input {value.name}"
            found = str(list(values)) if values else "none"
            fix = f"add `constants.{value.name} = [...]` to the description of the head"
            raise SpecError(f"{where}: an input without a value", expected=expected, found=found, fix=fix)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        content = np.array(values).astype(dtype).reshape(shape)
        model.graph.input.remove(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(content, value.name))
    unknown = sorted(set(given) - {tensor.name for tensor in model.graph.initializer})
    if unknown:
        expected = "names of inputs other than the image"
        raise SpecError(f"{where}: constants", expected=expected, found=", ".join(unknown), fix="remove them")

"""JSON of the engine inspector as each version writes it. Pure functions.

Sources: examples in TensorRT's guides and in users' reports, for 8.x, 10.x and 11.x.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fake_tensorrt_builder import EngineLayer
from tensorrt_tables import numbers

_TYPES = {"INT8": "Int8", "FP16": "Half", "FP32": "Float"}
_FORMATS = {
    "INT8": "Thirty-two wide channel vectorized row major Int8 format",
    "FP16": "Row major linear FP16 format",
    "FP32": "Row major linear FP32",
}


def inspected(layers: Sequence[EngineLayer], version: str) -> str:
    """Return the inspector's JSON for a whole engine at detailed verbosity."""
    typed = numbers(version) >= (11,)
    ports = {"I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "Float"}]}
    told = ports if typed else {"Bindings": ["images", "output0"]}
    return json.dumps({"Layers": [_layer(each, typed=typed) for each in layers], **told})


def _layer(layer: EngineLayer, *, typed: bool) -> dict[str, Any]:
    form = {"Format/Datatype": _FORMATS[layer.precision]}
    if typed:
        form = {
            "Format": f"Row major linear {layer.precision} format (kLINEAR)",
            "DataType": _TYPES[layer.precision],
        }
    tensor = {"Name": f"{layer.name}_output", "Location": "Device", "Dimensions": [1, 8, 4, 4], **form}
    entry: dict[str, Any] = {"Name": layer.name, "LayerType": layer.kind, "Inputs": [tensor], "Outputs": [tensor]}
    if layer.weights:
        entry["Weights"] = {"Type": _TYPES[layer.precision], "Count": layer.weights}
        entry["Bias"] = {"Type": "Float", "Count": 8}
    entry["TacticValue"] = "0x1"
    return entry

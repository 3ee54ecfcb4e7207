"""Runtimes behind one protocol, one file each. Importing this package imports none of them."""

from __future__ import annotations

from edgekd.engines.ncnn import NCNN_CPU
from edgekd.engines.onnxruntime import ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA
from edgekd.engines.openvino import OPENVINO_CPU
from edgekd.engines.tensorrt import TENSORRT
from edgekd.engines.tensorrt_rtx import TENSORRT_RTX
from edgekd.engines.types import Availability, Engine, Session
from edgekd.errors import SpecError, did_you_mean

__all__ = ["ENGINES", "Availability", "Engine", "Session", "engine_named"]

ENGINES: tuple[Engine, ...] = (ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA, OPENVINO_CPU, NCNN_CPU, TENSORRT_RTX, TENSORRT)


def engine_named(name: str) -> Engine:
    """The engine called `name`. Raises SpecError, suggesting the nearest name."""
    by_name = {engine.name: engine for engine in ENGINES}
    if name not in by_name:
        expected = f"one of {', '.join(by_name)}"
        raise SpecError(f"unknown engine {name}", expected=expected, fix=did_you_mean(name, by_name))
    return by_name[name]

"""Runtimes behind one protocol, one file each. Importing this package imports none of them."""

from __future__ import annotations

from edgekd.core.errors import SpecError, did_you_mean
from edgekd.graph.runtimes.ncnn import NCNN_CPU
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.tensorrt import TENSORRT
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX
from edgekd.graph.runtimes.types import Availability, Engine, Session

__all__ = ["ENGINES", "Availability", "Engine", "Session", "engine_named"]

ENGINES: tuple[Engine, ...] = (ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA, OPENVINO_CPU, NCNN_CPU, TENSORRT_RTX, TENSORRT)


def engine_named(name: str) -> Engine:
    """Return the engine called `name`. Raises SpecError, suggesting the nearest name."""
    by_name = {engine.name: engine for engine in ENGINES}
    if name not in by_name:
        expected = f"one of {', '.join(by_name)}"
        raise SpecError(f"unknown engine {name}", expected=expected, fix=did_you_mean(name, by_name))
    return by_name[name]

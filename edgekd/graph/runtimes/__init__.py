"""Runtimes behind one protocol, one file each. Importing this package imports none of them."""

from __future__ import annotations

from edgekd.core.entry_points import registered
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.graph.runtimes.types import Availability, HostRuntime, Session

__all__ = ["Availability", "HostRuntime", "Session", "runtime_named", "runtimes"]

GROUP = "edgekd.runtimes"
"""The group of entry points that name runtimes of other packages."""
BUILT_IN = (
    "edgekd.graph.runtimes.onnxruntime:ONNXRUNTIME_CPU",
    "edgekd.graph.runtimes.onnxruntime:ONNXRUNTIME_CUDA",
    "edgekd.graph.runtimes.openvino:OPENVINO_CPU",
    "edgekd.graph.runtimes.ncnn:NCNN_CPU",
    "edgekd.graph.runtimes.tensorrt_rtx:TENSORRT_RTX",
    "edgekd.graph.runtimes.tensorrt:TENSORRT",
)


def runtimes() -> tuple[HostRuntime, ...]:
    """Return the runtimes of edgekd, then those of other packages. Raises SpecError."""
    return registered(GROUP, BUILT_IN)


def runtime_named(name: str) -> HostRuntime:
    """Return the runtime called `name`. Raises SpecError, suggesting the nearest name."""
    by_name = {runtime.name: runtime for runtime in runtimes()}
    if name not in by_name:
        expected = f"one of {', '.join(by_name)}"
        raise SpecError(f"unknown engine {name}", expected=expected, fix=did_you_mean(name, by_name))
    return by_name[name]

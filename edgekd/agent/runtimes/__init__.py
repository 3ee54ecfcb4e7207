"""Runtimes of networks on the device, one module for each.

`AUTOMATIC` is their order of preference. A new one is a module with a subclass of `Runtime`, and an entry there.
Importing this package imports none of the libraries.
"""

from __future__ import annotations

from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.runtimes.onnxruntime import OnnxRuntime
from edgekd.agent.runtimes.openvino import OpenVino
from edgekd.agent.runtimes.tensorrt import TensorRt
from edgekd.agent.runtimes.tensorrt_dla import TensorRtDla
from edgekd.agent.runtimes.trtexec import Trtexec
from edgekd.agent.runtimes.types import Runtime
from edgekd.core.errors import DeviceError, did_you_mean

AUTOMATIC: tuple[Runtime, ...] = (TensorRt(), Trtexec(), OnnxRuntime())
"""Best first."""
NAMED: tuple[Runtime, ...] = (TensorRtDla(0), TensorRtDla(1), OpenVino(), NullRuntime())
"""Runtimes that have to be named: the gain of a DLA has to be measured, and null computes nothing.

OpenVINO is faster than ONNX Runtime in INT8 and slower in float on some processors, and its installation for another
purpose must not change the runtime of a camera.
"""


def select_runtime(name: str | None) -> Runtime | None:
    """Return the runtime of that name, or the first that can be used here; None where there is none.

    Raises DeviceError where the named one is unknown or cannot be used.
    """
    if name is None:
        return next((runtime for runtime in AUTOMATIC if runtime.problem() is None), None)
    return require_runtime(name)


def usable_runtime(name: str | None) -> Runtime | None:
    """Return the runtime of that name where it is real and can be used here, else the first that can."""
    real = (runtime for runtime in (*AUTOMATIC, *NAMED) if not isinstance(runtime, NullRuntime))
    known = next((runtime for runtime in real if runtime.name == name), None)
    return known if known is not None and known.problem() is None else select_runtime(None)


def require_runtime(name: str) -> Runtime:
    """Return the runtime of that name. Raises DeviceError where it is unknown or cannot be used."""
    known = {runtime.name: runtime for runtime in (*AUTOMATIC, *NAMED)}
    if name not in known:
        fix = did_you_mean(name, known)
        raise DeviceError(f"unknown runtime {name}", expected=f"one of {', '.join(known)}", fix=fix)
    problem = known[name].problem()
    if problem:
        raise DeviceError(f"{name} cannot be used here", found=problem, fix="leave --runtime out, or name another")
    return known[name]

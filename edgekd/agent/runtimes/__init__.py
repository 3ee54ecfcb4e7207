"""What can run a network on the device, one module for each runtime and generation of it.

`AUTOMATIC` is the order in which they are tried. A new one is a module with a class like those of the others, and an
entry there. Importing this package imports none of the libraries.
"""

from __future__ import annotations

from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.runtimes.onnxruntime import OnnxRuntime
from edgekd.agent.runtimes.types import Runtime
from edgekd.errors import DeviceError, did_you_mean

AUTOMATIC: tuple[Runtime, ...] = (OnnxRuntime(),)
"""The best first. The null runtime computes nothing, and is used only where it is asked for."""


def chosen(name: str | None) -> Runtime | None:
    """The runtime of that name, or the first that can be used here; None where there is none.

    Raises DeviceError where the named one is unknown or cannot be used.
    """
    if name is None:
        return next((runtime for runtime in AUTOMATIC if runtime.problem() is None), None)
    known = {runtime.name: runtime for runtime in (*AUTOMATIC, NullRuntime())}
    if name not in known:
        fix = did_you_mean(name, known)
        raise DeviceError(f"unknown runtime {name}", expected=f"one of {', '.join(known)}", fix=fix)
    problem = known[name].problem()
    if problem:
        raise DeviceError(f"{name} cannot be used here", found=problem, fix="leave --runtime out, or name another")
    return known[name]

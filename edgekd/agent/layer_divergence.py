"""Where inside a network an engine departs from the same network in float: which tensor, and by how much.

There is nothing on a camera that says what an inner tensor should be. So two more engines are built there, of the graph
and of the network without Q/DQ, which give those tensors as outputs, and are run on the golden frames. In them less is
fused than in the engine that serves; what they say is where to look, not what that engine computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes.networks import float_type, taken_apart
from edgekd.agent.runtimes.types import UnsuitedError
from edgekd.agent.selftest import batches, read_golden
from edgekd.core.formats.onnx_bytes import FLOAT, FLOAT16, inputs, with_outputs

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import Outputs, Runtime
    from edgekd.agent.slots import Slot

_EPSILON = 1e-12


def departures(slot: Slot, runtime: Runtime) -> list[dict[str, Any]]:
    """The quantized tensors of a network, in its order, and how far each is from that of the network in float.

    The error is the root of the squared differences by that of the values, the largest over the golden frames. Raises
    UnsuitedError where the runtime cannot give inner tensors, or the network has no layer in INT8; DeviceError.
    """
    onnx, golden = slot.graph.read_bytes(), read_golden(slot)
    plain = taken_apart(slot.graph)
    given = inputs(onnx)
    names = [name for name in plain.scales if name not in given]
    if not names:
        raise UnsuitedError(f"slot {slot.name}: no inner tensor is quantized", fix="leave --layers out")
    kind = FLOAT16 if float_type(slot.graph) == "fp16" else FLOAT
    frames = list(batches(golden.set, golden.spec))
    found = runtime.outputs(with_outputs(onnx, names, kind), True, frames)
    expected = runtime.outputs(with_outputs(plain.onnx, names, kind), False, frames)
    if found is None or expected is None:
        raise UnsuitedError(
            f"{runtime.name} does not give inner tensors",
            expected="tensorrt, trtexec, onnxruntime or openvino",
            fix="name another with --runtime, or leave --layers out",
        )
    return [{"tensor": name, "error": round(_error(name, found, expected), 6)} for name in names]


def _error(name: str, found: Sequence[Outputs], expected: Sequence[Outputs]) -> float:
    import numpy as np

    errors = []
    for frame, wanted in zip(found, expected):  # noqa: B905
        is_, should = (np.asarray(each[name], np.float64) for each in (frame, wanted))
        size = max(float(np.linalg.norm(should)), _EPSILON)
        errors.append(float(np.linalg.norm(_finite(is_) - should)) / size)
    return max(errors)


def _finite(values: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.where(np.isfinite(values), values, 1e9)

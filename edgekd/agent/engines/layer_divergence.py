"""Divergence of the inner tensors of an engine from those of the same network in float.

The golden set has no inner tensors. So two more engines are built, of the graph and of the network without Q/DQ, with
these tensors as outputs, and run on the golden frames. They fuse less than the engine in service: their divergence is a
hint where to look, not a figure of that engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekd.agent.runtimes.networks import float_network, float_type
from edgekd.agent.runtimes.types import UnsuitedError
from edgekd.agent.state.golden import batches, read_golden
from edgekd.core.formats.onnx_bytes import FLOAT, FLOAT16, inputs, with_outputs

if TYPE_CHECKING:
    from edgekd.agent.runtimes.types import Outputs, Runtime
    from edgekd.agent.state.slots import Slot

_EPSILON = 1e-12
_NOT_FINITE = 1e9  # in place of infinity and NaN


@dataclass(frozen=True)
class TensorDivergence:
    """Divergence of an inner tensor.

    Args:
        tensor: Name of the tensor in the graph.
        error: Norm of the differences by that of the values, the maximum over golden frames.
    """

    tensor: str
    error: float


def layer_divergence(slot: Slot, runtime: Runtime) -> list[TensorDivergence]:
    """Measure the divergence of the quantized tensors of a network, in its order.

    Raises UnsuitedError where the runtime cannot output inner tensors, or the network has no layer in INT8;
    DeviceError.
    """
    onnx, golden = slot.graph.read_bytes(), read_golden(slot)
    plain = float_network(slot.graph)
    network_inputs = inputs(onnx)
    names = [name for name in plain.scales if name not in network_inputs]
    if not names:
        raise UnsuitedError(f"slot {slot.name}: no inner tensor is quantized", fix="leave --layers out")
    kind = FLOAT16 if float_type(slot.graph) == "fp16" else FLOAT
    frames = list(batches(golden.set, golden.spec))
    found = runtime.outputs(with_outputs(onnx, names, kind), True, frames)
    expected = runtime.outputs(with_outputs(plain.onnx, names, kind), False, frames)
    if found is None or expected is None:
        raise UnsuitedError(
            f"{runtime.name} does not output inner tensors",
            expected="tensorrt, trtexec, onnxruntime or openvino",
            fix="name another with --runtime, or leave --layers out",
        )
    return [TensorDivergence(name, round(_error(name, found, expected), 6)) for name in names]


def _error(name: str, found: Sequence[Outputs], expected: Sequence[Outputs]) -> float:
    errors = []
    for frame, expected_frame in zip(found, expected):  # noqa: B905
        values, reference = (np.asarray(each[name], np.float64) for each in (frame, expected_frame))
        difference = np.where(np.isfinite(values), values, _NOT_FINITE) - reference
        errors.append(float(np.linalg.norm(difference)) / max(float(np.linalg.norm(reference)), _EPSILON))
    return max(errors)

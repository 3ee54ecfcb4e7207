"""Memory of all models of a camera together, checked before another one goes into service.

Each model has slots of its own, and a process with its engine. TensorRT reports the memory of an engine beyond its own
bytes; for other runtimes it is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.agent.engines.engine import Engine, engine_of
from edgekd.agent.state.slots import State, model_names
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.state.slots import Slot

DEFAULT_SHARE = 0.5
"""Default share of the device's memory for all models; a Jetson shares it with the system."""
SCRATCH_INPUTS = 4
"""Estimated memory of the inner tensors of a detector, in inputs of float32."""


@dataclass(frozen=True)
class ModelMemory:
    """Memory of a model's engine, inner tensors, input and output.

    Args:
        model: Name of the model; null for the one without a name.
        bytes: Its memory.
        estimated: True where the part of the inner tensors is an estimate.
    """

    model: str | None
    bytes: int
    estimated: bool


def model_memory(model: str | None, slot: Slot, engine: Engine) -> ModelMemory:
    """Return the memory of a tested engine while it is open."""
    preprocess = slot.manifest.detector["preprocess"]
    input_bytes = 3 * preprocess["height"] * preprocess["width"] * 4
    test = engine.self_test
    scratch = test.scratch_bytes if test else None
    inner = SCRATCH_INPUTS * input_bytes if scratch is None else scratch
    # Input and output, on both sides; a detector's output is smaller than its input.
    return ModelMemory(model, (engine.record.bytes or 0) + inner + 2 * input_bytes, scratch is None)


def other_models(state: State) -> list[ModelMemory]:
    """Return the memory of the other models in service on this camera."""
    others = []
    for name in model_names(state.base):
        other = State.of(state.base, name)
        active = None if other.root == state.root else other.active
        engine = engine_of(active)
        if active and engine:
            others.append(model_memory(name, active, engine))
    return others


def require_memory(state: State, models: list[ModelMemory], limit: int | None) -> None:
    """Raise DeviceError where models need more than `limit` bytes together; None for no limit."""
    total = sum(each.bytes for each in models)
    if limit is not None and total > limit:
        listed = ", ".join(f"{each.model or 'the model without a name'} {each.bytes}" for each in models)
        guess = ", partly estimated" if any(each.estimated for each in models) else ""
        raise DeviceError(
            f"{state.root}: the models of this camera do not fit into its memory together",
            expected=f"at most {limit} bytes",
            found=f"{total} bytes{guess}: {listed}",
            fix="a smaller model, or --max-memory, where the firmware can spare more",
        )

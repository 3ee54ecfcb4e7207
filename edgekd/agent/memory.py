"""Whether the models of a camera fit into its memory together, before another one goes into service.

Each model is a set of slots of its own, and a process that has its engine open. What an engine needs beyond its own
bytes TensorRT says; where nobody does it is estimated, and said to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.agent.engines import Engine, engine_of
from edgekd.agent.slots import State, model_names
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.slots import Slot

SHARE = 0.5
"""Of the device's memory: what all models may take, unless something else is said. A Jetson's system shares it."""
INPUTS = 4
"""How many inputs in float32 the inner tensors of a detector take together at a time, where nobody says."""


@dataclass(frozen=True)
class Need:
    """What a model takes: the bytes of its engine, of inner tensors, and of input and output.

    model: its name, None for the one without; estimated: whether what the inner tensors take is a guess.
    """

    model: str | None
    bytes: int
    estimated: bool

    def as_json(self) -> dict[str, Any]:
        """As the agent tells of it."""
        return {"model": self.model, "bytes": self.bytes, "estimated": self.estimated}


def need_of(model: str | None, slot: Slot, engine: Engine) -> Need:
    """What a tested engine takes while it is open."""
    how = slot.manifest.detector["preprocess"]
    given = 3 * how["height"] * how["width"] * 4
    scratch = (engine.self_test or {}).get("scratch_bytes")
    inner = INPUTS * given if scratch is None else scratch
    # Input and output, on both sides; a detector's output is smaller than its input.
    return Need(model, engine.record.get("bytes", 0) + inner + 2 * given, scratch is None)


def needs_beside(state: State) -> list[Need]:
    """What the other models take that are in service on this camera."""
    found = []
    for name in model_names(state.base):
        other = State.of(state.base, name)
        active = None if other.root == state.root else other.active
        engine = engine_of(active)
        if active and engine:
            found.append(need_of(name, active, engine))
    return found


def require_memory(state: State, needs: list[Need], limit: int | None) -> None:
    """Raise DeviceError where models need more than `limit` bytes together; None lets them need anything."""
    total = sum(need.bytes for need in needs)
    if limit is not None and total > limit:
        each = ", ".join(f"{need.model or 'the model without a name'} {need.bytes}" for need in needs)
        guess = ", partly estimated" if any(need.estimated for need in needs) else ""
        raise DeviceError(
            f"{state.root}: the models of this camera do not fit into its memory together",
            expected=f"at most {limit} bytes",
            found=f"{total} bytes{guess}: {each}",
            fix="a smaller model, or --max-memory, where the firmware can spare more",
        )

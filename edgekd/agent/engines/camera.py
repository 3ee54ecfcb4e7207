"""The camera that a command works on: its slots, its runtime, its clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.engines.engine import EngineBuildRequest, engine_key
from edgekd.agent.engines.records import AS_SHIPPED, EngineKey, Form
from edgekd.agent.runtimes.types import BuildOptions
from edgekd.agent.state.device import read_device
from edgekd.agent.state.slots import Slot, State
from edgekd.core.canonical import json_sha256
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    from edgekd.agent.runtimes.types import Runtime


def utc_now() -> datetime:
    """Return the time of the camera's clock."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Camera:
    """Context of a command.

    state: the slots; root: folder with the system's own files; runtime: None where no network can run; slot: name of
    the requested one; clock: time in UTC.
    """

    state: State
    root: Path = Path("/")
    runtime: Runtime | None = None
    slot: str | None = None
    clock: Callable[[], datetime] = utc_now

    def chosen_slot(self) -> Slot:
        """Return the requested slot, else the candidate, else the one in service. Raises DeviceError where empty."""
        slot = self.state.slot(self.slot) if self.slot else self.state.candidate or self.state.active
        if slot is None:
            where = f"slot {self.slot}" if self.slot else f"{self.state.root}"
            raise DeviceError(f"{where}: empty", expected="a bundle", fix="unpack BUNDLE")
        return slot

    def required_runtime(self) -> Runtime:
        """Return the runtime. Raises DeviceError where there is none."""
        if self.runtime is None:
            raise DeviceError(
                "nothing here can run a network",
                expected="TensorRT or ONNX Runtime for this Python",
                fix="use the Python and the packages of the firmware, by docs/guides/agent.md",
            )
        return self.runtime

    def engine_key(self, slot: Slot) -> EngineKey:
        """Return the key of an engine of a slot that runs here now. Raises DeviceError."""
        return engine_key(slot, self.required_runtime(), read_device(self.root))

    def request(self, form: Form = AS_SHIPPED, shares: Mapping[str, float] | None = None) -> EngineBuildRequest:
        """Return the request for an engine of a form on this device."""
        memory = read_device(self.root).memory_bytes
        return EngineBuildRequest(
            BuildOptions(form.source, memory, self._timing_cache(), form.float_layers), shares or {}
        )

    def _timing_cache(self) -> Path:
        """Return the file of a builder's timings, one for each runtime, version and state of the device.

        Files of other versions and states have no use, and are removed.
        """
        runtime, device = self.required_runtime(), read_device(self.root)
        state = {"version": runtime.version(), "built_on": device.engine_belongs_to()}
        file = self.state.root / "timings" / runtime.name / f"{json_sha256(state)[:16]}.cache"
        for other in file.parent.glob("*.cache"):
            if other != file:
                other.unlink()
        return file

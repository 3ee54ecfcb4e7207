"""The agent's command `bench`: the engine by itself, and how many cameras it serves. Needs NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekd.agent.cameras.capacity import CameraCapacity, OpenModel, measure_capacity
from edgekd.agent.engines.engine import require_engine
from edgekd.agent.engines.latency import LatencyReport, measure_on
from edgekd.agent.engines.records import RuntimeVersion
from edgekd.agent.serving import open_slot
from edgekd.agent.state.device import read_device
from edgekd.core.detection.types import spec_from_json
from edgekd.core.documents import INLINE
from edgekd.core.errors import DeviceError
from edgekd.core.machine_state import PowerMode

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera


@dataclass(frozen=True)
class EngineBenchResult:
    """Result of `bench`.

    Args:
        slot: Name of the slot.
        key: Name of the engine.
        model: Model of the device.
        power_mode: Power mode of the device.
        batch: Frames of each run; frames a second are `fps` times as many.
        cameras: How many cameras it serves at a frame rate; null where that was not measured.
    """

    slot: str
    key: str
    runtime: RuntimeVersion
    model: str | None
    power_mode: PowerMode | None
    batch: int
    latency: LatencyReport = field(metadata=INLINE)
    cameras: CameraCapacity | None = None


def bench(
    camera: Camera,
    iterations: int,
    seconds: float,
    *,
    batch: int = 1,
    cameras: int = 0,
    camera_fps: float = 15.0,
) -> EngineBenchResult:
    """Time the engine by itself on this device; then count the cameras that it serves, up to `cameras`, 0: not.

    batch: frames of a run. Raises DeviceError.
    """
    device = read_device(camera.root)
    with camera.state.locked():
        slot = camera.chosen_slot()
        engine = require_engine(slot, camera.engine_key(slot))
        largest = spec_from_json(slot.manifest.detector).batch if camera.required_runtime().batches else 1
        if not 1 <= batch <= largest:
            expected = f"1 to {largest} frames at once"
            raise DeviceError(f"--batch {batch}", expected=expected, fix="build the bundle with a larger --batch")
        latency = measure_on(camera, slot, engine.file, iterations, seconds, batch)
        capacity = None
        if cameras:
            capacity = measure_capacity(lambda: OpenModel(open_slot(slot, engine)), camera_fps, cameras)
    return EngineBenchResult(
        slot=slot.name,
        key=engine.name,
        runtime=engine.record.key.runtime,
        model=device.model,
        power_mode=device.power_mode,
        batch=batch,
        latency=latency,
        cameras=capacity,
    )

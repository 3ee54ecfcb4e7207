"""What a frame takes in energy: the power of the whole kit, and for how long.

The kit draws a share of its power mode's watts at all times, and another in proportion to how busy its arithmetic is.
Both shares are fitted to published wall power of developer kits, which ran in modes tuned for efficiency.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.hardware.predict.device import Device
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class EnergyModel:
    """idle, busy: shares of the watts of the mode to measure in, by time as predicted for full clocks.

    margin: the prediction divided and multiplied by it holds nine of ten measurements, latency aside. seen: compute
    capabilities whose power was measured.
    """

    idle: float
    busy: float
    margin: float
    seen: tuple[float, ...]

    def millijoules(self, target: Target, device: Device, operations: float, latency_ms: float) -> float | None:
        """A frame's; None where nothing like the device was measured, or its power is not known."""
        watts = mode_watts(target)
        if watts is None or target.kind != "jetson" or device.sm not in self.seen:
            return None
        return self.frame(watts, device, operations, latency_ms)

    def frame(self, watts: float, device: Device, operations: float, latency_ms: float) -> float:
        """Millijoules for operations that take so long, where the power mode has so many watts."""
        busy = min(operations / (device.peak * latency_ms / 1e3), 1.0)
        return watts * (self.idle + self.busy * busy) * latency_ms


def mode_watts(target: Target) -> float | None:
    """The watts of the mode to measure in, or where it is unlimited, of the largest; None where no mode states any."""
    if target.power is None:
        return None
    stated = {mode.name: mode.watts.value for mode in target.power.modes if mode.watts}
    return stated.get(target.power.default_mode or "") or max(stated.values(), default=None)

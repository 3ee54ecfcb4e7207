"""Energy of a frame: the power of the whole kit by the latency.

The kit draws a share of its power mode's watts at all times, and another in proportion to the utilization of its
arithmetic. Both are fitted to published wall power of developer kits, which ran in modes tuned for efficiency.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.hardware.predict.device import GpuFigures
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class EnergyModel:
    """Fitted shares of the watts of the mode to measure in: idle, and in proportion to utilization (busy).

    margin: The prediction divided and multiplied by it holds nine of ten measurements, latency aside. seen: Compute
    capabilities whose power was measured.
    """

    idle: float
    busy: float
    margin: float
    seen: tuple[float, ...]

    def millijoules(self, target: Target, device: GpuFigures, operations: float, latency_ms: float) -> float | None:
        """Return the energy of a frame; None where no device like it was measured, or its power is unknown."""
        watts = mode_watts(target)
        if watts is None or target.kind != "jetson" or device.sm not in self.seen:
            return None
        return self.frame(watts, device, operations, latency_ms)

    def frame(self, watts: float, device: GpuFigures, operations: float, latency_ms: float) -> float:
        """Return the millijoules of a frame in a power mode of so many watts."""
        busy = min(operations / (device.peak * latency_ms / 1e3), 1.0)
        return watts * (self.idle + self.busy * busy) * latency_ms


def mode_watts(target: Target) -> float | None:
    """Return the watts of the mode to measure in or, where it is unlimited, the largest; None where none is stated."""
    if target.power is None:
        return None
    stated = {mode.name: mode.watts.value for mode in target.power.modes if mode.watts}
    return stated.get(target.power.default_mode or "") or max(stated.values(), default=None)

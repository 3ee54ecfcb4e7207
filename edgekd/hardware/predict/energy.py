"""Energy of a frame: the power of the whole developer kit times the latency.

The power is a constant share of the power mode's watts, plus a share in proportion to the utilization of the arithmetic
units. Both are fitted to published wall power of developer kits, which ran in modes tuned for efficiency.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.hardware.predict.device import GpuFigures
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class EnergyModel:
    """Fitted shares of the watts of the default power mode: `idle`, constant, and `busy`, times utilization.

    margin: nine of ten measurements are between prediction / margin and prediction * margin, given the latency; seen:
    CUDA compute capabilities whose power was measured.
    """

    idle: float
    busy: float
    margin: float
    seen: tuple[float, ...]

    def millijoules(self, target: Target, device: GpuFigures, operations: float, latency_ms: float) -> float | None:
        """Return the millijoules of a run; None unless a Jetson of the same `sm` was measured and watts are known."""
        watts = mode_watts(target)
        if watts is None or target.kind != "jetson" or device.sm not in self.seen:
            return None
        return self.frame(watts, device, operations, latency_ms)

    def frame(self, watts: float, device: GpuFigures, operations: float, latency_ms: float) -> float:
        """Return the millijoules of a run of so many operations and milliseconds, in a power mode of `watts`."""
        busy = min(operations / (device.peak * latency_ms / 1e3), 1.0)
        return watts * (self.idle + self.busy * busy) * latency_ms


def mode_watts(target: Target) -> float | None:
    """Return the watts of the default power mode, else the largest of any mode; None if no mode states watts."""
    if target.power is None:
        return None
    stated = {mode.name: mode.watts.value for mode in target.power.modes if mode.watts}
    return stated.get(target.power.default_mode or "") or max(stated.values(), default=None)

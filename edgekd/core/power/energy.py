"""Energy of a frame: measured at rest first, then at work in intervals that suit the sensor.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgekd.core.power import Meter, MeterKind
from edgekd.core.power.recorder import Joules
from edgekd.core.statistics import Interval, mean_interval

MIN_STRETCHES = 5
"""Minimum number of stretches, at rest and at work, for a confidence interval."""
_REST_S = (0.25, 3.0)  # minimum and maximum seconds at rest
_STRETCH_S = (0.05, 1.0)  # minimum and maximum seconds of a stretch of frames


@dataclass(frozen=True)
class Energy:
    """Energy of a frame.

    Args:
        meter: Kind of the sensor.
        covers: The part of the machine that the sensor measures.
        idle_watts: Power at rest, measured before the run.
        watts: Mean power during the run.
        frames: Number of frames of the run.
        seconds: Duration of the run.
        gross_mj: Millijoules of a frame by the sensor.
        net_mj: Millijoules of a frame without the power at rest.
        gross_interval: 95 % interval of `gross_mj`.
        net_interval: 95 % interval of `net_mj`.
    """

    meter: MeterKind
    covers: str
    idle_watts: float
    watts: float
    frames: int
    seconds: float
    gross_mj: float
    gross_interval: Interval
    net_mj: float
    net_interval: Interval


def measure_energy(
    meter: Meter,
    frames: Mapping[str, Callable[[], object]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Energy]:
    """Measure the energy of several kinds of work, interleaved; frames: functions that process one frame.

    Each runs for at least `seconds`, and MIN_STRETCHES stretches. Raises OSError where the sensor does not answer.
    """
    stretch_s, rest_s = _within(seconds / MIN_STRETCHES, _STRETCH_S), _within(seconds, _REST_S)
    joules = Joules(meter, clock)
    spans: dict[str, list[tuple[float, float, int]]] = {name: [] for name in frames}
    with joules.recorder:
        idle = []
        for _ in range(MIN_STRETCHES):
            begin = joules.recorder.sample()
            rest(rest_s / MIN_STRETCHES)
            idle.append((begin, joules.recorder.sample()))
        for _ in range(max(MIN_STRETCHES, math.ceil(seconds / stretch_s))):
            for name, frame in frames.items():
                frame()  # warms the caches after other work
                spans[name].append(_stretch(frame, joules, stretch_s, clock))
    rates = np.array([_joules(joules, begin, end) / max(end - begin, 1e-9) for begin, end in idle])
    return {name: _energy(joules, each, rates) for name, each in spans.items()}


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _stretch(
    frame: Callable[[], object], joules: Joules, stretch_s: float, clock: Callable[[], float]
) -> tuple[float, float, int]:
    begin, count = joules.recorder.sample(), 0
    while clock() - begin < stretch_s:
        frame()
        count += 1
    return begin, joules.recorder.sample(), count


def _joules(joules: Joules, begin: float, end: float) -> float:
    return joules.at(end) - joules.at(begin)


def _energy(joules: Joules, spans: list[tuple[float, float, int]], idle_watts: np.ndarray) -> Energy:
    spent = np.array([_joules(joules, begin, end) for begin, end, _ in spans])
    seconds = np.array([end - begin for begin, end, _ in spans])
    frames = np.array([count for _, _, count in spans])
    gross_mj = 1000 * float(spent.sum()) / int(frames.sum())
    half = mean_interval(1000 * spent / frames).half
    idle, frame_ms = float(idle_watts.mean()), 1000 * float(seconds.sum()) / int(frames.sum())
    net_mj = gross_mj - idle * frame_ms
    # The uncertainty of the power at rest adds to that of the net energy.
    net_half = math.hypot(half, mean_interval(idle_watts).half * frame_ms)
    return Energy(
        meter=joules.meter.name,
        covers=joules.meter.covers,
        idle_watts=idle,
        watts=float(spent.sum() / seconds.sum()),
        frames=int(frames.sum()),
        seconds=float(seconds.sum()),
        gross_mj=gross_mj,
        gross_interval=Interval(gross_mj - half, gross_mj + half),
        net_mj=net_mj,
        net_interval=Interval(net_mj - net_half, net_mj + net_half),
    )

"""Readings beside a measurement, taken at intervals by a thread, and kept with their times.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from typing import Generic, TypeVar

from edgekd.core.power import Meter

R = TypeVar("R")
METER_PERIOD_S = 0.1


class Recorder(Generic[R]):
    """Reads once per period during its block. failed: the last error of a reading, which is left out.

    times_s: of the readings, by the clock.
    """

    def __init__(self, read: Callable[[], R], clock: Callable[[], float], period_s: float) -> None:
        self.times_s: list[float] = []
        self.readings: list[R] = []
        self.failed: OSError | None = None
        self._read, self._clock, self._period_s = read, clock, period_s
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder[R]:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def sample(self) -> float:
        """Read now; return the time."""
        with self._lock:
            try:
                reading = self._read()
            except OSError as error:
                self.failed = error
                return self._clock()
            now = self._clock()
            self.times_s.append(now)
            self.readings.append(reading)
            return now

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self.sample()


class Joules:
    """Energy by a meter, interpolated between its readings."""

    def __init__(self, meter: Meter, clock: Callable[[], float]) -> None:
        self.recorder: Recorder[float] = Recorder(meter.read, clock, METER_PERIOD_S)
        self.meter = meter

    def at(self, moment_s: float) -> float:
        """Return joules since a fixed time, interpolated linearly; constant before and after the readings.

        Raises OSError where the meter never answered.
        """
        times, readings = self.recorder.times_s, self.recorder.readings
        if not times:
            raise OSError(f"{self.meter.name} does not answer: {self.recorder.failed}")
        if self.meter.counts:
            return _between(times, readings, moment_s)
        return _area(times, readings, moment_s)


def _between(times: list[float], values: list[float], moment: float) -> float:
    after = min(max(bisect_right(times, moment), 1), len(times) - 1)
    if len(times) == 1:
        return values[0]
    begin, end = times[after - 1], times[after]
    share = min(max((moment - begin) / (end - begin), 0.0), 1.0) if end > begin else 1.0
    return values[after - 1] + share * (values[after] - values[after - 1])


def _area(times: list[float], watts: list[float], moment: float) -> float:
    """Integrate the power from the first reading on, by the trapezoidal rule."""
    joules = 0.0
    for index in range(1, bisect_right(times, moment)):
        joules += (watts[index - 1] + watts[index]) / 2 * (times[index] - times[index - 1])
    last = max(bisect_right(times, moment) - 1, 0)
    return joules + (watts[last] + _between(times, watts, moment)) / 2 * max(moment - times[last], 0.0)

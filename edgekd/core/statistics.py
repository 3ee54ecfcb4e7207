"""Statistics of measurements: confidence intervals, paired comparison, detection of slow-downs and of outliers.

Consecutive frames are correlated, so that resampling and shuffling use whole stretches of a run. Every random draw has
a fixed seed: the same samples give the same result.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
"""Confidence level of intervals."""
ALARM = 0.01
"""Share of even runs in which a slow-down is reported."""
SIGNIFICANT = 0.05
"""Share of equal pairs that are reported to differ."""
MIN_SLOW_DOWN = 1.03
"""Minimum ratio of a slow-down that is reported."""

_SEED = 0
_RESAMPLES = 1000
_FLIPS = 4000
_MIN_STRETCHES = 20
_MAX_STRETCHES = 256
_ROUNDING = 1e-9  # relative: smaller differences come from the subtraction of clock readings, and are correlated
_MIN_WINDOWS = 12  # of a run, in the detection of slow-downs
_MAX_WINDOWS = 60
_GRID = 2048  # ranks that stand for all samples of a long run
_MIN_BEYOND = 5  # independent samples beyond a percentile that is reported
_OUTLIER_SIGMAS = 8.0
_MIN_OUTLIER = 1.1  # ratio to the median around
_NEAR = 50  # samples around an outlier


class Interval(NamedTuple):
    """Confidence interval at LEVEL, in the unit of the number."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Comparison:
    """Ratio of `first` to `second`, over rounds in which both were measured.

    Args:
        ratio: The ratio; 1 where both are equal.
        interval: Its 95 % interval.
        p_value: Probability of a difference as large between equals.
        rounds: Number of rounds in which both were measured.
    """

    ratio: float
    interval: Interval
    p_value: float
    rounds: int

    @property
    def differs(self) -> bool:
        """True if the difference is significant."""
        return self.p_value < SIGNIFICANT and not self.interval.low <= 1 <= self.interval.high


@dataclass(frozen=True)
class SlowDown:
    """A lasting slow-down.

    Args:
        at_s: Seconds after the first frame.
        before_ms, after_ms: Median before and after it.
        p_value: Probability of as large a change in a steady run.
    """

    at_s: float
    before_ms: float
    after_ms: float
    p_value: float

    @property
    def ratio(self) -> float:
        """Ratio of the medians after and before."""
        return self.after_ms / self.before_ms


@dataclass(frozen=True)
class Outliers:
    """Frames that took much longer than the others.

    Args:
        count: Number of them.
        share: Their share of all frames.
        limit_ms: They took longer than this.
        worst_ms: The longest frame.
    """

    count: int
    share: float
    limit_ms: float
    worst_ms: float


def reaches(independent: float, percentile: float) -> bool:
    """Return whether samples are enough for a percentile (0 to 100): 500 for 99, 5000 for 99.9.

    independent: effective number of samples, their number divided by their `memory`.
    """
    return round(independent * (100 - percentile) / 100, 6) >= _MIN_BEYOND


def memory(samples: np.ndarray) -> float:
    """Return the integrated autocorrelation time in samples, at least 1."""
    count = len(samples)
    centred = samples - samples.mean()
    if count < 4 or np.abs(centred).max() <= _ROUNDING * np.abs(samples).max():
        return 1.0
    spectrum = np.fft.rfft(centred, 2 * count)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[: count // 2]
    times = 2 * np.cumsum(correlation / correlation[0]) - 1
    # The sum ends at five times itself: beyond is only noise (Sokal's window).
    enough = np.flatnonzero(np.arange(len(times)) >= 5 * times)
    return max(float(times[enough[0] if len(enough) else -1]), 1.0)


def stretches(count: int, remembered: float, low: int = _MIN_STRETCHES, high: int = _MAX_STRETCHES) -> np.ndarray:
    """Return the number int64, from 0, of the stretch of each sample.

    Stretches are nearly independent: their length is three times the autocorrelation time, and at least the cube root
    of the number of samples; but there are `low` to `high` stretches, where there are as many samples.
    """
    length = math.ceil(max(count ** (1 / 3), 3 * remembered))
    parts = min(max(count // length, low), high, count)
    numbers: np.ndarray = np.arange(count) * parts // max(count, 1)
    return numbers


def intervals(samples: np.ndarray, percentiles: Sequence[float]) -> tuple[list[Interval | None], Interval]:
    """Return the intervals of percentiles (0 to 100), None where samples are too few, and of the mean.

    samples: float64 [n], n >= 1, in the order of measurement. A bootstrap over stretches of the run.
    """
    remembered = memory(samples)
    part = stretches(len(samples), remembered)
    parts = int(part[-1]) + 1
    draws = np.random.RandomState(_SEED).multinomial(parts, np.full(parts, 1 / parts), _RESAMPLES).astype(np.float64)
    sums, sizes = np.bincount(part, samples), np.bincount(part)
    means = (draws @ sums) / (draws @ sizes)
    ranks = _ranks(len(samples))
    order = np.argsort(samples, kind="stable")
    cell = np.searchsorted(ranks, np.arange(len(samples)))
    held = np.bincount(part[order] * len(ranks) + cell, minlength=parts * len(ranks)).reshape(parts, -1)
    below = np.cumsum(draws @ held, axis=1)
    values, widen = samples[order][ranks], _widening(parts)
    of_percentiles: list[Interval | None] = []
    for percentile in percentiles:
        # A bootstrap of a few samples has no value beyond their maximum.
        if not reaches(len(samples) / remembered, percentile):
            of_percentiles.append(None)
            continue
        index = (below > percentile / 100 * (below[:, -1:] - 1)).argmax(axis=1)
        of_percentiles.append(_around(float(np.percentile(samples, percentile)), values[index], widen))
    return of_percentiles, _around(float(samples.mean()), means, widen)


def mean_interval(samples: np.ndarray) -> Interval:
    """Return the interval of the mean of float64 [n], n >= 1."""
    return intervals(samples, ())[1]


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare `first` with `second`, float64 [rounds] above 0, measured in the same rounds.

    The ratio is the geometric mean of the rounds' ratios; its p-value is of a sign-flip test.
    """
    logs = np.log(first) - np.log(second)
    ratio = mean_interval(logs)
    interval = Interval(math.exp(ratio.low), math.exp(ratio.high))
    return Comparison(math.exp(logs.mean()), interval, _sign_flips(logs), len(logs))


def slow_down(samples: np.ndarray, starts_s: np.ndarray) -> SlowDown | None:
    """Detect a lasting slow-down; None without one, or where samples are too few.

    samples: float64 [n] milliseconds; starts_s: float64 [n], their start times. The share of false alarms in even runs
    is ALARM.
    """
    if len(samples) < 5 * _MIN_WINDOWS:
        return None
    # The median over parts of the run, so that a change in one of them does not count as correlation.
    remembered = float(np.median([memory(part) for part in np.array_split(samples, 5)]))
    window = stretches(len(samples), remembered, _MIN_WINDOWS, min(_MAX_WINDOWS, len(samples) // 5))
    count = int(window[-1]) + 1
    firsts = np.searchsorted(window, np.arange(count + 1))
    medians = np.array([np.median(part) for part in np.split(samples, firsts[1:-1])])
    change, rise = _best_split(medians[None])
    shuffled = np.random.RandomState(_SEED)
    chance = _best_split(np.array([shuffled.permutation(medians) for _ in range(_RESAMPLES)]))[1]
    p_value = (1 + int((chance >= rise[0]).sum())) / (_RESAMPLES + 1)
    before, after = medians[: change[0]], medians[change[0] :]
    # The end must be as slow: other load in the middle is no lasting change.
    lasting = np.median(after[-max(len(after) // 3, 1) :]) / np.median(before)
    if p_value > ALARM or min(lasting, np.median(after) / np.median(before)) < MIN_SLOW_DOWN:
        return None
    first, last = firsts[change[0] - 1], firsts[change[0] + 1]
    index = _change_point(samples, first, last, float(np.median(before)), float(np.median(after)))
    return SlowDown(
        float(starts_s[index]), float(np.median(samples[:index])), float(np.median(samples[index:])), p_value
    )


def outliers(samples: np.ndarray) -> Outliers:
    """Count the outliers of float64 [n] milliseconds, n >= 1; false ones are fewer than one in 10,000.

    An outlier exceeds the median of the fifty frames around by 8 standard deviations of the slower half, and by 10 %.
    """
    near = np.array_split(np.log(samples), max(len(samples) // _NEAR, 1))
    beyond = np.concatenate([part - np.median(part) for part in near])  # local medians, because of slow-downs
    spread = float(np.percentile(beyond, 75)) / 0.6745
    threshold = max(_OUTLIER_SIGMAS * spread, math.log(_MIN_OUTLIER))
    count = int((beyond > threshold).sum())
    limit = float(np.median(samples)) * math.exp(threshold)
    return Outliers(count, count / len(samples), limit, float(samples.max()))


def _change_point(samples: np.ndarray, first: int, last: int, before: float, after: float) -> int:
    """Return the index from `first` to `last` at which samples change from near `before` to near `after`."""
    part = samples[first:last]
    nearer = np.abs(part - before) - np.abs(part - after)
    return int(first) + int(np.argmin(np.concatenate([[0.0], np.cumsum(nearer)])))


def _ranks(count: int) -> np.ndarray:
    """Return ranks int64, ascending, that stand for all: every one of few samples; of many, denser at the end."""
    if count <= _GRID:
        return np.arange(count)
    spread = np.linspace(0, count - 1, _GRID // 2)
    tail = count - 1 - (np.geomspace(1, count, _GRID // 2) - 1)
    return np.unique(np.concatenate([spread, tail]).astype(np.int64))


def _widening(parts: int) -> float:
    """Return the correction of a bootstrap over few stretches: bias of the variance, and Student's t."""
    if parts < 2:
        return 1.0
    freedom = parts - 1
    # The t quantile by its expansion around the normal's (Cornish and Fisher), and the bias of the variance.
    z = 1.959964
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t / z * math.sqrt(parts / freedom)


def _around(value: float, drawn: np.ndarray, widen: float) -> Interval:
    low, high = np.percentile(drawn, (50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL))).tolist()
    return Interval(value - widen * max(value - low, 0.0), value + widen * max(high - value, 0.0))


def _sign_flips(differences: np.ndarray) -> float:
    """Return the p-value of a sign-flip test; exact for few rounds."""
    count = len(differences)
    if 2**count <= _FLIPS:
        flips = 1 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        extra = 0
    else:
        flips = 1 - 2.0 * np.random.RandomState(_SEED).randint(0, 2, (_FLIPS, count))
        extra = 1  # the observed signs count as one of the flips
    reached = np.abs(flips @ differences) >= abs(float(differences.sum())) * (1 - 1e-12)
    return (extra + int(reached.sum())) / (extra + len(flips))


def _best_split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for rows float64 [r, w] the best split of each into a lower and a higher part, and its statistic."""
    width = rows.shape[1]
    lengths = np.arange(1, width)
    lower = np.cumsum(rows, axis=1)[:, :-1]
    rise = (rows.sum(axis=1, keepdims=True) - lower) / (width - lengths) - lower / lengths
    rise *= np.sqrt(lengths * (width - lengths) / width)
    rise[:, [*range(2), *range(width - 3, width - 1)]] = -np.inf  # at least three windows on either side
    best = rise.argmax(axis=1)
    return lengths[best], rise[np.arange(len(rows)), best]

"""How sure a measurement is: intervals, a paired comparison, whether a run slowed down, and which frames stand out.

Frames that follow one another are alike, so what is drawn again, or shuffled, is whole stretches of a run and never
single frames. Everything random has a fixed seed: the same samples give the same answer.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""How often an interval holds what it is of."""
ALARM = 0.01
"""The share of even runs that are said to have slowed down."""
SIGNIFICANT = 0.05
"""The share of equal pairs that are said to differ."""
LEAST_SLOW_DOWN = 1.03
"""A change by less is not told: nobody would act on it."""

_SEED = 0
_RESAMPLES = 1000
_FLIPS = 4000
_FEWEST, _MOST = 20, 256  # stretches that a run is cut into
_WINDOWS = 12, 60
_GRID = 2048
_BEYOND = 5
_OUTLIER_SIGMAS, _LEAST_OUTLIER, _NEAR = 8.0, 1.1, 50


@dataclass(frozen=True)
class Interval:
    """Where a number lies, LEVEL of the time; in its unit."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Comparison:
    """How many times as much `first` is as `second`, over rounds in which both were measured.

    p_value: how often chance alone, between equals, would show a difference as large.
    """

    ratio: float
    interval: Interval
    p_value: float
    rounds: int

    @property
    def differs(self) -> bool:
        """Whether it is more than chance."""
        return self.p_value < SIGNIFICANT and not self.interval.low <= 1 <= self.interval.high


@dataclass(frozen=True)
class SlowDown:
    """A change for the worse that lasted to the end of the run.

    at_s: when, by the clock of the starts; before, after: medians of the samples on either side.
    """

    at_s: float
    before: float
    after: float
    p_value: float

    @property
    def ratio(self) -> float:
        """How many times as long frames took afterwards."""
        return self.after / self.before


@dataclass(frozen=True)
class Outliers:
    """Frames that took much longer than those around.

    limit: what such a frame is beyond, where those around are as slow as the run's median; worst: the longest sample.
    """

    count: int
    share: float
    limit: float
    worst: float


def reaches(independent: float, percentile: float) -> bool:
    """Whether enough samples lie beyond a percentile (0 to 100) to know it: 500 are needed for 99, 5000 for 99.9.

    independent: samples that do not remember one another, which is their number over their `memory`.
    """
    return round(independent * (100 - percentile) / 100, 6) >= _BEYOND


def memory(samples: np.ndarray) -> float:
    """How many samples in a row are worth one independent one: the integrated autocorrelation time, at least 1."""
    count = len(samples)
    centred = samples - samples.mean()
    if count < 4 or not centred.any():
        return 1.0
    spectrum = np.fft.rfft(centred, 2 * count)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[: count // 2]
    times = 2 * np.cumsum(correlation / correlation[0]) - 1
    # Summed as far as it matters: beyond a few times itself there is only noise.
    enough = np.flatnonzero(np.arange(len(times)) >= 5 * times)
    return max(float(times[enough[0] if len(enough) else -1]), 1.0)


def stretches(count: int, remembered: float, fewest: int = _FEWEST, most: int = _MOST) -> np.ndarray:
    """For each of so many samples the number, int64 from 0, of the stretch it belongs to.

    A stretch is long enough to be independent: it has three times as many samples as remember one another, and at least
    the cube root of all; but there are never fewer than `fewest` stretches where there are as many samples, nor more
    than `most`.
    """
    length = math.ceil(max(count ** (1 / 3), 3 * remembered))
    parts = min(max(count // length, fewest), most, count)
    numbers: np.ndarray = np.arange(count) * parts // max(count, 1)
    return numbers


def intervals(samples: np.ndarray, percentiles: Sequence[float]) -> tuple[list[Interval | None], Interval]:
    """Intervals for percentiles (0 to 100), None for those that the samples do not reach, and for the mean.

    samples: float64 [n], n >= 1, in the order in which they were taken. A bootstrap over stretches of the run.
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
    found: list[Interval | None] = []
    for percentile in percentiles:
        # A bootstrap of a few samples knows no value beyond their largest.
        if not reaches(len(samples) / remembered, percentile):
            found.append(None)
            continue
        at = (below > percentile / 100 * (below[:, -1:] - 1)).argmax(axis=1)
        found.append(_around(float(np.percentile(samples, percentile)), values[at], widen))
    return found, _around(float(samples.mean()), means, widen)


def mean_interval(samples: np.ndarray) -> Interval:
    """The interval of the mean of float64 [n], n >= 1."""
    return intervals(samples, ())[1]


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """How `first` compares with `second`, float64 [rounds] above 0: what each took in the rounds they shared.

    The ratio is the mean of the rounds' ratios in logarithms; its p-value by flipping their signs.
    """
    logs = np.log(first) - np.log(second)
    ratio = mean_interval(logs)
    interval = Interval(math.exp(ratio.low), math.exp(ratio.high))
    return Comparison(math.exp(logs.mean()), interval, _sign_flips(logs), len(logs))


def slow_down(samples: np.ndarray, starts_s: np.ndarray) -> SlowDown | None:
    """When frames began to take longer and stayed so; None where they did not, or there are too few to tell.

    samples: float64 [n]; starts_s: float64 [n], when each began. Of even runs a share of ALARM is mistaken for one that
    slowed down.
    """
    if len(samples) < 5 * _WINDOWS[0]:
        return None
    # Of the parts of a run, so that a change in one of them is not taken for a memory of all.
    remembered = float(np.median([memory(part) for part in np.array_split(samples, 5)]))
    window = stretches(len(samples), remembered, _WINDOWS[0], min(_WINDOWS[1], len(samples) // 5))
    count = int(window[-1]) + 1
    firsts = np.searchsorted(window, np.arange(count + 1))
    medians = np.array([np.median(part) for part in np.split(samples, firsts[1:-1])])
    change, seen = _best_split(medians[None])
    shuffled = np.random.RandomState(_SEED)
    chance = _best_split(np.array([shuffled.permutation(medians) for _ in range(_RESAMPLES)]))[1]
    p_value = (1 + int((chance >= seen[0]).sum())) / (_RESAMPLES + 1)
    before, after = medians[: change[0]], medians[change[0] :]
    # A busy spell in the middle is no lasting change: the end must be as slow.
    lasting = np.median(after[-max(len(after) // 3, 1) :]) / np.median(before)
    if p_value > ALARM or min(lasting, np.median(after) / np.median(before)) < LEAST_SLOW_DOWN:
        return None
    at = _exactly(
        samples, firsts[change[0] - 1], firsts[change[0] + 1], float(np.median(before)), float(np.median(after))
    )
    return SlowDown(float(starts_s[at]), float(np.median(samples[:at])), float(np.median(samples[at:])), p_value)


def outliers(samples: np.ndarray) -> Outliers:
    """The frames of float64 [n] above 0, n >= 1, that no even run has: fewer than one in 10,000 where there are none.

    Beyond the median of the fifty frames around by 8 times the spread of the ordinary slower frames, and by a tenth.
    """
    near = np.array_split(np.log(samples), max(len(samples) // _NEAR, 1))
    beyond = np.concatenate([part - np.median(part) for part in near])  # so that a slow-down hides none
    spread = float(np.percentile(beyond, 75)) / 0.6745
    least = max(_OUTLIER_SIGMAS * spread, math.log(_LEAST_OUTLIER))
    count = int((beyond > least).sum())
    limit = float(np.median(samples)) * math.exp(least)
    return Outliers(count, count / len(samples), limit, float(samples.max()))


def _exactly(samples: np.ndarray, first: int, last: int, before: float, after: float) -> int:
    """Where from `first` to `last` samples stop being near `before` and begin to be near `after`."""
    part = samples[first:last]
    nearer = np.abs(part - before) - np.abs(part - after)
    return int(first) + int(np.argmin(np.concatenate([[0.0], np.cumsum(nearer)])))


def _ranks(count: int) -> np.ndarray:
    """Ranks int64, ascending, that stand for all: every one of few samples; of many, the more the nearer to the end."""
    if count <= _GRID:
        return np.arange(count)
    spread = np.linspace(0, count - 1, _GRID // 2)
    tail = count - 1 - (np.geomspace(1, count, _GRID // 2) - 1)
    return np.unique(np.concatenate([spread, tail]).astype(np.int64))


def _widening(parts: int) -> float:
    """What a bootstrap over a few stretches lacks: their own spread, and that of its estimate (Student's t)."""
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
    """How often random signs give a mean as far from 0; all signs are tried where they are few."""
    count = len(differences)
    if 2**count <= _FLIPS:
        flips = 1 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        extra = 0
    else:
        flips = 1 - 2.0 * np.random.RandomState(_SEED).randint(0, 2, (_FLIPS, count))
        extra = 1  # the signs as they are count as one of the flips
    reached = np.abs(flips @ differences) >= abs(float(differences.sum())) * (1 - 1e-12)
    return (extra + int(reached.sum())) / (extra + len(flips))


def _best_split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows float64 [r, w]: where each is best cut into a lower and a higher part, and by how much they differ."""
    width = rows.shape[1]
    left = np.arange(1, width)
    lower = np.cumsum(rows, axis=1)[:, :-1]
    rise = (rows.sum(axis=1, keepdims=True) - lower) / (width - left) - lower / left
    rise *= np.sqrt(left * (width - left) / width)
    rise[:, [*range(2), *range(width - 3, width - 1)]] = -np.inf  # three windows on either side, at least
    best = rise.argmax(axis=1)
    return left[best], rise[np.arange(len(rows)), best]

"""Intervals hold what they should as often as they say; injected throttling and outliers are found, others are not."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from edgekd.core.statistics import (
    ALARM,
    SIGNIFICANT,
    compare,
    intervals,
    mean_interval,
    memory,
    outliers,
    reaches,
    slow_down,
    stretches,
)

SPREAD = 0.1


def latencies(count: int, seed: int, remembers: float = 0.0) -> np.ndarray:
    """Log-normal latencies around 10 ms whose logarithms follow one another as an AR(1) process does."""
    noise = np.random.default_rng(seed).normal(0, math.sqrt(1 - remembers**2), count + 200)
    return 10 * np.exp(SPREAD * lfilter([1], [1, -remembers], noise)[200:])


def starts(samples_ms: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(samples_ms)[:-1]]) / 1000


@pytest.mark.parametrize(("count", "remembers"), [(200, 0.0), (1500, 0.5), (4000, 0.8)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(count: int, remembers: float) -> None:
    """Nominal 95 %. At least 85 %, for p99 80 %, is what can be had of one run whose frames remember one another."""
    percentiles = (50, 90, 99)
    truths = [10 * math.exp(SPREAD * NormalDist().inv_cdf(p / 100)) for p in percentiles]
    truths.append(10 * math.exp(SPREAD**2 / 2))
    held, told = np.zeros(4), np.zeros(4)
    for seed in range(60):
        found, mean = intervals(latencies(count, seed, remembers), percentiles)
        for at, (interval, truth) in enumerate(zip((*found, mean), truths, strict=True)):
            told[at] += interval is not None
            held[at] += interval is not None and interval.low <= truth <= interval.high
    assert told[0] == told[1] == told[3] == 60
    assert all(held >= told * (0.85, 0.85, 0.8, 0.85)), held


def test_frames_that_remember_one_another_tell_less() -> None:
    even, sticky = (mean_interval(latencies(2000, 1, remembers)).half for remembers in (0.0, 0.8))
    assert sticky > 2 * even
    assert memory(latencies(20_000, 1, 0.8)) == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.25)
    assert memory(latencies(20_000, 1)) == pytest.approx(1, abs=0.15)
    assert memory(np.full(50, 3.0)) == 1


def test_a_percentile_has_an_interval_once_a_run_reaches_beyond_it() -> None:
    assert [reaches(n, 99) for n in (499, 500)] == [False, True]
    assert [reaches(n, 99.9) for n in (4999, 5000)] == [False, True]
    found, _ = intervals(latencies(800, 0), (50, 99, 99.9))
    assert [interval is None for interval in found] == [False, False, True]


def test_many_samples_give_the_interval_that_all_of_them_would(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = latencies(20_000, 3)
    coarse, mean = intervals(samples, (50, 99, 99.9))
    monkeypatch.setattr("edgekd.core.statistics._GRID", 100_000)
    fine, same = intervals(samples, (50, 99, 99.9))
    assert mean == same
    for rough, exact in zip(coarse, fine, strict=True):
        assert (rough.low, rough.high) == pytest.approx((exact.low, exact.high), rel=1e-3)


@settings(max_examples=30)
@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=150))
def test_every_interval_holds_its_estimate_and_the_same_samples_give_the_same(samples: list[float]) -> None:
    values = np.array(samples)
    found, mean = intervals(values, (50, 90))
    assert (found, mean) == intervals(values, (50, 90))
    slack = 1e-9 * max(samples)
    for interval, estimate in zip((*found, mean), (*np.percentile(values, (50, 90)), values.mean()), strict=True):
        assert interval is None or interval.low - slack <= estimate <= interval.high + slack


@given(st.integers(1, 400), st.floats(1, 100), st.integers(1, 30), st.integers(30, 60))
def test_stretches_cover_a_run_in_order_without_a_gap(count: int, remembered: float, fewest: int, most: int) -> None:
    numbers = stretches(count, remembered, fewest, most)
    assert numbers[0] == 0
    assert set(np.diff(numbers)) <= {0, 1}
    assert min(fewest, count) <= numbers[-1] + 1 <= min(most, count)


def test_a_difference_between_pairs_is_found_in_noise_ten_times_as_large() -> None:
    busy = latencies(60, 5, 0.9) ** 2  # what both meet alike
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 60))
    found = compare(busy * 0.97 * np.exp(noise[0]), busy * np.exp(noise[1]))
    assert found.differs
    assert found.ratio == pytest.approx(0.97, abs=0.005)
    assert found.interval.low <= 0.97 <= found.interval.high < 1


def test_equals_are_told_apart_no_more_often_than_said() -> None:
    rng = np.random.default_rng(7)
    alarms = sum(compare(*np.exp(rng.normal(0, 0.05, (2, 30)))).differs for _ in range(100))
    assert alarms / 100 <= SIGNIFICANT + 0.05  # 2.3 standard deviations of 100 draws


def test_few_rounds_are_tried_with_all_signs() -> None:
    found = compare(np.full(5, 2.0), np.full(5, 1.0))
    assert found.p_value == 2 / 2**5  # all the same way, or all the other way
    assert not found.differs, "five rounds cannot tell"
    assert compare(np.full(6, 2.0), np.full(6, 1.0)).differs
    assert compare(np.ones(6), np.ones(6)).p_value == 1


@pytest.mark.parametrize("remembers", [0.0, 0.6])
@pytest.mark.parametrize("by", [1.1, 1.5])
def test_injected_throttling_is_found_where_it_began(by: float, remembers: float) -> None:
    for seed in range(5):
        samples = latencies(3000, seed, remembers)
        samples[1800:] *= by
        found = slow_down(samples, starts(samples))
        assert found is not None
        assert found.ratio == pytest.approx(by, rel=0.06)
        assert found.at_s == pytest.approx(starts(samples)[1800], rel=0.08)


def test_throttling_that_creeps_in_is_found() -> None:
    samples = latencies(3000, 0) * np.linspace(1, 1.3, 3000)
    assert slow_down(samples, starts(samples)).ratio == pytest.approx(1.15, abs=0.05)


@pytest.mark.parametrize("remembers", [0.0, 0.5, 0.8])
def test_even_runs_are_called_throttled_no_more_often_than_said(remembers: float) -> None:
    runs = [latencies(600, seed, remembers) for seed in range(100)]
    alarms = sum(slow_down(samples, starts(samples)) is not None for samples in runs)
    assert alarms / 100 <= ALARM + 0.02  # 2 standard deviations of 100 draws


def test_what_passes_is_no_lasting_change_and_a_cold_start_is_none() -> None:
    samples = latencies(3000, 2)
    samples[1200:1800] *= 1.5
    assert slow_down(samples, starts(samples)) is None
    samples = latencies(3000, 2)
    samples[:600] *= 1.5
    assert slow_down(samples, starts(samples)) is None


def test_too_few_frames_tell_nothing_of_throttling() -> None:
    samples = np.concatenate([np.full(20, 1.0), np.full(20, 2.0)])
    assert slow_down(samples, starts(samples)) is None
    assert slow_down(np.empty(0), np.empty(0)) is None


@pytest.mark.parametrize("remembers", [0.0, 0.8])
def test_injected_outliers_are_counted_exactly(remembers: float) -> None:
    samples = latencies(2000, 4, remembers)
    even = outliers(samples)
    assert (even.count, even.share) == (0, 0)
    at = np.random.default_rng(0).choice(2000, 15, replace=False)
    samples[at] *= 4
    found = outliers(samples)
    assert found.count == 15
    assert found.share == 15 / 2000
    assert found.worst_ms == samples.max()


def test_throttling_hides_no_outlier_and_is_none() -> None:
    samples = latencies(2000, 4)
    samples[1200:] *= 1.5
    assert outliers(samples).count == 0
    samples[[100, 1900]] *= 4
    assert outliers(samples).count == 2


def test_even_frames_are_called_outliers_in_less_than_one_of_ten_thousand() -> None:
    assert sum(outliers(latencies(2000, seed)).count for seed in range(50)) < 10  # of 100,000
    exponential = 5 + np.random.default_rng(0).exponential(1, 100_000)
    assert outliers(exponential).count < 10


def test_a_clock_that_ticks_coarsely_makes_no_outliers() -> None:
    samples = np.random.default_rng(0).choice([10.0, 10.5], 1000, p=[0.9, 0.1])
    assert outliers(samples).count == 0


@pytest.mark.parametrize("runs_before", [0, 98, 1498, 3101])
def test_equal_times_have_no_memory_however_a_clock_rounds(runs_before: int) -> None:
    """A clock that is a sum gives differences whose rounding is correlated."""
    readings = np.cumsum(np.full(runs_before + 201, 0.01))[runs_before:]
    assert memory(1000 * np.diff(readings)) == 1

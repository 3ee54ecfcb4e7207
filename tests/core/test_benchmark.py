"""The benchmark's numbers are exactly those of the clock, warm-up aside, and both minimums are kept."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.benchmark import FramePipeline, Timing, benchmark_interleaved, compare, summarize, timing_of
from edgekd.core.documents import to_plain
from edgekd.core.errors import SpecError
from edgekd.deploy.devices.null import NullDevice

GRAPH = Path("any.onnx")
FRAMES = [np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)]


class Stages:
    """A preprocess and a postprocess that take fixed times on the device's clock, and remember what they were given."""

    def __init__(self, device: NullDevice, preprocess_s: float = 0.0, postprocess_s: float = 0.0) -> None:
        self.device, self.preprocess_s, self.postprocess_s = device, preprocess_s, postprocess_s
        self.frames: list[int] = []
        self.contexts: list[str] = []

    def preprocess(self, frame: np.ndarray) -> tuple[np.ndarray, str]:
        self.device.advance(self.preprocess_s)
        self.frames.append(int(frame.max()))
        return frame[None], f"frame {frame.max()}"

    def postprocess(self, output: np.ndarray, context: str) -> None:
        self.device.advance(self.postprocess_s)
        self.contexts.append(context)


def measure(device: NullDevice, stages: Stages, **limits) -> Timing:
    with device.load(GRAPH) as session:
        only = {"": FramePipeline(session, stages.preprocess, stages.postprocess)}
        return benchmark_interleaved(only, FRAMES, block=1, clock=device.clock, **limits)[""]


def test_parts_and_frames_per_second_are_exactly_those_of_the_clock() -> None:
    device = NullDevice([0.25])  # powers of two: sums of them are exact
    timing = measure(device, Stages(device, 0.125, 0.0625), min_iterations=50, min_seconds=0, warmup=0)
    assert timing.decode_ms is None
    assert timing.preprocess_ms.tolist() == [125.0] * 50
    assert timing.inference_ms.tolist() == [250.0] * 50
    assert timing.postprocess_ms.tolist() == [62.5] * 50
    assert timing.total_ms.tolist() == [437.5] * 50
    assert timing.starts_s.tolist() == [0.4375 * at for at in range(50)]
    assert timing.fps == 1000 / 437.5
    assert timing.refused is None


def test_decoding_a_compressed_frame_is_a_part_of_its_own() -> None:
    device = NullDevice([0.25])
    stages = Stages(device, 0.125, 0.0625)

    def decode(frame: int) -> np.ndarray:
        device.advance(0.5)
        return FRAMES[frame]

    camera = FramePipeline(device.load(GRAPH), stages.preprocess, stages.postprocess, decode)
    found = benchmark_interleaved({"": camera}, [0, 1], min_iterations=4, min_seconds=0, block=2, clock=device.clock)
    timing = found[""]
    assert timing.decode_ms.tolist() == [500.0] * 4
    assert timing.total_ms.tolist() == [937.5] * 4
    assert timing.summary().decode_ms.p50 == 500.0


def test_percentiles_interpolate_between_the_samples() -> None:
    stats = summarize(np.arange(1.0, 102.0))  # 1..101: the p-th percentile is 1 + p
    assert (stats.p50, stats.p90, stats.p99, stats.mean, stats.min) == (51.0, 91.0, 100.0, 51.0, 1.0)


def test_one_slow_frame_shows_in_p99_and_not_in_p50() -> None:
    device = NullDevice([0.5] * 99 + [8.0])
    inference = measure(device, Stages(device), min_iterations=100, min_seconds=0, warmup=0).summary().inference_ms
    assert inference.p50 == inference.p90 == inference.min == 500.0
    assert inference.p99 == pytest.approx(500 + 0.01 * 7500)
    assert inference.mean == 575.0


@settings(max_examples=30)
@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=200))
def test_statistics_are_in_order_and_within_the_samples(samples: list[float]) -> None:
    stats = summarize(np.array(samples))
    slack = 1e-9 * max(samples)
    assert min(samples) == stats.min <= stats.p50 <= stats.p90 + slack <= stats.p99 + 2 * slack
    assert stats.p99 <= max(samples) + slack
    assert min(samples) - slack <= stats.mean <= max(samples) + slack


def test_warm_up_runs_and_is_not_counted() -> None:
    device = NullDevice([8.0, 8.0, 8.0] + [0.5] * 5)
    timing = measure(device, Stages(device), min_iterations=5, min_seconds=0, warmup=3)
    assert timing.inference_ms.tolist() == [500.0] * 5


def test_it_goes_on_until_the_seconds_are_reached() -> None:
    device = NullDevice([0.25])
    timing = measure(device, Stages(device), min_iterations=2, min_seconds=2.0, warmup=4)
    assert len(timing.total_ms) == 8
    assert device.clock() == 3.0  # warm-up took one second of them, uncounted


def test_it_goes_on_until_the_iterations_are_reached() -> None:
    device = NullDevice([0.25])
    assert len(measure(device, Stages(device), min_iterations=20, min_seconds=2.0, warmup=0).total_ms) == 20


def test_frames_take_turns_and_postprocess_gets_what_preprocess_said_of_the_same_frame() -> None:
    device = NullDevice([0.25])
    stages = Stages(device)
    measure(device, stages, min_iterations=5, min_seconds=0, warmup=0)
    assert stages.frames == [0, 1, 0, 1, 0]
    assert stages.contexts == [f"frame {frame}" for frame in stages.frames]


def test_interleaved_candidates_meet_the_same_busy_spell() -> None:
    """Everything takes twice as long for a while: measured one after the other, only one of the two would look slow."""
    device = NullDevice([0.5] * 44 + [1.0] * 44)
    stages = Stages(device)
    with device.load(GRAPH) as session:
        same = FramePipeline(session, stages.preprocess, stages.postprocess)
        found = benchmark_interleaved(
            {"before": same, "after": same},
            FRAMES,
            block=10,
            min_iterations=40,
            min_seconds=0,
            warmup=0,
            clock=device.clock,
        )
    assert list(found) == ["before", "after"]
    assert [len(timing.total_ms) for timing in found.values()] == [40, 40]
    assert found["before"].total_ms.mean() == found["after"].total_ms.mean() == 750.0


def test_interleaving_takes_turns_in_blocks_and_reverses_every_other_round() -> None:
    device = NullDevice([0.5])
    order: list[str] = []

    def candidate(name: str) -> FramePipeline:
        return FramePipeline(
            device.load(GRAPH), lambda frame: (frame, None), lambda output, context: order.append(name)
        )

    names = {"a": candidate("a"), "b": candidate("b")}
    benchmark_interleaved(names, FRAMES, block=2, min_iterations=4, min_seconds=0, warmup=0, clock=device.clock)
    assert "".join(order) == "aaa" + "bbb" + "bbb" + "aaa"  # one uncounted frame leads each turn of two


def test_the_slower_candidate_gets_its_seconds_and_the_faster_one_too() -> None:
    slow, fast = NullDevice([0.5]), NullDevice([0.125])
    ticks = lambda: slow.clock() + fast.clock()  # noqa: E731
    both = {
        name: FramePipeline(device.load(GRAPH), lambda frame: (frame, None), lambda output, context: None)
        for name, device in (("slow", slow), ("fast", fast))
    }
    found = benchmark_interleaved(both, FRAMES, block=1, min_iterations=1, min_seconds=4.0, warmup=0, clock=ticks)
    assert all(timing.total_ms.sum() >= 4000 for timing in found.values())


def test_the_summary_is_json_and_keeps_the_basis() -> None:
    device = NullDevice([0.25])
    summary = measure(device, Stages(device), min_iterations=4, min_seconds=0, basis="measured").summary()
    assert (summary.basis, summary.iterations, summary.inference_ms.mean) == ("measured", 4, 250.0)
    assert json.loads(json.dumps(to_plain(summary)))["inference_ms"]["mean"] == 250.0


def script(samples_s: list[float], **limits) -> Timing:
    """The timing of a device that takes exactly these seconds, one after the other, and nothing else."""
    device = NullDevice(samples_s)
    return measure(device, Stages(device), min_iterations=len(samples_s), min_seconds=0, warmup=0, **limits)


def test_scripted_latencies_come_back_exactly_in_percentiles() -> None:
    """Multiples of 1/1024 s: sums of them are exact, so every sample and every percentile is, too."""
    samples_s = (np.random.default_rng(0).integers(1, 4096, 6001) / 1024).tolist()
    timing = script(samples_s)
    assert timing.inference_ms.tolist() == [1000 * each for each in samples_s]
    found = timing.summary().inference_ms
    ordered = sorted(timing.inference_ms.tolist())
    assert [getattr(found, name) for name in ("p50", "p90", "p99")] == [ordered[at] for at in (3000, 5400, 5940)]
    assert found.p999 == pytest.approx(ordered[5994], rel=1e-12)
    assert all(low <= getattr(found, name) <= high for name, (low, high) in found.intervals.items())


def test_a_percentile_that_a_run_is_too_short_for_has_no_interval_and_p999_no_value() -> None:
    found = script([0.25] * 200).summary().inference_ms
    assert found.p999 is None
    assert found.intervals == {"p50": [250, 250], "p90": [250, 250], "p99": None, "p999": None, "mean": [250, 250]}


@pytest.mark.parametrize(
    ("samples_s", "reason"),
    [
        ([0.5] * 49, "49 frames in 24.5 s are too few"),
        ([0.015625] * 100, "100 frames in 1.56 s are too few"),
        ([0.25] * 300 + [0.5] * 200, "2.00 times as long after 75 s"),
        ([0.125, 0.125, 0.125, 4.0] * 20, "stop what else runs here"),
    ],
)
def test_no_rate_is_told_of_a_run_too_short_or_too_noisy_but_percentiles_stay(
    samples_s: list[float], reason: str
) -> None:
    if reason.startswith("stop"):  # in no order, so that every stretch of the run is another
        samples_s = np.random.default_rng(1).permutation(samples_s).tolist()
    summary = script(samples_s).summary()
    assert summary.fps is None
    assert len(summary.refused) == 1
    assert reason in summary.refused[0]
    assert summary.total_ms.p50 == 1000 * float(np.median(samples_s))


def test_injected_throttling_and_outliers_are_told() -> None:
    jitter = np.random.default_rng(0).uniform(0.99, 1.01, 1000)
    samples_s = (0.010 * jitter).tolist()
    assert script(samples_s).summary().slow_down is None
    assert script(samples_s).summary().outliers.count == 0
    throttled = script((0.010 * jitter * np.where(np.arange(1000) < 600, 1, 1.25)).tolist()).summary().slow_down
    assert throttled.after_ms / throttled.before_ms == pytest.approx(1.25, abs=0.01)
    assert throttled.at_s == pytest.approx(6.0, abs=0.2)
    samples_s[100] = samples_s[700] = 0.2
    told = script(samples_s).summary().outliers
    assert (told.count, told.worst_ms) == (2, pytest.approx(200))


def test_what_was_measured_in_turns_is_compared_round_by_round() -> None:
    """Every round takes longer than the one before; that the second takes a quarter more is all that is told."""
    device = NullDevice()
    pace = {"a": 1.0, "b": 1.25}
    rounds = {"a": 0, "b": 0}

    def candidate(name: str) -> FramePipeline:
        def postprocess(output: np.ndarray, context: object) -> None:
            rounds[name] += 1
            device.advance(pace[name] * (1 + rounds[name] // 6))  # five frames, and one that is not counted

        return FramePipeline(device.load(GRAPH), lambda frame: (frame, None), postprocess)

    device._latencies_s = iter(lambda: 1e-9, None)
    both = {name: candidate(name) for name in pace}
    found = benchmark_interleaved(
        both, FRAMES, block=5, min_iterations=100, min_seconds=0, warmup=0, clock=device.clock
    )
    told = compare(found["b"], found["a"], 5)
    assert told.rounds == 20
    assert told.ratio == pytest.approx(1.25)
    assert told.differs


def test_a_measurement_is_a_stand_in_unless_said_otherwise() -> None:
    device = NullDevice([0.25])
    assert measure(device, Stages(device), min_iterations=1, min_seconds=0).basis == "stand-in"


def test_the_garbage_collector_rests_while_frames_are_timed_and_is_back_after_an_error() -> None:
    device = NullDevice([0.25])
    seen: list[bool] = []

    def fail(output: np.ndarray, context: object) -> None:
        seen.append(gc.isenabled())
        if len(seen) == 2:
            raise RuntimeError("postprocess failed")

    failing = FramePipeline(device.load(GRAPH), lambda frame: (frame, None), fail)
    with pytest.raises(RuntimeError, match="postprocess failed"):
        benchmark_interleaved({"": failing}, FRAMES, block=1, warmup=0, clock=device.clock)
    assert seen == [False, False]
    assert gc.isenabled()


@pytest.mark.parametrize(("frames", "iterations"), [([], 1), (FRAMES, 0)])
def test_nothing_to_measure_is_an_error_and_not_a_division_by_zero(frames: list, iterations: int) -> None:
    device = NullDevice([0.25])
    only = FramePipeline(device.load(GRAPH), lambda frame: (frame, None), print)
    with pytest.raises(SpecError, match="nothing to measure"):
        benchmark_interleaved({"": only}, frames, min_iterations=iterations)


def test_stamps_become_milliseconds_per_part() -> None:
    timing = timing_of(np.array([[1.0, 1.0, 1.5, 2.5, 2.75]]), "measured")
    assert (timing.preprocess_ms[0], timing.inference_ms[0], timing.postprocess_ms[0]) == (500.0, 1000.0, 250.0)
    assert timing.total_ms[0] == 1750.0

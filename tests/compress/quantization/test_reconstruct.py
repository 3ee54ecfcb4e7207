"""Weights take back what can be taken back of an error, and nothing that only looks so; rounding serves the output."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.compress.quantization.reconstruct import (
    Fit,
    Moments,
    bias_for,
    coded_with_feedback,
    moments_of,
    nvfp4_with_feedback,
    pooled,
    refit,
    round_with_feedback,
)
from edgekd.core.formats import coded_int8, fp4x, nvfp4
from edgekd.core.formats.int8 import quantize_channels

FORMS = ("int8", "fp4x")


def mixed(rng: np.random.Generator, groups: int, count: int, depth: int) -> np.ndarray:
    """Patches [g, n, K] whose inputs go together and differ in size, as those of a convolution do."""
    shared = rng.normal(size=(groups, count, 1)) * 2
    sizes = 10.0 ** np.sin(np.arange(groups * depth)).reshape(groups, 1, depth)
    return ((rng.normal(size=(groups, count, depth)) + shared + 0.5) * sizes).astype(np.float32)


def weights_for(rng: np.random.Generator, groups: int, outputs: int, depth: int) -> np.ndarray:
    return rng.standard_t(4, (groups, outputs, depth)).astype(np.float32)


def output(weights: np.ndarray, patches: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """[g, n, o] in float64."""
    found: np.ndarray = patches.astype(np.float64) @ weights.astype(np.float64).transpose(0, 2, 1)
    return found if bias is None else found + bias[:, None]


def fitted(weights: np.ndarray, wanted: np.ndarray, read: np.ndarray) -> Fit:
    """The fit on the two halves of some patches."""
    middle = wanted.shape[1] // 2
    halves = [moments_of(weights, wanted[:, part], read[:, part]) for part in (slice(middle), slice(middle, None))]
    return refit(weights, (halves[0], halves[1]))


def mean_squared(values: np.ndarray) -> float:
    return float((values**2).mean())


def test_moments_are_those_of_the_patches() -> None:
    rng = np.random.default_rng(0)
    wanted, read = mixed(rng, 2, 50, 7), mixed(rng, 2, 50, 7)
    weights = weights_for(rng, 2, 3, 7)
    found = moments_of(weights, wanted, read)
    for group in range(2):
        error = output(weights, wanted)[group] - output(weights, read)[group]
        everything = np.cov(np.concatenate([read[group], error], axis=1), rowvar=False, bias=True)
        size = np.abs(everything).max()
        assert found.covariance[group] == pytest.approx(everything[:7, :7], rel=1e-3, abs=1e-5 * size)
        assert found.cross[group] == pytest.approx(everything[7:, :7], rel=1e-3, abs=1e-5 * size)
        assert found.mean[group] == pytest.approx(read[group].mean(axis=0), rel=1e-4, abs=1e-4)
        assert found.error[group] == pytest.approx(error.mean(axis=0), rel=1e-3, abs=1e-4)


def test_without_a_bias_moments_are_about_zero_and_the_weights_answer_for_the_mean() -> None:
    rng = np.random.default_rng(0)
    wanted, weights = mixed(rng, 1, 400, 7), weights_for(rng, 1, 3, 7)
    read = (0.8 * wanted).astype(np.float32)
    found = moments_of(weights, wanted, read, biased=False)
    assert found.covariance[0] == pytest.approx(read[0].T @ read[0] / 400, rel=1e-4)
    assert not found.mean.any()
    assert not found.error.any()
    first, second = (moments_of(weights, wanted[:, at::2], read[:, at::2], biased=False) for at in (0, 1))
    fit = refit(weights, (first, second))
    assert not fit.bias.any()
    before, after = (mean_squared(output(weights, wanted) - output(w, read)) for w in (weights, fit.weights))
    assert after < before / 1000


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_nvfp4_with_feedback_is_in_the_format(outputs: int, blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patches, weights = mixed(rng, 1, 100, 16 * blocks), weights_for(rng, 1, outputs, 16 * blocks)
    found = nvfp4_with_feedback(weights, moments_of(weights, patches, patches).covariance)
    assert found.nibbles.max() < 16
    assert found.scales.min() >= 1
    assert found.scales.max() <= 126


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_nvfp4_with_feedback_serves_the_output(blocks: int, seed: int) -> None:
    """Of a layer as a whole: a single output may do better when it is rounded to the nearest."""
    rng = np.random.default_rng(seed)
    patches, weights = mixed(rng, 1, 300, 16 * blocks), weights_for(rng, 1, 16, 16 * blocks)
    covariance = moments_of(weights, patches, patches).covariance
    found = nvfp4_with_feedback(weights, covariance)
    errors = [
        float(np.trace((values - weights[0]) @ covariance[0] @ (values - weights[0]).T))
        for values in (found.values, nvfp4.quantize(weights[0]).values)
    ]
    assert errors[0] < 0.8 * errors[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_moments_of_two_halves_pool_to_those_of_all(groups: int, half: int, depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted, read = mixed(rng, groups, 2 * half, depth), mixed(rng, groups, 2 * half, depth)
    weights = weights_for(rng, groups, 2, depth)
    whole = moments_of(weights, wanted, read)
    found = pooled(
        moments_of(weights, wanted[:, :half], read[:, :half]), moments_of(weights, wanted[:, half:], read[:, half:])
    )
    for name in ("covariance", "mean", "cross", "error"):
        expected = getattr(whole, name)
        tolerance = 1e-4 * float(np.abs(expected).max() + 1)
        assert getattr(found, name) == pytest.approx(expected, rel=1e-3, abs=tolerance), name


@pytest.mark.parametrize(("groups", "outputs", "depth"), [(1, 16, 27), (6, 1, 9), (2, 4, 40)])
def test_a_known_distortion_of_the_input_is_undone(groups: int, outputs: int, depth: int) -> None:
    rng = np.random.default_rng(1)
    weights = weights_for(rng, groups, outputs, depth)
    factor = rng.uniform(0.8, 1.25, (groups, 1, depth)).astype(np.float32)
    offset = rng.normal(size=(groups, 1, depth)).astype(np.float32) * 0.2

    def pair(count: int) -> tuple[np.ndarray, np.ndarray]:
        wanted = mixed(rng, groups, count, depth)
        return wanted, wanted * factor + offset

    fit = fitted(weights, *pair(2000))
    wanted, read = pair(500)
    before = mean_squared(output(weights, wanted) - output(weights, read))
    after = mean_squared(output(weights, wanted) - output(fit.weights, read, fit.bias))
    assert after < 0.02 * before


def test_noise_on_the_input_is_weighed_down_as_far_as_a_linear_layer_can() -> None:
    """The least error that any linear layer reaches is known: Wiener's."""
    rng = np.random.default_rng(2)
    weights = weights_for(rng, 1, 4, 8)

    def pair(count: int) -> tuple[np.ndarray, np.ndarray]:
        wanted = mixed(rng, 1, count, 8)
        return wanted, wanted + rng.normal(size=wanted.shape).astype(np.float32)

    fit = fitted(weights, *pair(20_000))
    wanted, read = pair(20_000)
    best, *_ = np.linalg.lstsq(np.insert(read[0], 0, 1, axis=1), output(weights, wanted)[0])
    least = mean_squared(output(weights, wanted)[0] - np.insert(read[0], 0, 1, axis=1) @ best)
    before, after = (
        mean_squared(output(weights, wanted) - output(*layer))
        for layer in ((weights, read), (fit.weights, read, fit.bias))
    )
    assert least < 0.8 * before
    assert after < least + 0.1 * (before - least)


@pytest.mark.parametrize("seed", range(5))
def test_what_one_half_says_and_the_other_denies_is_not_learned(seed: int) -> None:
    """More inputs than patches: each half could explain its noise completely."""
    rng = np.random.default_rng(seed)
    weights = weights_for(rng, 1, 50, 60)
    read = rng.normal(size=(1, 80, 60)).astype(np.float32)
    noise = rng.normal(size=read.shape).astype(np.float32)
    fit = fitted(weights, read + noise, read)
    half = moments_of(weights, (read + noise)[:, :40], read[:, :40])
    alone = np.linalg.solve(half.covariance[0] + 1e-3 * np.eye(60), half.cross[0].T).T
    assert np.linalg.norm(fit.weights - weights) < 0.1 * np.linalg.norm(alone)
    assert np.linalg.norm(fit.bias) < 0.3 * np.linalg.norm(half.error)


def test_a_shift_that_both_halves_see_goes_into_the_bias() -> None:
    rng = np.random.default_rng(3)
    weights = weights_for(rng, 2, 3, 10)
    read = mixed(rng, 2, 400, 10)
    fit = fitted(weights, read + np.float32(0.5), read)
    assert fit.bias == pytest.approx(0.5 * weights.sum(axis=2), rel=0.02, abs=0.02)
    assert fit.weights == pytest.approx(weights, abs=0.01)


def test_an_input_that_is_as_it_was_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    weights, read = weights_for(rng, 2, 3, 10), mixed(rng, 2, 100, 10)
    fit = fitted(weights, read, read)
    assert np.array_equal(fit.weights, weights)
    assert not fit.bias.any()


def test_the_bias_makes_up_for_what_rounding_adds_on_average() -> None:
    rng = np.random.default_rng(5)
    weights, read = weights_for(rng, 1, 8, 20), mixed(rng, 1, 300, 20)
    moments, used = moments_of(weights, read, read), np.rint(weights)
    bias = bias_for(Fit(weights, np.zeros((1, 8), np.float32)), used, moments)
    assert output(used, read, bias).mean(axis=1) == pytest.approx(output(weights, read).mean(axis=1), abs=1e-3)


def nearest(weights: np.ndarray, form: str) -> np.ndarray:
    """The weights [g, o, K] rounded one by one."""
    rows = weights.reshape(-1, weights.shape[2])
    codes, scales = quantize_channels(rows) if form == "int8" else fp4x.quantize(rows)
    return (codes * scales[:, None]).reshape(weights.shape)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("groups", "outputs", "depth"), [(1, 16, 144), (1, 8, 27), (8, 1, 9), (2, 4, 50)])
def test_rounding_with_feedback_beats_rounding_to_the_nearest(form: str, groups: int, outputs: int, depth: int) -> None:
    rng = np.random.default_rng(6)
    weights, seen, fresh = weights_for(rng, groups, outputs, depth), *(mixed(rng, groups, 2000, depth) for _ in "ab")
    codes, scales = round_with_feedback(weights, moments_of(weights, seen, seen).covariance, form)
    centred = fresh - fresh.mean(axis=1, keepdims=True)
    errors = [
        mean_squared(output(weights - used, centred)) for used in (codes * scales[..., None], nearest(weights, form))
    ]
    assert errors[0] < 0.5 * errors[1]


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    groups=st.integers(1, 3),
    outputs=st.integers(1, 6),
    depth=st.sampled_from([1, 2, 15, 16, 17, 27, 40]),
    count=st.sampled_from([1, 2, 10, 100]),
    size=st.sampled_from([1e-30, 1e-6, 1.0, 1e6]),
    reads=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_can_be_stored_whatever_the_weights_and_what_they_read(
    form: str, groups: int, outputs: int, depth: int, count: int, size: float, reads: float, seed: int
) -> None:
    """Channels of zeros, odd blocks, and covariances of far fewer patches than inputs, or of none, too."""
    rng = np.random.default_rng(seed)
    weights = weights_for(rng, groups, outputs, depth) * np.float32(size)
    weights[rng.random(weights.shape[:2]) < 0.2] = 0
    read = mixed(rng, groups, count, depth) * np.float32(reads)
    covariance = moments_of(weights, read, read).covariance
    codes, scales = round_with_feedback(weights, covariance, form)
    assert (codes.shape, codes.dtype) == (weights.shape, np.int8)
    assert (scales.shape, scales.dtype) == (weights.shape[:2], np.float32)
    assert (scales > 0).all()
    assert np.abs(codes.astype(int)).max() <= 127
    assert form == "int8" or fp4x.representable(codes.reshape(-1, depth))
    assert not codes[~weights.any(axis=2)].any()
    # Where nothing is known of what is read: not much farther from a weight than rounding to the nearest, which knows
    # nothing of bits. 20 dB is about what 4 bits give.
    if not reads:
        rounded = (codes * scales[..., None], nearest(weights, form))
        error, least = (mean_squared((weights - used) / np.float32(size)) for used in rounded)
        assert error <= least + 0.01 * mean_squared(weights / np.float32(size)) + 1e-12
    again = round_with_feedback(weights.copy(), covariance.copy(), form)
    assert np.array_equal(codes, again[0])
    assert np.array_equal(scales, again[1])


@pytest.mark.parametrize("form", FORMS)
def test_on_what_it_knows_of_feedback_is_hardly_ever_worse(form: str) -> None:
    """From one input to forty, and from two patches to two hundred."""
    ratios = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        depth, count = rng.integers(1, 41), rng.integers(2, 201)
        weights, read = weights_for(rng, 1, 4, depth), mixed(rng, 1, count, depth)
        codes, scales = round_with_feedback(weights, moments_of(weights, read, read).covariance, form)
        centred = read - read.mean(axis=1, keepdims=True)
        pair = (codes * scales[..., None], nearest(weights, form))
        error, least = (mean_squared(output(weights - used, centred)) for used in pair)
        ratios.append((error + 1e-12) / (least + 1e-12))
    assert np.mean(ratios) < 0.6
    assert np.quantile(ratios, 0.95) < 1.02
    assert max(ratios) < 1.25


def noise(weights: np.ndarray, read: np.ndarray, covariance: np.ndarray, taps: int, step: float) -> float:
    """Mean squared error of the output on patches, of coded weights."""
    ((codes, scales),) = coded_with_feedback(weights, covariance, taps, [step])
    return mean_squared(output(weights - codes * scales[..., None], read - read.mean(axis=1, keepdims=True)))


def test_coded_weights_lose_six_decibels_for_twice_the_step() -> None:
    rng = np.random.default_rng(11)
    weights, seen, fresh = rng.normal(size=(1, 32, 144)).astype(np.float32), *(mixed(rng, 1, 4000, 144) for _ in "ab")
    covariance = moments_of(weights, seen, seen).covariance
    errors = [noise(weights, fresh, covariance, 9, step) for step in (0.125, 0.25, 0.5)]
    assert errors[1] == pytest.approx(4 * errors[0], rel=0.35)
    assert errors[2] == pytest.approx(4 * errors[1], rel=0.35)


def test_inputs_that_matter_less_have_larger_steps() -> None:
    """The error of a weight counts by the variance of its input: the step falls with its root."""
    rng = np.random.default_rng(12)
    weights = rng.normal(size=(1, 64, 40)).astype(np.float32)
    deviations = np.repeat([1.0, 0.5, 2.0, 1.0], 10)
    covariance = np.diag(deviations**2)[None].astype(np.float32)
    ((codes, _),) = coded_with_feedback(weights, covariance, 10, [0.3])
    coded = coded_int8.encode(codes.reshape(64, 4, 10))
    assert coded is not None
    one, half, double, same = coded.columns.steps.tolist()
    assert one == same
    assert (half / one, one / double) == (pytest.approx(2, rel=0.15), pytest.approx(2, rel=0.15))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    outputs=st.integers(1, 6),
    inputs=st.sampled_from([1, 3, 8]),
    taps=st.sampled_from([1, 9]),
    size=st.sampled_from([1e-30, 1e-6, 1.0, 1e6]),
    reads=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    step=st.sampled_from([0.01, 0.125, 1.0, 8.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_coded_weights_are_codes_whatever_the_weights_and_what_they_read(
    groups: int, outputs: int, inputs: int, taps: int, size: float, reads: float, step: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = weights_for(rng, groups, outputs, inputs * taps) * np.float32(size)
    weights[rng.random(weights.shape[:2]) < 0.2] = 0
    read = mixed(rng, groups, 50, inputs * taps) * np.float32(reads)
    ((codes, scales),) = coded_with_feedback(weights, moments_of(weights, read, read).covariance, taps, [step])
    assert (codes.shape, codes.dtype) == (weights.shape, np.int8)
    assert (scales.shape, scales.dtype) == (weights.shape[:2], np.float32)
    assert (scales > 0).all()
    assert np.abs(codes.astype(int)).max() <= 127
    assert not codes[~weights.any(axis=2)].any()
    by_input = codes.reshape(groups * outputs, inputs, taps).astype(int)
    steps = np.maximum(np.gcd.reduce(by_input, axis=(0, 2)), 1)
    assert np.abs(by_input // steps[:, None]).max() <= coded_int8.MAX_SYMBOL


def test_known_codes_are_kept() -> None:
    """Weights that are codes already need no rounding, so nothing has to be made up for."""
    rng = np.random.default_rng(7)
    codes = rng.integers(-127, 128, (1, 5, 30))
    codes[:, :, 0] = 127
    weights = (codes * 0.01).astype(np.float32)
    moments = moments_of(weights, mixed(rng, 1, 100, 30), mixed(rng, 1, 100, 30))
    found, scales = round_with_feedback(weights, moments.covariance, "int8")
    assert np.array_equal(found, codes)
    assert scales == pytest.approx(0.01)


def test_more_weights_than_patches_are_no_obstacle_to_a_fit() -> None:
    rng = np.random.default_rng(8)
    weights, wanted = weights_for(rng, 1, 4, 200), mixed(rng, 1, 20, 200)
    fit = fitted(weights, wanted, wanted * np.float32(1.1))
    assert np.isfinite(fit.weights).all()
    assert np.isfinite(fit.bias).all()
    read = mixed(rng, 1, 300, 200)
    before, after = (
        mean_squared(output(weights, read / 1.1) - output(*layer))
        for layer in ((weights, read), (fit.weights, read, fit.bias))
    )
    assert after < 1.02 * before


def test_moments_are_float32() -> None:
    rng = np.random.default_rng(9)
    weights, read = weights_for(rng, 1, 2, 4), mixed(rng, 1, 10, 4)
    moments = moments_of(weights, read, read)
    assert {value.dtype for value in vars(moments).values()} == {np.dtype(np.float32)}
    assert isinstance(pooled(moments, moments), Moments)

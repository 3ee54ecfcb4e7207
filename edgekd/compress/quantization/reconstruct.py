"""Layer-wise reconstruction: weights that compensate earlier quantization, and rounding with feedback. Uses NumPy.

A layer is a matrix W [O, K] on patches x [K]. In the quantized graph it reads other patches z, because the layers
before it are quantized, too. Two steps, both without labels and training:

- refit: the weights and bias that bring W' z closest to W x (ridge regression, kept near W);
- rounding with feedback: the weights are rounded column by column, and later columns compensate the error of earlier
  ones, by the covariance of z; in some formats single weights are then rounded again, given all others.

Sources: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization", 2022 (feedback); M. Nagel et al., "Up or Down?
Adaptive Rounding", 2020 (the objective: a layer's output, not its weights); Y. Li et al., "BRECQ", 2021 (layers in
order, each on the quantized output of those before); "WaterSIC", arXiv 2603.04956, 2026 (steps by input).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np

from edgekd.core.errors import CompressError
from edgekd.core.formats import coded_int8, fp4x, nvfp4
from edgekd.core.formats.int8 import LEVELS, channel_scales, dequantize_channels
from edgekd.core.formats.nvfp4 import Nvfp4

Stored = tuple[np.ndarray, np.ndarray] | Nvfp4
"""Weights of a layer as stored in a graph: INT8 codes [O, ...] and their scales float32 [O], or NVFP4."""

DAMPING = 0.003
"""Share of a covariance's mean diagonal that is added to the diagonal, for patches not in the sample."""
MIN_POWER = 1e-20
"""Lower bound of divisors."""
MAX_SPREAD = 1.5
"""Largest absolute logarithm of an input's step relative to the mean of its layer."""
MAX_MEAN_STEP = 8
"""Largest mean of the integer steps of a layer's inputs; the more, the finer the steps can differ between inputs."""
PEAK_MARGIN = 1.01
"""Factor on the scale at which a peak is the largest code: margin for feedback and for rounding the scale's bits."""
PEAKED_SHARE = 0.1
"""Share of the outputs whose step is enlarged because of their peaks, so that the mean integer step can be larger."""
_BLOCK = fp4x.BLOCK
_Factor = TypeVar("_Factor")


@dataclass(frozen=True)
class Moments:
    """Statistics of a layer's patches for rounding, for each of its g groups; float32.

    covariance [g, K, K] and mean [g, K] of the patches z that the quantized layer reads; cross [g, o, K]: covariance of
    z with the error W x - W z of the unchanged weights; error [g, o]: mean of this error. For a layer without a bias,
    moments are about zero, and means are 0: its weights must compensate the mean error, too.
    """

    covariance: np.ndarray
    mean: np.ndarray
    cross: np.ndarray
    error: np.ndarray


def moments_of(weights: np.ndarray, reference: np.ndarray, read: np.ndarray, biased: bool = True) -> Moments:
    """Return the moments of a layer with weights [g, o, K].

    reference, read: the same patches [g, n, K] of the float and of the quantized layer's input; biased: whether there
    is a bias, which compensates the means.
    """
    count = np.float32(read.shape[1])
    mean = read.mean(axis=1) * np.float32(biased)
    errors = (reference - read) @ weights.transpose(0, 2, 1)
    error = errors.mean(axis=1) * np.float32(biased)
    centred = read - mean[:, None]
    # Group by group: for the product of a matrix with itself, BLAS computes only one half.
    covariance = np.stack([each.T @ each for each in centred]) / count
    cross = (errors - error[:, None]).transpose(0, 2, 1) @ centred / count
    return Moments(covariance, mean, cross, error)


def pooled(one: Moments, other: Moments) -> Moments:
    """Return the moments of the union of two equally large sets of patches."""
    apart, errors_apart = one.mean - other.mean, one.error - other.error
    between = apart[:, :, None] * apart[:, None] / 4
    across = errors_apart[:, :, None] * apart[:, None] / 4
    return Moments(
        covariance=(one.covariance + other.covariance) / 2 + between,
        mean=(one.mean + other.mean) / 2,
        cross=(one.cross + other.cross) / 2 + across,
        error=(one.error + other.error) / 2,
    )


@dataclass(frozen=True)
class Fit:
    """Weights [g, o, K] and a change of the bias [g, o], before rounding."""

    weights: np.ndarray
    bias: np.ndarray


def refit(weights: np.ndarray, halves: tuple[Moments, Moments]) -> Fit:
    """Return the weights and bias whose output on the quantized input is closest to the float layer's.

    The step length is chosen by two-fold cross-validation: the correction from each half of the frames is scaled to fit
    the other half best. Otherwise corrections from a few frames would mostly fit noise, which adds up over layers.
    """
    moments = pooled(*halves)
    corrections = [_correction(half) for half in halves]
    share = np.mean([_gain(each, other) for each, other in zip(corrections, halves[::-1], strict=True)], axis=0)
    power = [np.maximum(np.square(half.error).sum(axis=1), MIN_POWER) for half in halves]
    common = (halves[0].error * halves[1].error).sum(axis=1)
    agreements = [common / each for each in power]  # factors by which each half's mean errors predict the other's
    change = np.clip(share, 0, 1).astype(np.float32)[:, None, None] * np.mean(corrections, axis=0)
    shift = np.clip(np.mean(agreements, axis=0), 0, 1).astype(np.float32)[:, None] * moments.error
    return Fit(weights + change, shift - _on_average(change, moments))


def _correction(moments: Moments) -> np.ndarray:
    """Return the change of the weights [g, o, K] that reduces the error most."""
    from scipy.linalg import cho_factor, cho_solve  # type: ignore[import-untyped]

    def solved(covariance: np.ndarray, cross: np.ndarray) -> np.ndarray:
        # A covariance is symmetric and positive definite: Cholesky factorization costs half of Gaussian elimination.
        factor = _of_positive(covariance, lambda each: cho_factor(each, check_finite=False))
        solution: np.ndarray = cho_solve(factor, cross.T, check_finite=False)
        return solution.T

    damped = _damped(moments.covariance)
    if len(damped) > 1:
        # One call for the many small systems of a depthwise layer is faster than a call for each.
        with suppress(np.linalg.LinAlgError):
            return np.asarray(np.linalg.solve(damped, moments.cross.transpose(0, 2, 1)).transpose(0, 2, 1))
    return np.stack([solved(*each) for each in zip(damped, moments.cross, strict=True)])


def _gain(correction: np.ndarray, moments: Moments) -> np.ndarray:
    """Return the factor [g] of a correction [g, o, K] that reduces the error in `moments` most."""
    along = (correction * moments.cross).sum(axis=(1, 2))
    power = ((correction @ moments.covariance) * correction).sum(axis=(1, 2))
    return np.asarray(along / np.maximum(power, MIN_POWER))


def _on_average(change: np.ndarray, moments: Moments) -> np.ndarray:
    """Return the change of the mean output [g, o] by a change of the weights [g, o, K]."""
    return np.asarray((change @ moments.mean[:, :, None])[:, :, 0])


def bias_for(fit: Fit, used: np.ndarray, moments: Moments) -> np.ndarray:
    """Return the change of the bias [g, o] for weights `used` [g, o, K] that differ from those of the fit."""
    return np.asarray(fit.bias + _on_average(fit.weights - used, moments))


def round_with_feedback(weights: np.ndarray, covariance: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Return codes int8 [g, o, K] and INT8 scales float32 [g, o] for weights [g, o, K], in form `int8` or `fp4x`."""
    codes, _, scales = _rounded(weights, covariance, form)
    return codes.astype(np.int8), scales


def nvfp4_with_feedback(weights: np.ndarray, covariance: np.ndarray) -> Nvfp4:
    """Return weights [1, o, K] in NVFP4; each block gets the better of two scales, given the blocks before it."""
    codes, steps, scales = _rounded(weights, covariance, "nvfp4")
    chosen = np.searchsorted(nvfp4.SCALES[:127], steps[0, :, ::_BLOCK]).astype(np.uint8)
    return Nvfp4(nvfp4.nearest(codes[0] / steps[0] / 2), chosen, 2 * scales[0, 0])


def coded_with_feedback(
    weights: np.ndarray, covariance: np.ndarray, taps: int, steps: Iterable[float]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield codes int8 [g, o, K] of coded INT8 and INT8 scales float32 [g, o] for each of `steps`; weights [g, o, K].

    The distance of neighbouring codes of an output is a step times the root mean square of its weights, times a factor
    per input: inputs whose errors later inputs can compensate have larger steps. taps: weights per input, kh * kw.
    """
    damped = _damped(covariance)
    factor = _inverse_factor(damped)
    graded = np.log(np.diagonal(factor, axis1=1, axis2=2)).reshape(len(factor), -1, taps).mean(axis=(0, 2))
    spread = np.exp(np.clip(graded - graded.mean(), -MAX_SPREAD, MAX_SPREAD))
    for step in steps:
        integers, scales = _coded_steps(weights, step, spread, taps)
        of_weights = integers.repeat(taps)
        # In units of each input's step all symbols are integers; the covariance is scaled accordingly.
        exact = weights / (scales[:, :, None] * of_weights)
        symbols, ones = _feedback(exact, factor / of_weights, "coded")
        _improve(exact, symbols, ones, damped * np.outer(of_weights, of_weights), "coded")
        largest = np.minimum(LEVELS // of_weights, coded_int8.MAX_SYMBOL)
        yield (np.clip(symbols, -largest, largest) * of_weights).astype(np.int8), scales


def _coded_steps(weights: np.ndarray, step: float, spread: np.ndarray, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integer step of each input, float32 [I], and the INT8 scales [g, o] of coded INT8.

    step: relative to the root mean square of an output's weights; spread: desired steps of the inputs [I], relative to
    their mean.
    """
    peaks = np.abs(weights).reshape(*weights.shape[:2], -1, taps).max(axis=3)
    wanted = step * np.sqrt(np.square(weights).mean(axis=2))
    rooms = LEVELS * wanted / np.maximum(PEAK_MARGIN * peaks.max(axis=2), MIN_POWER)
    not_zero = rooms[rooms > 0]
    mean_step = np.clip(np.quantile(not_zero, PEAKED_SHARE), 1, MAX_MEAN_STEP) if not_zero.size else 1
    steps = np.clip(np.rint(mean_step * spread), 1, LEVELS).astype(np.float32)
    largest = np.minimum(coded_int8.MAX_SYMBOL * steps, LEVELS)
    scales = np.maximum(wanted / mean_step, PEAK_MARGIN * (peaks / largest).max(axis=2))
    return steps, fp4x.rounded_scales(scales)


def stored_in(
    form: str, weights: np.ndarray, covariance: np.ndarray, shape: tuple[int, ...], steps: Iterable[float] = ()
) -> Iterator[tuple[Stored, np.ndarray]]:
    """Round weights [g, o, K] of a layer with feedback; yield their stored form and their values [g, o, K].

    form: storage format; shape: shape of the layer's weights; steps: only for `coded`, which yields once per step, as
    `coded_with_feedback`. Other formats yield once.
    """
    if form == "nvfp4":
        tensor = nvfp4_with_feedback(weights, covariance)
        yield tensor, tensor.values.reshape(weights.shape)
        return
    coded = coded_with_feedback(weights, covariance, prod(shape[2:]), steps) if form == "coded" else None
    for codes, scales in coded or [round_with_feedback(weights, covariance, form)]:
        values = dequantize_channels(codes.reshape(shape), scales.ravel()).reshape(weights.shape)
        yield (codes.reshape(shape), scales.ravel()), values


def _rounded(weights: np.ndarray, covariance: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes float32 [g, o, K], the multiplier of each weight's block, and scales [g, o], the unit of both."""
    damped = _damped(covariance)
    scales = _SCALES[form](weights, damped)
    exact = weights / scales[:, :, None]
    codes, multipliers = _feedback(exact, _inverse_factor(damped), form)
    for _ in range(_SWEEPS[form]):
        if not _improve(exact, codes, multipliers, damped, form):
            break
    return codes, multipliers, scales


def _damped(covariance: np.ndarray) -> np.ndarray:
    """Return the covariance with a larger diagonal, which makes it invertible."""
    diagonal = np.diagonal(covariance, axis1=1, axis2=2)
    extra = DAMPING * diagonal.mean(axis=1) + np.float32(1e-10)
    return np.asarray(covariance + extra[:, None, None] * np.eye(covariance.shape[1], dtype=np.float32))


def _feedback(exact: np.ndarray, factor: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Return codes [g, o, K] and the multiplier of each weight's block, for weights `exact` in units of codes.

    factor: result of `_inverse_factor` for their covariance. All multipliers that a block can have are tried, with
    feedback inside the block; the best one is kept.
    """
    nearest = _NEAREST[form]
    left, codes, multipliers = exact.copy(), np.empty_like(exact), np.empty_like(exact)
    for start in range(0, exact.shape[2], _BLOCK):
        block = slice(start, min(start + _BLOCK, exact.shape[2]))
        within = factor[:, block, block]
        tried = _tried(left[:, :, block], form)
        candidates, errors = _feedback_in_block(left[:, :, block], within, tried, nearest)
        best = _cheapest(candidates, (errors**2).sum(axis=3), tried, form)[None, :, :, None]
        codes[:, :, block] = np.take_along_axis(candidates, best, axis=0)[0]
        multipliers[:, :, block] = np.take_along_axis(tried[..., None], best, axis=0)[0]
        carried = np.take_along_axis(errors, best, axis=0)[0]
        left[:, :, block.stop :] -= carried @ factor[:, block, block.stop :]
    return codes, multipliers


def _tried(block: np.ndarray, form: str) -> np.ndarray:
    """Return the candidate multipliers [m, g, o] of each block [g, o, 16]."""
    if form == "nvfp4":
        return np.asarray(nvfp4.SCALES[nvfp4.block_scales(np.abs(block).max(axis=2) / 2)])
    return np.broadcast_to(_MULTIPLIERS[form][:, None, None], (len(_MULTIPLIERS[form]), *block.shape[:2]))


def _cheapest(codes: np.ndarray, errors: np.ndarray, tried: np.ndarray, form: str) -> np.ndarray:
    """Return the index [g, o] of each block's best multiplier by the errors [m, g, o], for fp4x also by packed bits.

    The error of a fine quantizer falls to a quarter with each further bit, so a bit is worth 2 ln 2 times the mean
    error of a weight.
    """
    if form != "fp4x":
        return np.asarray(errors.argmin(axis=0))
    halves = np.abs(np.rint(codes / tried[..., None])).astype(np.intp)
    mean_error = errors.min(axis=0).mean(axis=1, keepdims=True) / codes.shape[3]
    return np.asarray((errors + 2 * np.log(2) * mean_error * _BITS[halves].sum(axis=3)).argmin(axis=0))


def _inverse_factor(damped: np.ndarray) -> np.ndarray:
    """Return the upper triangular U [g, K, K] with U' U = the inverse of a covariance, which propagates errors.

    A Cholesky factorization with rows and columns in reverse order gives the upper triangular R with R R' = the
    covariance; U is the inverse of R.
    """
    reversed_ = damped[:, ::-1, ::-1].astype(np.float64)
    upper = np.stack([_of_positive(each, np.linalg.cholesky) for each in reversed_])[:, ::-1, ::-1]
    # The condition number of R is the square root of the covariance's, so single precision suffices to invert it.
    return np.asarray(np.linalg.inv(upper.astype(np.float32)))


def _of_positive(covariance: np.ndarray, factor: Callable[[np.ndarray], _Factor]) -> _Factor:
    """Return `factor` of a covariance [K, K], with a larger diagonal if it is not positive definite otherwise.

    Raises CompressError if that does not help, as for values that are not finite.
    """
    diagonal = np.diagonal(covariance).mean() * np.eye(len(covariance), dtype=covariance.dtype)
    for extra in (0.0, 0.01, 0.1, 1.0):
        # With few patches of many inputs, rounding in float32 makes some eigenvalues negative.
        try:
            return factor(covariance + extra * diagonal if extra else covariance)
        except np.linalg.LinAlgError:
            continue
    raise CompressError("quantize: a layer reads what has no covariance", expected="finite values", found="others")


def _feedback_in_block(
    block: np.ndarray, factor: np.ndarray, tried: np.ndarray, nearest: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and scaled errors [m, g, o, 16] of a block [g, o, 16] for each of m multipliers [m, g, o]."""
    left = np.repeat(block[None], len(tried), axis=0)
    codes, errors = np.empty_like(left), np.empty_like(left)
    for column in range(block.shape[2]):
        now = left[..., column]
        codes[..., column] = nearest(now / tried) * tried
        errors[..., column] = (now - codes[..., column]) / factor[:, None, column, column]
        left[..., column + 1 :] -= errors[..., column, None] * factor[:, None, column, column + 1 :]
    return codes, errors


def _improve(exact: np.ndarray, codes: np.ndarray, multipliers: np.ndarray, damped: np.ndarray, form: str) -> bool:
    """Round every weight again, given all others; change `codes` in place, and return whether any changed."""
    nearest = _NEAREST[form]
    slope = (exact - codes) @ damped
    changed = False
    for column in range(exact.shape[2]):
        best = codes[..., column] + slope[..., column] / damped[:, None, column, column]
        step = multipliers[..., column]
        change = nearest(best / step) * step - codes[..., column]
        if change.any():
            changed = True
            slope -= change[..., None] * damped[:, None, column]
            codes[..., column] += change
    return changed


def _nearest_int8(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(values), -LEVELS, LEVELS))


def _nearest_symbol(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(values), -coded_int8.MAX_SYMBOL, coded_int8.MAX_SYMBOL))


def _nearest_e2m1(values: np.ndarray) -> np.ndarray:
    """Round to twice the values of E2M1: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives."""
    size = np.abs(values)
    step = np.where(size < 4, np.float32(1), np.where(size < 8, np.float32(2), np.float32(4)))
    return np.asarray(np.copysign(np.minimum(np.rint(size / step) * step, np.float32(12)), values))


def _int8_scales(weights: np.ndarray, damped: np.ndarray) -> np.ndarray:
    return channel_scales(weights.reshape(-1, weights.shape[2])).reshape(weights.shape[:2])


def _fp4x_scales(weights: np.ndarray, damped: np.ndarray) -> np.ndarray:
    """Return the scales [g, o] that are best for rounding to nearest, with errors weighted by the inputs' variance."""
    importance = np.repeat(np.diagonal(damped, axis1=1, axis2=2), weights.shape[1], axis=0)
    _, scales = fp4x.quantize(weights.reshape(-1, weights.shape[2]), importance=importance)
    return scales.reshape(weights.shape[:2])


def _nvfp4_scales(weights: np.ndarray, damped: np.ndarray) -> np.ndarray:
    """Return half the tensor's scale for every channel [g, o], because codes are twice the values of E2M1."""
    return np.full(weights.shape[:2], nvfp4.tensor_scale(weights) / 2, np.float32)


_NEAREST = {"int8": _nearest_int8, "coded": _nearest_symbol, "fp4x": _nearest_e2m1, "nvfp4": _nearest_e2m1}
_MULTIPLIERS = {
    **dict.fromkeys(("int8", "coded"), np.ones(1, np.float32)),
    "fp4x": np.arange(1, fp4x.MULTIPLIERS + 1, dtype=np.float32),
}
# Bits of 0, 1, 2, 3, 4, 6, 8, 12, with signs, after entropy coding, from their frequencies in trained detectors.
_BITS = np.array([2.9, 3.2, 3.4, 3.7, 4.1, 0, 4.1, 0, 5.3, 0, 0, 0, 6.6], np.float32)
_SWEEPS = {"int8": 0, "fp4x": 2, "nvfp4": 2}  # in INT8, rounding weights causes 1 % of the noise: no gain
_SCALES = {"int8": _int8_scales, "fp4x": _fp4x_scales, "nvfp4": _nvfp4_scales}

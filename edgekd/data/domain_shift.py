"""Estimate the domain shift between two image sets of different scenes, and apply it to images. Needs OpenCV.

An image is decomposed into a Laplacian pyramid (Burt and Adelson, 1983): frequency bands, each at half the resolution
of the one before, and a low-pass residual. A shift is modelled as a blur of the image, followed in each band, by
lightness and colour channel, by a gain on the coefficients (fog, low light) and additive noise (sensor noise, fog).
Gain and noise follow from the distributions of the coefficients: heavy-tailed for images, normal for noise.

So a network's layers can be fitted on pairs that no camera records: one scene before and after the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.data.images import Image

BANDS = 5  # of the pyramid, for images that are large enough
BINS = 4  # quantile bins of lightness
SAMPLES = 20_000  # coefficients drawn of each band
BLURS = (0.0, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.4, 4.0, 4.8, 5.6, 6.8, 8.0, 9.6, 11.3)
"""Candidate standard deviations of the Gaussian kernel, in pixels."""
BLUR_IMAGES = 16  # images on which kernels are compared
MAX_MISFIT = 0.5  # of a kernel, relative to the misfit without one
MIN_MISFIT = 0.1  # without a kernel; below it there is no blur
MIN_ADDED = 0.4  # fraction of the residual's variance that counts as noise; less is a difference of scenes
MAX_SHARPENING = 1.1  # largest gain of a band relative to the next coarser one: optics do not sharpen
_QUANTILES = np.array([0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.995])  # of the coefficients' magnitude, that are fitted
_NOISE_RATIOS = np.concatenate([[0.0], np.geomspace(0.05, 50, 30)])  # root mean square of noise by that of the signal
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt([[3], [2], [6]]).astype(np.float32)
_MIN_GAIN = 0.03  # of a band; a lower one counts as zero
_MIN_COEFFICIENT = 0.05  # grey levels; a smaller one counts as zero


@dataclass(frozen=True, eq=False)
class DomainShift:
    """Change of images under new conditions.

    blur: standard deviation of a Gaussian kernel, in pixels. Per band, finest first: edges [b, BINS - 1] of the
    lightness bins; gains [b, BINS, 3] of the coefficients; noise [b, BINS, 3], standard deviation in grey levels. Of
    the residual: mean before and after [3]; residual_gain [3]; residual_noise [3].
    """

    blur: float
    edges: np.ndarray
    gains: np.ndarray
    noise: np.ndarray
    before: np.ndarray
    after: np.ndarray
    residual_gain: np.ndarray
    residual_noise: np.ndarray

    def apply(self, image: Image, rng: np.random.Generator) -> Image:
        """Return an image uint8 [h, w, 3] under the new conditions; deterministic for a state of `rng`."""
        bands, lights, residual = _pyramid(_blurred(image, self.blur), len(self.gains))
        noise = self.residual_noise * _normal(rng, residual.shape)
        level = self.after + self.residual_gain * (residual - self.before) + noise
        for band, light, edges, gains, deviations in reversed(
            list(zip(bands, lights, self.edges, self.gains, self.noise, strict=True))
        ):
            bins = np.searchsorted(edges, light)
            level = _upsampled(level, band) + gains[bins] * band + deviations[bins] * _normal(rng, band.shape)
        shifted: Image = np.clip(np.rint(level @ _COLOURS), 0, 255).astype(np.uint8)
        return shifted


def estimate_shift(known: Sequence[Image], new: Sequence[Image]) -> DomainShift:
    """Estimate the shift from `known` images to `new` ones; all uint8 [h, w, 3], of similar size."""
    count = _band_count([*known, *new])
    target = _sampled(new, 0.0, count)
    unblurred = _fitted_shift(_sampled(known, 0.0, count), target, 0.0)
    blur = _kernel(known[:BLUR_IMAGES], unblurred.gains[:, :, 0].mean(axis=1))
    return _fitted_shift(_sampled(known, blur, count), target, blur) if blur else unblurred


def _kernel(images: Sequence[Image], gains: np.ndarray) -> float:
    """Return the standard deviation of the Gaussian kernel with these gains [b] on the bands; 0 if none fits."""
    amplitudes = [_amplitudes(images, deviation, len(gains)) for deviation in BLURS]
    log_gains = np.log(np.maximum(gains / gains[-1], _MIN_GAIN))
    misfits = [
        float(np.square(np.log(np.maximum(blurred / amplitudes[0], _MIN_GAIN)) - log_gains).sum())
        for blurred in amplitudes
    ]
    best = int(np.argmin(misfits))
    return BLURS[best] if misfits[best] < MAX_MISFIT * misfits[0] and misfits[0] > MIN_MISFIT else 0.0


def _amplitudes(images: Sequence[Image], deviation: float, count: int) -> np.ndarray:
    """Return the root mean square of the lightness in each band of blurred images, [b]."""
    powers = [
        [float(np.square(band[..., 0]).mean()) for band in _pyramid(_blurred(image, deviation), count)[0]]
        for image in images
    ]
    amplitudes: np.ndarray = np.sqrt(np.mean(powers, axis=0)) + 1e-6
    return amplitudes


def _fitted_shift(source: _Coefficients, target: _Coefficients, blur: float) -> DomainShift:
    """Fit the shift between two sets of coefficients; blur: already applied to `source`."""
    rng = np.random.default_rng(0)
    count = len(source.bands)
    edges, target_edges = (
        [np.quantile(light, np.arange(1, BINS) / BINS) for light in side.lights] for side in (source, target)
    )
    gains, noise = np.ones((count, BINS, 3), np.float32), np.zeros((count, BINS, 3), np.float32)
    max_gain = np.full((BINS, 3), np.inf)
    for band in reversed(range(count)):
        source_bins = np.searchsorted(edges[band], source.lights[band])
        target_bins = np.searchsorted(target_edges[band], target.lights[band])
        for part, colour in np.ndindex(BINS, 3):
            pair = source.bands[band][source_bins == part, colour], target.bands[band][target_bins == part, colour]
            # The gain of colours is at most that of lightness: colourfulness differs too much between scenes.
            limit = max_gain[part, colour] if colour == 0 else min(max_gain[part, colour], gains[band, part, 0])
            gains[band, part, colour], noise[band, part, colour] = _gain_and_noise(*pair, float(limit), rng)
        max_gain = MAX_SHARPENING * gains[band]
    deviation = target.residual.std(axis=0)
    ratio = deviation / np.maximum(source.residual.std(axis=0), 1e-3)
    gain = np.minimum(ratio, gains[:, :, 0].mean(axis=1).max())
    added = 1 - np.square(gain / np.maximum(ratio, 1e-6))  # fraction of the variance that the gain does not explain
    return DomainShift(
        blur,
        np.array(edges),
        gains,
        noise,
        before=source.residual.mean(axis=0),
        after=target.residual.mean(axis=0),
        residual_gain=np.where(added < MIN_ADDED, ratio, gain),
        residual_noise=np.where(added < MIN_ADDED, 0, deviation * np.sqrt(added)),
    )


def _gain_and_noise(
    source: np.ndarray, target: np.ndarray, max_gain: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Fit the gain and the noise's standard deviation that map coefficients [n] to the distribution of others [m]."""
    if not len(source) or not len(target):
        return min(1.0, max_gain), 0.0
    amplitude = max(float(np.sqrt(np.square(source).mean())), 1e-3)
    noise = amplitude * _normal(rng, source.shape)
    log_target = np.log(np.quantile(np.abs(target), _QUANTILES) + _MIN_COEFFICIENT)
    best = (np.inf, 1.0, 0.0)
    for ratio in _NOISE_RATIOS:
        quantiles = np.quantile(np.abs(source + ratio * noise), _QUANTILES)
        gain = min(float(np.exp(np.mean(log_target - np.log(quantiles + 1e-3)))), max_gain)
        error = float(np.square(np.log(gain * quantiles + _MIN_COEFFICIENT) - log_target).sum())
        best = min(best, (error, gain, gain * float(ratio) * amplitude))
    return best[1:]


@dataclass(frozen=True, eq=False)
class _Coefficients:
    """Samples of pyramids: coefficients [n, 3] and lightness [n] of each band, and all [m, 3] of the residuals."""

    bands: list[np.ndarray]
    lights: list[np.ndarray]
    residual: np.ndarray


def _sampled(images: Sequence[Image], blur: float, count: int) -> _Coefficients:
    """Sample the pyramids of blurred images."""
    rng = np.random.default_rng(0)
    bands: list[list[np.ndarray]] = [[] for _ in range(count)]
    lights: list[list[np.ndarray]] = [[] for _ in range(count)]
    residuals = []
    for image in images:
        *levels, residual = _pyramid(_blurred(image, blur), count)
        for index, (band, light) in enumerate(zip(*levels, strict=True)):
            chosen = rng.integers(0, light.size, -(-SAMPLES // len(images)))
            bands[index].append(band.reshape(-1, 3)[chosen])
            lights[index].append(light.ravel()[chosen])
        residuals.append(residual.reshape(-1, 3))
    return _Coefficients(list(map(np.concatenate, bands)), list(map(np.concatenate, lights)), np.concatenate(residuals))


def _blurred(image: Image, deviation: float) -> np.ndarray:
    """Return an image as float32, blurred by a Gaussian kernel."""
    import cv2

    values = image.astype(np.float32)
    return np.asarray(cv2.GaussianBlur(values, (0, 0), deviation)) if deviation else values


def _pyramid(image: np.ndarray, count: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return the bands float32 [h, w, 3] of an image in decorrelated colours, their lightness [h, w], the residual."""
    import cv2

    level = image @ _COLOURS.T
    bands, lights = [], []
    for _ in range(count):
        coarser = cv2.pyrDown(level)
        smooth = _upsampled(coarser, level)
        bands.append(level - smooth)
        lights.append(smooth[..., 0])
        level = coarser
    return bands, lights, level


def _upsampled(coarse: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Upsample a level of the pyramid to the size of `like`."""
    import cv2

    return np.asarray(cv2.pyrUp(coarse.astype(np.float32), dstsize=(like.shape[1], like.shape[0])))


def _band_count(images: Sequence[Image]) -> int:
    """Return the number of bands of the smallest image: the residual needs a few pixels."""
    side = min(min(image.shape[:2]) for image in images)
    return max(min(BANDS, int(np.log2(side)) - 2), 1)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

"""Domain shift between two sets of pictures of different scenes: estimated, and applied to pictures. Needs OpenCV.

A picture is decomposed into a Laplacian pyramid (Burt and Adelson, 1983): bands of detail, each half as fine as the one
before, and a residual. The model of a shift: it blurs the picture, and then, in each band, by lightness and colour,
weakens the coefficients (fog, too little light) and adds independent ones (a sensor's noise, the fog itself). Gain and
noise follow from the distributions of the coefficients: pictures have few large ones and many small ones, noise has
neither.

So a network's layers can be fitted on pairs that no camera records: one scene before and after the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.data.images import Image

BANDS = 5
BINS = 4  # of lightness, with equally many pixels
SAMPLES = 20_000  # coefficients of each band
BLURS = (0.0, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.4, 4.0, 4.8, 5.6, 6.8, 8.0, 9.6, 11.3)
"""Standard deviations of the Gaussian kernels that are tried, in pixels."""
BLUR_PICTURES = 16  # on which they are compared
MAX_MISFIT = 0.5  # of a kernel, as a share of that without one
MIN_MISFIT = 0.1  # without a kernel, below which none is tried
MIN_ADDED = 0.4  # share of the residual's variance that counts as noise; less is other scenery
MAX_SHARPENING = 1.1  # largest gain of a band relative to the next coarser one: a lens never sharpens
_SHARES = np.array([0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.995])
_RATIOS = np.concatenate([[0.0], np.geomspace(0.05, 50, 30)])  # noise by signal, root mean square
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt([[3], [2], [6]]).astype(np.float32)
_MIN_GAIN = 0.03  # of a band, below which it counts as gone
_MIN_COEFFICIENT = 0.05  # grey levels, below which it counts as zero


@dataclass(frozen=True, eq=False)
class DomainShift:
    """The difference of pictures under new conditions.

    blur: standard deviation of a Gaussian kernel, in pixels. Of each band, the finest first: edges [b, BINS - 1],
    limits of the bins of lightness; gains and noise [b, BINS, 3], factors of the coefficients and the standard
    deviation of added noise, in grey levels. Of the residual: before and after [3], its mean; rest_gain and rest_noise
    [3].
    """

    blur: float
    edges: np.ndarray
    gains: np.ndarray
    noise: np.ndarray
    before: np.ndarray
    after: np.ndarray
    rest_gain: np.ndarray
    rest_noise: np.ndarray

    def apply(self, picture: Image, rng: np.random.Generator) -> Image:
        """Return a picture uint8 [h, w, 3] under the new conditions; the same state of `rng` gives the same."""
        bands, lights, rest = _pyramid(_blurred(picture, self.blur), len(self.gains))
        made = self.after + self.rest_gain * (rest - self.before) + self.rest_noise * _normal(rng, rest.shape)
        for band, light, edges, gains, noise in reversed(
            list(zip(bands, lights, self.edges, self.gains, self.noise, strict=True))
        ):
            part = np.searchsorted(edges, light)
            made = _upsampled(made, band) + gains[part] * band + noise[part] * _normal(rng, band.shape)
        found: Image = np.clip(np.rint(made @ _COLOURS), 0, 255).astype(np.uint8)
        return found


def estimate_shift(known: Sequence[Image], new: Sequence[Image]) -> DomainShift:
    """Estimate the shift from `known` pictures to `new` ones; all uint8 [h, w, 3], of about one size."""
    count = _band_count([*known, *new])
    theirs = _sampled([_blurred(each, 0.0) for each in new], count)
    plain = _compared(_sampled([_blurred(each, 0.0) for each in known], count), theirs, 0.0)
    blur = _kernel(known[:BLUR_PICTURES], plain.gains[:, :, 0].mean(axis=1))
    return _compared(_sampled([_blurred(each, blur) for each in known], count), theirs, blur) if blur else plain


def _kernel(pictures: Sequence[Image], gains: np.ndarray) -> float:
    """Return the standard deviation of the Gaussian kernel that has these gains [b] on the bands; 0 where none has."""
    bands = [_sizes(pictures, deviation, len(gains)) for deviation in BLURS]
    wanted = np.log(np.maximum(gains / gains[-1], _MIN_GAIN))
    misfits = [float(np.square(np.log(np.maximum(sizes / bands[0], _MIN_GAIN)) - wanted).sum()) for sizes in bands]
    best = int(np.argmin(misfits))
    return BLURS[best] if misfits[best] < MAX_MISFIT * misfits[0] and misfits[0] > MIN_MISFIT else 0.0


def _sizes(pictures: Sequence[Image], deviation: float, count: int) -> np.ndarray:
    """Return the root mean square of the lightness in each band of blurred pictures."""
    powers = [
        [float(np.square(band[..., 0]).mean()) for band in _pyramid(_blurred(each, deviation), count)[0]]
        for each in pictures
    ]
    found: np.ndarray = np.sqrt(np.mean(powers, axis=0)) + 1e-6
    return found


def _compared(ours: _Sampled, theirs: _Sampled, blur: float) -> DomainShift:
    """Return the shift between two sets of coefficients; blur: already applied to the first."""
    rng = np.random.default_rng(0)
    count = len(ours.bands)
    edges, there = ([np.quantile(each, np.arange(1, BINS) / BINS) for each in one.lights] for one in (ours, theirs))
    gains, noise = np.ones((count, BINS, 3), np.float32), np.zeros((count, BINS, 3), np.float32)
    most = np.full((BINS, 3), np.inf)
    for band in reversed(range(count)):
        parts = np.searchsorted(edges[band], ours.lights[band]), np.searchsorted(there[band], theirs.lights[band])
        for part, colour in np.ndindex(BINS, 3):
            pair = ours.bands[band][parts[0] == part, colour], theirs.bands[band][parts[1] == part, colour]
            # Colours are never weakened less than light is: how colourful scenes are differs too much to tell.
            limit = most[part, colour] if colour == 0 else min(most[part, colour], gains[band, part, 0])
            gains[band, part, colour], noise[band, part, colour] = _fitted(*pair, float(limit), rng)
        most = MAX_SHARPENING * gains[band]
    deviation, other = ours.rest.std(axis=0), theirs.rest.std(axis=0)
    ratio = other / np.maximum(deviation, 1e-3)
    gain = np.minimum(ratio, gains[:, :, 0].mean(axis=1).max())
    share = 1 - np.square(gain / np.maximum(ratio, 1e-6))
    gain, added = np.where(share < MIN_ADDED, ratio, gain), np.where(share < MIN_ADDED, 0, other * np.sqrt(share))
    means = ours.rest.mean(axis=0), theirs.rest.mean(axis=0)
    return DomainShift(blur, np.array(edges), gains, noise, *means, gain, added)


def _fitted(ours: np.ndarray, theirs: np.ndarray, most: float, rng: np.random.Generator) -> tuple[float, float]:
    """Fit the gain, at most `most`, and the noise's deviation that give coefficients [n] the distribution of [m]."""
    if not len(ours) or not len(theirs):
        return min(1.0, most), 0.0
    size = max(float(np.sqrt(np.square(ours).mean())), 1e-3)
    normal = size * _normal(rng, ours.shape)
    wanted = np.log(np.quantile(np.abs(theirs), _SHARES) + _MIN_COEFFICIENT)
    best = (np.inf, 1.0, 0.0)
    for ratio in _RATIOS:
        found = np.quantile(np.abs(ours + ratio * normal), _SHARES)
        gain = min(float(np.exp(np.mean(wanted - np.log(found + 1e-3)))), most)
        error = float(np.square(np.log(gain * found + _MIN_COEFFICIENT) - wanted).sum())
        best = min(best, (error, gain, gain * float(ratio) * size))
    return best[1:]


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Samples of a pyramid: coefficients [n, 3] and lightness [n] of each band, and all [m, 3] of the residual."""

    bands: list[np.ndarray]
    lights: list[np.ndarray]
    rest: np.ndarray


def _sampled(pictures: Sequence[np.ndarray], count: int) -> _Sampled:
    rng = np.random.default_rng(0)
    bands: list[list[np.ndarray]] = [[] for _ in range(count)]
    lights: list[list[np.ndarray]] = [[] for _ in range(count)]
    rests = []
    for picture in pictures:
        found, lit, rest = _pyramid(picture, count)
        for at, (band, light) in enumerate(zip(found, lit, strict=True)):
            chosen = rng.integers(0, light.size, -(-SAMPLES // len(pictures)))
            bands[at].append(band.reshape(-1, 3)[chosen])
            lights[at].append(light.ravel()[chosen])
        rests.append(rest.reshape(-1, 3))
    return _Sampled(list(map(np.concatenate, bands)), list(map(np.concatenate, lights)), np.concatenate(rests))


def _blurred(picture: Image, deviation: float) -> np.ndarray:
    """Return a picture as float32, blurred by a Gaussian kernel."""
    import cv2

    values = picture.astype(np.float32)
    return np.asarray(cv2.GaussianBlur(values, (0, 0), deviation)) if deviation else values


def _pyramid(picture: np.ndarray, count: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return the bands float32 [h, w, 3] of a picture in three decorrelated colours, their lightness, the residual."""
    import cv2

    left = picture @ _COLOURS.T
    bands, lights = [], []
    for _ in range(count):
        coarser = cv2.pyrDown(left)
        smooth = _upsampled(coarser, left)
        bands.append(left - smooth)
        lights.append(smooth[..., 0])
        left = coarser
    return bands, lights, left


def _upsampled(coarse: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return the next finer level without its detail, of the size of `like`."""
    import cv2

    return np.asarray(cv2.pyrUp(coarse.astype(np.float32), dstsize=(like.shape[1], like.shape[0])))


def _band_count(pictures: Sequence[Image]) -> int:
    """Return the number of bands of the smallest picture: the residual must have a few pixels."""
    side = min(min(picture.shape[:2]) for picture in pictures)
    return max(min(BANDS, int(np.log2(side)) - 2), 1)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

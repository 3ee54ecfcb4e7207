"""Corruptions of frames at five severities, as defined by Hendrycks and Dietterich (ICLR 2019).

Noise, blur and fog have the strengths of `gaussian_noise`, `gaussian_blur` and `fog` there. Low light scales the light
down and adds photon noise. The same seed gives the same frame.
"""

from collections.abc import Callable

import cv2
import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR = (1, 2, 3, 4, 6)
_FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
_LIGHT = ((0.6, 120.0), (0.4, 60.0), (0.25, 30.0), (0.15, 15.0), (0.08, 8.0))  # share of light, photons of white
_BLUR_WIDTH = 224.0  # width in pixels of the frames that _BLUR is defined for


def noise(frame: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to every value."""
    return _clipped(_unit(frame) + rng.standard_normal(frame.shape, np.float32) * _NOISE[severity - 1])


def blur(frame: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a Gaussian kernel whose width is proportional to the frame's longer side."""
    sigma = _BLUR[severity - 1] * max(frame.shape[:2]) / _BLUR_WIDTH
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma))


def fog(frame: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add fog: plasma noise at several scales, then normalize the brightness."""
    strength, decay = _FOG[severity - 1]
    values = _unit(frame)
    brightest = float(values.max())
    veiled = values + strength * _cloud(frame.shape[0], frame.shape[1], decay, rng)[..., None]
    return _clipped(veiled * brightest / (brightest + strength))


def low_light(frame: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Reduce the light to a share, with Poisson photon noise."""
    share, photons = _LIGHT[severity - 1]
    linear = _unit(frame) ** 2.2 * share
    counted = rng.poisson(linear * photons / share).astype(np.float32) * share / photons
    return _clipped(counted ** (1 / 2.2))


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    each.__name__.replace("_", " "): each for each in (fog, noise, low_light, blur)
}


def corrupted(frame: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
    """Return a frame uint8 [h, w, 3] under one of CORRUPTIONS at one of SEVERITIES."""
    return CORRUPTIONS[kind](frame, severity, np.random.default_rng((seed, severity)))


def _unit(frame: np.ndarray) -> np.ndarray:
    return frame.astype(np.float32) / 255


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(values * 255, 0, 255).round().astype(np.uint8))


def _cloud(height: int, width: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return a field float32 [height, width] from 0 to 1: octaves of noise, each finer and weaker than the last."""
    found = np.zeros((height, width), np.float32)
    cells, weight = 2, 1.0
    while cells < max(height, width):
        field = rng.random((cells, cells), np.float32)
        found += weight * cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight / decay
    found -= found.min()
    return found / max(float(found.max()), 1e-6)

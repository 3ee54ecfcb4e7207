"""What conditions do to pictures: told from pictures of other scenes, and done to a picture that nobody saw so."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
import pytest

from edgekd.data.domain_shift import DomainShift, estimate_shift

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def scene(seed: int) -> np.ndarray:
    """A picture uint8 [96, 128, 3] of things that hide one another, some of them far away."""
    rng = np.random.default_rng(seed)
    picture = np.full((96, 128, 3), rng.integers(60, 200), np.uint8)
    for size in np.geomspace(48, 2, 120).astype(int):
        x, y = rng.integers(0, 128), rng.integers(0, 96)
        colour = tuple(int(value) for value in np.clip(rng.normal(120, 50) + rng.normal(0, 15, 3), 0, 255))
        cv2.rectangle(picture, (x, y), (x + size, y + size // 2 + 1), colour, -1)
    return picture


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(picture + rng.normal(0, 20, picture.shape), 0, 255).astype(np.uint8)


def veiled(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (picture * 0.4 + 100).astype(np.uint8)


def blurred(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 2.0))


def as_it_is(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture


@cache
def learnt(change: Change) -> DomainShift:
    """The look of other scenes than those that are known."""
    rng = np.random.default_rng(0)
    known, new = [scene(seed) for seed in range(32)], [scene(seed) for seed in range(100, 132)]
    return estimate_shift(known, [change(each, rng) for each in new])


def gains(look: DomainShift) -> np.ndarray:
    return look.gains[:, :, 0].mean(axis=1)


def test_other_scenes_are_no_other_conditions() -> None:
    look = learnt(as_it_is)
    assert look.blur == 0
    np.testing.assert_allclose(gains(look), 1, atol=0.25)
    assert look.noise[0].mean() < 2


def test_noise_is_told_from_detail() -> None:
    look = learnt(noisy)
    # Of white noise with deviation 20, the finest band of a Laplacian pyramid keeps most.
    assert 14 < look.noise[0].mean() < 22
    np.testing.assert_allclose(gains(look)[1:], 1, atol=0.25)


def test_a_veil_weakens_all_detail_alike_and_adds_nothing() -> None:
    look = learnt(veiled)
    np.testing.assert_allclose(gains(look), 0.4, atol=0.1)
    assert look.noise[0].mean() < 2
    assert look.after[0] > look.before[0]


def test_a_blur_is_found_with_its_width() -> None:
    look = learnt(blurred)
    assert 1.4 <= look.blur <= 2.8
    assert look.noise[0].mean() < 2


@pytest.mark.parametrize("change", [noisy, veiled, blurred])
def test_a_twin_is_nearer_to_what_the_conditions_would_show(change: Change) -> None:
    """Of a scene that nothing was learnt from; of noise, which is another each time, the amount."""
    look, picture, rng = learnt(change), scene(1000), np.random.default_rng(1)
    truth, twin = change(picture, rng).astype(float), look.apply(picture, rng).astype(float)
    before = np.abs(cv2.Laplacian(picture.astype(float), cv2.CV_64F)).mean()
    wanted, found = (np.abs(cv2.Laplacian(each, cv2.CV_64F)).mean() for each in (truth, twin))
    assert abs(found - wanted) < 0.4 * abs(before - wanted)
    if change is not noisy:
        assert np.abs(twin - truth).mean() < 0.6 * np.abs(picture - truth).mean()


def test_the_same_pictures_give_the_same_twin() -> None:
    again = estimate_shift([scene(seed) for seed in range(4)], [scene(seed) // 2 for seed in range(4)])
    same = estimate_shift([scene(seed) for seed in range(4)], [scene(seed) // 2 for seed in range(4)])
    first, second = (look.apply(scene(7), np.random.default_rng(3)) for look in (again, same))
    assert first.dtype == np.uint8
    assert first.shape == scene(7).shape
    np.testing.assert_array_equal(first, second)


def test_small_pictures_and_pictures_of_several_sizes() -> None:
    known = [scene(seed)[:20, : 30 + seed] for seed in range(20)]
    look = estimate_shift(known, [veiled(each, np.random.default_rng(0)) for each in known])
    assert look.apply(known[3], np.random.default_rng(0)).shape == known[3].shape

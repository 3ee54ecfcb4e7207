"""Similarity of layers, and maps of attention."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.evaluation.analysis.attention import agreement, as_image, attention
from edgekd.evaluation.analysis.similarity import LinearCka, at_same_positions, pooled, samples


def cka(first: np.ndarray, second: np.ndarray, parts: int = 1) -> float | None:
    found = LinearCka()
    for x, y in zip(np.array_split(first, parts, axis=1), np.array_split(second, parts, axis=1), strict=True):
        found.add(x, y)
    return found.value()


@pytest.fixture
def features() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(2.0, 1.0, (8, 8)) @ rng.normal(size=(8, 600))


def test_it_is_the_normalised_hsic_of_linear_kernels(features: np.ndarray) -> None:
    """Against the definition by Gram matrices of samples, equation 3 of the paper."""
    other = np.tanh(features[:5]) + 0.3
    centring = np.eye(600) - 1 / 600
    k, l = (centring @ (x.T @ x) @ centring for x in (features, other))  # noqa: E741
    expected = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    assert cka(features, other) == pytest.approx(expected, rel=1e-9)


def test_rotation_scale_and_offset_change_nothing(features: np.ndarray) -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    assert cka(features, 3 * turn @ features + 5) == pytest.approx(1.0)


def test_frame_by_frame_is_as_all_at_once(features: np.ndarray) -> None:
    other = features[::-1] ** 2
    assert cka(features, other, parts=7) == pytest.approx(cka(features, other), rel=1e-9)


def test_noise_lowers_it_and_strangers_have_little_in_common(features: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    noises = [rng.normal(scale=scale, size=features.shape) for scale in (0.1, 2.0, 20.0)]
    values = [cka(features, features + noise) for noise in noises]
    assert sorted(values, reverse=True) == values  # type: ignore[type-var]
    stranger = cka(features, rng.normal(size=(4, 600)))
    assert stranger is not None
    assert stranger < 0.1


def test_a_layer_that_says_nothing_has_no_similarity(features: np.ndarray) -> None:
    assert cka(features, np.ones((3, 600))) is None
    assert LinearCka().value() is None


def test_samples_are_channels_by_positions_the_same_each_time() -> None:
    maps = np.arange(2 * 30 * 30, dtype=np.float32).reshape(1, 2, 30, 30)
    assert samples(maps, 10_000, channels_last=False).shape == (2, 900)
    few = samples(maps, 50, channels_last=False)
    assert few.shape == (2, 50)
    assert (few[1] - few[0] == 900).all(), "of every channel the same positions"
    assert (few == samples(maps, 50, channels_last=False)).all()
    rows = np.arange(12.0).reshape(1, 4, 3)
    assert samples(rows, 100, channels_last=True).shape == (3, 4)
    assert samples(rows, 100, channels_last=True)[:, 0].tolist() == [0, 1, 2]


def test_larger_maps_are_averaged_over_areas() -> None:
    maps = np.arange(16.0).reshape(1, 1, 4, 4)
    small = pooled(maps, (2, 2))
    assert small is not None
    assert small[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert pooled(maps, (3, 3)) is None
    pair = at_same_positions(maps[:, :, :2, :2], maps)
    assert pair is not None
    assert pair[1].tolist() == small.tolist()
    assert at_same_positions(np.zeros((1, 2, 5, 8)), np.zeros((1, 2, 5, 3)), channels_last=True) is not None
    assert at_same_positions(np.zeros((1, 5, 8)), np.zeros((1, 4, 8)), channels_last=True) is None


def test_a_map_is_the_mean_of_what_is_strong_either_way() -> None:
    features = np.zeros((1, 2, 2, 2), np.float32)
    features[0, 0, 0, 1], features[0, 1, 1, 0] = -4, 2
    found = attention(features)
    assert found.tolist() == [[0, 2], [1, 0]]
    assert as_image(found).tolist() == [[0, 255], [128, 0]]
    assert as_image(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]
    assert as_image(np.array([[np.nan, 1.0]])).tolist() == [[0, 0]]
    assert agreement(found, 3 * found + 1) == pytest.approx(1.0)
    assert agreement(found, -found) == pytest.approx(-1.0)
    assert agreement(found, np.ones((2, 2))) is None

"""Elimination of channels whose readers are refitted: the losses that direct least squares finds."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekd.compress import channel_elimination  # noqa: E402
from edgekd.compress.channel_elimination import (  # noqa: E402
    RIDGE,
    Reader,
    ReaderStatistics,
    elimination_losses,
)


def random_layer(inputs: int, outputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A covariance and weights [outputs, inputs], float64."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(3 * inputs, inputs, generator=generator, dtype=torch.float64)
    mixed = samples @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    return mixed.T @ mixed / len(mixed), torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def reader(covariance: torch.Tensor, weights: torch.Tensor) -> Reader:
    return Reader(torch.linalg.inv(covariance), weights.T @ weights)


def refitted_loss(covariance: torch.Tensor, weights: torch.Tensor, gone: list[int]) -> float:
    """The squared error of the outputs without some inputs, with the best weights for the others."""
    kept = [each for each in range(len(covariance)) if each not in gone]
    cross = covariance[gone][:, kept]
    left = covariance[gone][:, gone] - cross @ torch.linalg.solve(covariance[kept][:, kept], cross.T)
    return float((weights[:, gone] @ left @ weights[:, gone].T).trace())


def test_losses_are_those_of_least_squares_channel_by_channel() -> None:
    """Two readers, the second of which reads each channel by two of its inputs."""
    first, second = random_layer(6, 4, seed=0), random_layer(12, 5, seed=1)
    indices = [[[channel] for channel in range(6)], [[channel, channel + 6] for channel in range(6)]]
    found = elimination_losses(
        [(reader(*layer), torch.tensor(index)) for layer, index in zip((first, second), indices, strict=True)], 6
    )

    def loss(gone: list[int]) -> float:
        return sum(
            refitted_loss(*layer, [each for channel in gone for each in index[channel]])
            for layer, index in zip((first, second), indices, strict=True)
        )

    gone: list[int] = []
    wanted, last = np.zeros(6), 0.0
    while len(gone) < 5:  # the last one leaves nothing to refit
        growths = {
            channel: loss([*gone, channel]) - (loss(gone) if gone else 0.0) for channel in set(range(6)) - {*gone}
        }
        channel = min(growths, key=lambda each: growths[each])
        last = wanted[channel] = max(last, growths[channel])
        gone.append(channel)
    assert np.allclose(found[gone], wanted[gone], rtol=1e-6)
    assert found.argmax() not in gone


def test_a_channel_that_another_one_replaces_costs_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    samples, weights = torch.randn(4000, 5, generator=generator), torch.ones(3, 5)
    copied = torch.tensor([0, 1, 2, 3, 4, 0])
    statistics = ReaderStatistics(6, 3, 1)
    statistics.add(samples[:, copied, None], torch.ones(3, 10))
    losses = elimination_losses([(statistics.reader(weights[:, copied, None]), torch.arange(6)[:, None])], 6)
    assert losses.argmin() in (0, 5)
    assert losses.min() < 0.05 * np.sort(losses)[1]


def test_inputs_count_by_the_gradients_of_the_outputs() -> None:
    """Frames weigh by their squared gradients, and outputs by theirs; means, which a bias gives, do not count."""
    generator = torch.Generator().manual_seed(3)
    frames = [3 + scale * torch.randn(500, 4, 1, generator=generator) for scale in (1.0, 5.0)]
    gradients = [torch.tensor([[1.0, 2.0], [0.5, 0.5]]), torch.tensor([[0.1, 0.2], [0.0, 0.3]])]
    statistics = ReaderStatistics(4, 2, 1)
    for read, gradient in zip(frames, gradients, strict=True):
        statistics.add(read, gradient)
    weights = torch.randn(2, 4, generator=generator)
    found = statistics.reader(weights[..., None])

    each = np.concatenate([np.full(500, float(gradient.sum()) / 500) for gradient in gradients])
    covariance = np.cov(torch.cat(frames)[..., 0].numpy().T.astype(float), aweights=each, ddof=0)
    ridge = RIDGE * np.trace(covariance) / 4 * np.eye(4)
    assert np.allclose(np.linalg.inv(found.inverse.numpy()), covariance + ridge, rtol=1e-3, atol=1e-3)
    by_output = sum(gradient.sum(1) for gradient in gradients).double()
    assert torch.allclose(found.gram, (weights.double().T * by_output) @ weights.double(), rtol=1e-4)


def test_a_convolution_is_a_layer_that_reads_patches() -> None:
    """Three channels by two places: exact, the same as six inputs of which each channel has two."""
    generator = torch.Generator().manual_seed(4)
    read, gradients = torch.randn(500, 3, 2, generator=generator), torch.rand(4, 7, generator=generator)
    read[:, 1] = read[:, 0] + 0.1 * read[:, 1]
    weights = torch.randn(4, 3, 2, generator=generator)
    patches, flat = ReaderStatistics(3, 4, 2), ReaderStatistics(6, 4, 1)
    patches.add(read, gradients)
    flat.add(read.flatten(1)[..., None], gradients)
    found = elimination_losses([(patches.reader(weights), torch.arange(3)[:, None])], 3)
    wanted = elimination_losses([(flat.reader(weights.flatten(1)[..., None]), torch.arange(6).reshape(3, 2))], 3)
    assert np.allclose(found, wanted)
    assert found[:2].min() < 0.1 * found[2]


def test_of_too_many_inputs_the_places_of_the_kernel_have_a_covariance_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Places of a kernel that vary more count more, whatever the channel."""
    monkeypatch.setattr(channel_elimination, "MAX_INPUTS", 5)
    generator = torch.Generator().manual_seed(4)
    read = torch.randn(2000, 3, 2, generator=generator) * torch.tensor([1.0, 3.0])
    statistics = ReaderStatistics(3, 1, 2)
    statistics.add(read, torch.ones(1, 7))
    one, other = (statistics.reader(torch.eye(2)[place].expand(1, 3, 2)).gram for place in (0, 1))
    assert one.shape == (3, 3)
    assert torch.allclose(other / one, torch.tensor(9.0, dtype=torch.float64), rtol=0.1)


def test_without_readers_channels_cost_nothing() -> None:
    assert elimination_losses([], 3).tolist() == [0.0, 0.0, 0.0]

"""Statistics of the layers that read channels: of all their calls, where the loss depends on their outputs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekd.compress.channel_elimination import Reader  # noqa: E402
from edgekd.detectors.channel_readers import observed_readers  # noqa: E402


def pointwise() -> torch.nn.Conv2d:
    layer = torch.nn.Conv2d(2, 3, 1)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return layer


def observed(layer: torch.nn.Conv2d, *calls: tuple[torch.Tensor, torch.Tensor]) -> Reader:
    """The layer, run on frames [b, 2, h, w] whose outputs have gradients [b, 3, h, w]."""
    network = torch.nn.Sequential(layer)
    with observed_readers(network, seed=0) as readers:
        sum((layer(frames) * gradients).sum() for frames, gradients in calls).backward()
        assert not readers
    return readers["0"]


def test_convolutions_with_gradients_are_observed_and_depthwise_ones_are_not() -> None:
    first, depthwise, last = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.Conv2d(4, 2, 3)
    network = torch.nn.Sequential(first.requires_grad_(False), depthwise, torch.nn.ReLU(inplace=True), last)
    with observed_readers(network, seed=0) as readers:
        network(torch.rand(2, 3, 8, 8)).square().sum().backward()
    assert list(readers) == ["3"]
    assert readers["3"].gram.shape == readers["3"].inverse.shape == (4 * 9, 4 * 9)
    assert not any(each._forward_hooks for each in network)


def test_outputs_count_by_their_gradients_in_all_calls() -> None:
    layer, generator = pointwise(), torch.Generator().manual_seed(1)
    calls = [
        (torch.randn(2, 2, *size, generator=generator), torch.randn(2, 3, *size, generator=generator))
        for size in ((4, 4), (3, 5))
    ]
    power = sum(gradients.square().sum((0, 2, 3)) for _, gradients in calls)
    weights = layer.weight.detach()[:, :, 0, 0]
    assert torch.allclose(observed(layer, *calls).gram.float(), (weights.T * power) @ weights, rtol=1e-4)


def test_inputs_count_where_the_loss_depends_on_the_outputs() -> None:
    """The first channel varies on the left half of the frame alone, the second one on the right half alone."""
    frames = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    frames[:, 0, :, 8:] = frames[:, 1, :, :8] = 0
    gradients = torch.zeros(1, 3, 16, 16)
    gradients[:, :, :, :8] = 1
    variances = 1 / observed(pointwise(), (frames, gradients)).inverse.diagonal()
    assert variances[0] > 50 * variances[1]


def test_weights_are_those_of_the_float_network() -> None:
    floating, rounded = pointwise(), pointwise()
    rounded.weight.data.zero_()
    with observed_readers(torch.nn.Sequential(rounded), 0, torch.nn.Sequential(floating)) as readers:
        rounded(torch.rand(1, 2, 4, 4)).sum().backward()
    assert readers["0"].gram.trace() > 0

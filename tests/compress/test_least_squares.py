"""Least squares of layers' weights: patches are what layers read, and the weights are those with the least error."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from edgekd.compress.least_squares import LeastSquares, Window, patches  # noqa: E402


def all_places(height: int, width: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(height * width).expand(frames, -1)
    return places // width, places % width


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(PAIRS, PAIRS, PAIRS, st.tuples(st.integers(0, 2), st.integers(0, 2)), st.booleans())
def test_patches_are_what_a_convolution_reads(
    kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int], back: bool
) -> None:
    torch.manual_seed(0)
    geometry: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    layer = (nn.ConvTranspose2d if back else nn.Conv2d)(2, 3, bias=False, **geometry)
    maps = torch.randn(2, 2, 9, 8)
    with torch.no_grad():
        wanted = layer(maps)
    read = patches(maps, *all_places(*wanted.shape[2:], 2), Window(kernel, stride, padding, dilation, back))
    weight = layer.weight.detach().transpose(0, 1) if back else layer.weight.detach()
    found = torch.einsum("bnck,ock->bon", read, weight.flatten(2)).unflatten(2, wanted.shape[2:])
    assert torch.allclose(found, wanted, atol=1e-5)


def fitted(read: torch.Tensor, wanted: torch.Tensor, start: torch.Tensor, ridge: float, **how: bool) -> Any:
    equations = LeastSquares(len(start), start.shape[2], start.shape[1], **how)
    for part in torch.arange(read.shape[1]).split(50):
        equations.add(read[:, part], wanted[:, part])
    return equations.solve(start, ridge)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6), st.integers(1, 4))
def test_weights_and_offset_are_found_where_they_explain_everything(
    seed: int, groups: int, inputs: int, outputs: int
) -> None:
    """Also those of inputs that are far from zero, and whatever the weights before were."""
    torch.manual_seed(seed)
    read = torch.randn(groups, 200, inputs) * torch.rand(inputs).add(0.5) + 20 * torch.randn(inputs)
    weights, offset = torch.randn(groups, outputs, inputs), torch.randn(groups, outputs)
    wanted = read @ weights.transpose(1, 2) + offset[:, None]
    found = fitted(read, wanted, torch.randn(groups, outputs, inputs), 1e-9)
    assert torch.allclose(found[0], weights, atol=1e-3)
    assert torch.allclose(read @ found[0].transpose(1, 2) + found[1][:, None], wanted, atol=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 1.0))
def test_no_other_weights_have_a_smaller_penalized_error(seed: int, ridge: float) -> None:
    torch.manual_seed(seed)
    read, wanted, start = torch.randn(1, 100, 4) + 3, torch.randn(1, 100, 2), torch.randn(1, 2, 4)
    centred_read, centred_wanted = read - read.mean(1, keepdim=True), wanted - wanted.mean(1, keepdim=True)

    def loss(weights: torch.Tensor) -> float:
        error = (centred_read @ weights.transpose(1, 2) - centred_wanted).square().sum(2).mean()
        return float(error + ridge * centred_read.square().mean() * (weights - start).square().sum())

    best = fitted(read, wanted, start, ridge)[0]
    assert all(loss(best) <= loss(best + 0.05 * torch.randn_like(best)) for _ in range(5))


def test_the_ridge_leads_from_the_best_weights_to_the_old_ones() -> None:
    torch.manual_seed(0)
    read, wanted, start = torch.randn(1, 100, 3), torch.randn(1, 100, 2), torch.randn(1, 2, 3)
    distances = [float((fitted(read, wanted, start, ridge)[0] - start).norm()) for ridge in (1e-6, 0.1, 1, 10, 1e6)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4 < distances[0]


def test_inputs_that_do_not_vary_keep_their_weights() -> None:
    torch.manual_seed(0)
    read = torch.cat([torch.randn(1, 100, 1), torch.full((1, 100, 1), 2.0)], 2)
    start = torch.tensor([[[1.0, 5.0]]])
    weights, offset = fitted(read, 3 * read[..., :1] + 1, start, 1e-6)
    assert weights.flatten().tolist() == pytest.approx([3, 5], abs=1e-3)
    assert offset.item() == pytest.approx(1 - 2 * 5, abs=1e-3)
    nothing = fitted(torch.zeros(1, 100, 2), torch.randn(1, 100, 1), start, 0.01)
    assert torch.equal(nothing[0], start)


def test_without_an_offset_the_weights_give_the_means_too() -> None:
    torch.manual_seed(0)
    read = torch.randn(1, 1000, 1) * 0.01 + 1
    weights, offset = fitted(read, torch.full((1, 1000, 1), 7.0), torch.zeros(1, 1, 1), 1e-9, centred=False)
    assert weights.item() == pytest.approx(7, rel=1e-2)
    assert offset.item() == 0

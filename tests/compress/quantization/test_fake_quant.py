"""What training computes with is what the formats write, and gradients pass as if nothing had been rounded."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.formats import coded_int8, fp4x
from edgekd.core.formats.int8 import dequantize_channels, quantize_channels

torch = pytest.importorskip("torch")

from edgekd.compress.quantization.fake_quant import (  # noqa: E402
    CODES_PER_UNIT,
    ActivationRange,
    FakeQuantConv2d,
    coded_codes,
    fp4x_codes,
    int8_codes,
    latent_weights,
)

SHAPES = [(3, 5, 3, 3), (4, 16, 1, 1), (8, 1, 3, 3), (2, 7, 1, 1), (1, 40, 5, 5)]


def weights_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Weights whose channels differ in size by orders of magnitude; one is all zero."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(4, shape) * 10.0 ** rng.uniform(-4, 1, (shape[0], 1, 1, 1))
    weights[rng.integers(shape[0])] *= shape[0] == 1
    return weights.astype(np.float32)


def in_codes(weights: np.ndarray, scales: np.ndarray) -> Any:
    return torch.from_numpy(weights / scales[:, None, None, None])


def layer(form: str, learned: bool = False, scale: float = 0.05) -> FakeQuantConv2d:
    like = torch.nn.Conv2d(6, 4, 3, stride=2, padding=1)
    with torch.no_grad():
        quantize = quantize_channels if form == "int8" else fp4x.quantize
        codes, scales = (torch.from_numpy(part) for part in quantize(like.weight.numpy()))
    entry = ActivationRange(scale, learned)
    return FakeQuantConv2d(like, codes.float(), scales, form, entry, learned)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_codes_are_those_of_the_format(shape: tuple[int, ...]) -> None:
    weights = weights_of(shape)
    codes, scales = quantize_channels(weights)
    assert np.array_equal(int8_codes(in_codes(weights, scales)).numpy(), codes)


@pytest.mark.parametrize("shape", [*SHAPES, (64, 64, 3, 3)])
def test_fp4x_codes_are_those_of_the_format(shape: tuple[int, ...]) -> None:
    weights = weights_of(shape)
    codes, scales = fp4x.quantize(weights)
    found = fp4x_codes(in_codes(weights, scales)).numpy()
    # Two multipliers may be equally good but for the order in which 16 squares are summed.
    assert (found != codes).mean() < 1e-3
    wanted = weights / scales[:, None, None, None]
    assert np.isclose(((found - wanted) ** 2).sum(), ((codes - wanted) ** 2).sum(), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=40),
    st.sampled_from([1e-3, 1.0, 37.0]),
)
def test_fp4x_codes_can_always_be_packed(values: list[float], size: float) -> None:
    codes = fp4x_codes(torch.tensor([values], dtype=torch.float32) * size)
    assert fp4x.representable(codes.numpy().astype(np.int8))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_codes_that_are_fp4x_stay_what_they_are(seed: int, depth: int) -> None:
    codes, _ = fp4x.quantize(np.random.default_rng(seed).normal(size=(3, depth)).astype(np.float32))
    assert np.array_equal(fp4x_codes(torch.from_numpy(codes).float()).numpy(), codes)


STEPS = torch.tensor([1.0, 2.0, 3.0, 5.0, 13.0, 127.0])[:, None, None]


def test_coded_codes_are_the_nearest_multiples_of_their_steps_and_can_be_stored() -> None:
    latent = 80 * torch.randn(40, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    codes = coded_codes(latent, STEPS)
    assert coded_int8.encode(codes.numpy().astype(np.int8)) is not None
    assert codes.abs().max() <= 127
    inside = (codes - latent).abs()[latent.abs() < 60]
    assert (inside <= (STEPS / 2).expand_as(latent)[latent.abs() < 60]).all()
    assert torch.equal(coded_codes(codes, STEPS), codes)


def test_a_coded_layer_trains_in_its_own_steps() -> None:
    like = torch.nn.Conv2d(6, 16, 3)
    scales = torch.full((16,), 0.01)
    codes = coded_codes(like.weight.detach() / 0.01, STEPS)
    latent = latent_weights(like.weight.detach(), codes, scales, "coded", STEPS)
    assert torch.equal(latent, like.weight / 0.01)
    quantized = FakeQuantConv2d(like, latent, scales, "coded", None, learned=False, steps=STEPS)
    assert torch.equal(quantized.codes(), codes)
    quantized(torch.randn(1, 6, 8, 8)).sum().backward()
    assert quantized.weight.grad.abs().min() > 0


@pytest.mark.parametrize("form", ["int8", "fp4x"])
def test_a_layer_computes_with_the_weights_that_ship(form: str) -> None:
    quantized = layer(form)
    codes, scales = quantized.codes().detach().numpy().astype(np.int8), quantized.scales.numpy()
    x = torch.randn(2, 6, 8, 8)
    steps = np.clip(np.rint(x.numpy() / np.float32(0.05)), -128, 127).astype(np.float32) * np.float32(0.05)
    weights = torch.from_numpy(dequantize_channels(codes, scales))
    expected = torch.nn.functional.conv2d(torch.from_numpy(steps), weights, quantized.bias, 2, 1)
    assert torch.allclose(quantized(x), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["int8", "fp4x"])
def test_rounding_is_invisible_to_the_gradient_of_the_weights(form: str) -> None:
    quantized = layer(form)
    x = torch.randn(2, 6, 8, 8)
    quantized(x).square().sum().backward()
    weights = (quantized.codes() * quantized.scales[:, None, None, None]).detach().requires_grad_()
    torch.nn.functional.conv2d(quantized.entry(x), weights, quantized.bias, 2, 1).square().sum().backward()
    wanted = weights.grad * quantized.scales[:, None, None, None] * CODES_PER_UNIT
    assert torch.allclose(quantized.weight.grad, wanted, rtol=1e-4)


def test_an_activation_outside_its_range_gets_no_gradient() -> None:
    x = torch.tensor([-100.0, -1.0, 1.0, 100.0], requires_grad=True)
    ActivationRange(0.05, learned=False)(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_learned_scales_start_where_the_graph_has_them_and_follow_the_loss() -> None:
    fixed, learned = layer("fp4x"), layer("fp4x", learned=True)
    learned.load_state_dict(fixed.state_dict(), strict=False)
    x = 10 * torch.randn(2, 6, 8, 8)  # clipped to 6.35
    assert torch.equal(learned(x), fixed(x))
    learned.entry(x).sub(x).square().sum().backward()
    torch.optim.SGD(learned.parameters(), 1e-4).step()
    assert learned.entry.scale > 0.05
    learned(x).abs().sum().backward()
    assert learned.growth.grad.abs().min() > 0


def test_a_copy_shares_ranges_within_itself_and_with_nobody_else() -> None:
    first = layer("int8", learned=True)
    pair = torch.nn.Sequential(first, layer("int8"))
    pair[1].entry = first.entry
    copied = deepcopy(pair)
    assert copied[0].entry is copied[1].entry
    assert copied[0].entry is not first.entry
    assert torch.equal(copied[0](torch.ones(1, 6, 4, 4)), first(torch.ones(1, 6, 4, 4)))
    assert sum(name.endswith("entry.growth") for name, _ in copied.named_parameters()) == 1


@pytest.mark.parametrize("form", ["int8", "fp4x"])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_starts_from_codes_that_are_not_the_nearest(form: str, shape: tuple[int, ...]) -> None:
    weights = weights_of(shape)
    moved = weights * (1 + 0.1 * np.random.default_rng(1).normal(size=shape).astype(np.float32))
    codes, scales = quantize_channels(moved) if form == "int8" else fp4x.quantize(moved)
    latent = latent_weights(torch.from_numpy(weights), torch.from_numpy(codes).float(), torch.from_numpy(scales), form)
    rounded = int8_codes(latent) if form == "int8" else fp4x_codes(latent)
    assert np.array_equal(rounded.numpy(), codes)


def test_training_starts_from_the_float_weights_where_they_round_to_the_codes() -> None:
    weights = weights_of((16, 8, 3, 3))
    codes, scales = fp4x.quantize(weights)
    latent = latent_weights(
        torch.from_numpy(weights), torch.from_numpy(codes).float(), torch.from_numpy(scales), "fp4x"
    )
    assert (latent == in_codes(weights, scales)).float().mean() > 0.99

"""Fake quantization for training: layers that compute with rounded numbers and straight-through gradients.

Weights are trained in units of their channel's range: a weight is `scale * round(latent)`, and the trained parameter is
`latent / CODES_PER_UNIT`. So one learning rate suits all channels, whose ranges folded batch norms make unequal, as
well as layers that stay float, and the gradient of a learned scale needs no special scaling. Straight-through
gradients: Y. Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013; learned steps of
activations: S. Esser et al., "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgekd.core.formats import coded_int8, fp4x, int8

_EXPONENT = 0x7F800000  # bits of a float32
_ROUNDS_TO_INTEGERS = 1.5 * 2**23  # adding and subtracting it leaves no fraction in a float32
CODES_PER_UNIT = 128.0
"""Codes per unit of the trained parameter, about a channel's range; a power of two, so that scaling is exact."""
_CHUNK = 2000  # blocks at a time: they fit into a core's cache, and are too few for PyTorch to start threads


def int8_codes(latent: torch.Tensor) -> torch.Tensor:
    """Return the INT8 codes nearest to latent weights, both float32 of any shape, as `formats.int8` does."""
    return latent.round().clamp(-int8.LEVELS, int8.LEVELS)


def coded_codes(latent: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return the codes of coded INT8 nearest to latent weights [O, I, kh, kw], with steps [I, 1, 1]; all float32."""
    largest = (int8.LEVELS / steps).floor().clamp(max=coded_int8.MAX_SYMBOL)
    return torch.minimum(torch.maximum((latent / steps).round(), -largest), largest) * steps


def fp4x_codes(latent: torch.Tensor) -> torch.Tensor:
    """Return the fp4x codes nearest to latent weights, both float32 [O, ...], as `formats.fp4x` does.

    All multipliers are tried for each block.
    """
    rows = latent.reshape(len(latent), -1)
    padded = functional.pad(rows, (0, -rows.shape[1] % fp4x.BLOCK))
    blocks = padded.reshape(-1, fp4x.BLOCK).t().contiguous()
    magnitudes = blocks.abs()
    multipliers = _best_multipliers(magnitudes)
    units = magnitudes / multipliers
    steps = 1 + (units >= 4).float() + 2 * (units >= 8).float()
    codes = (units / steps + 0.5).floor().mul(steps).clamp(max=_TOP).mul(multipliers).copysign(blocks)
    return codes.t().reshape(padded.shape)[:, : rows.shape[1]].reshape(latent.shape)


_TOP = 2 * max(fp4x.MAGNITUDES)


def _best_multipliers(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return the multiplier with the least squared error of each block of magnitudes, in codes: [16, n] -> [n]."""
    best = torch.ones_like(magnitudes[0])
    chunk = _CHUNK if magnitudes.device.type == "cpu" else max(1, len(best))
    for block, found in zip(magnitudes.split(chunk, dim=1), best.split(chunk), strict=True):
        block = block.contiguous()
        units, steps, error = (torch.empty_like(block) for _ in range(3))
        least = torch.full_like(found, torch.inf)
        for multiplier in range(1, fp4x.MULTIPLIERS + 1):
            # 2 * E2M1 is 0, 1, 2, 3, 4, 6, 8, 12: the step depends on the exponent alone.
            torch.div(block, multiplier, out=units)
            torch.bitwise_and(units.view(torch.int32), _EXPONENT, out=steps.view(torch.int32))
            steps.clamp_(2, 8).mul_(_ROUNDS_TO_INTEGERS / 2)
            torch.add(units, steps, out=error).sub_(steps).clamp_(max=_TOP).mul_(multiplier).sub_(block)
            total = error.square_().sum(dim=0)
            found.masked_fill_(total < least, multiplier)
            torch.minimum(least, total, out=least)
    return best


_CODES = {"int8": int8_codes, "fp4x": fp4x_codes}


def codes_of(latent: torch.Tensor, form: str, steps: torch.Tensor | None) -> torch.Tensor:
    """Return the codes of latent weights float32 [O, I, kh, kw] in a form; steps [I, 1, 1]: only for `coded`."""
    return _CODES[form](latent) if steps is None else coded_codes(latent, steps)


class _StraightThrough(torch.autograd.Function):  # type: ignore[misc]
    """Rounding in the forward pass, identity in the backward pass."""

    @staticmethod
    def forward(context: Any, latent: torch.Tensor, form: str, steps: torch.Tensor | None) -> torch.Tensor:
        return codes_of(latent, form, steps)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient, None, None


class ActivationRange(nn.Module):  # type: ignore[misc]
    """The INT8 quantizer of an activation, as QuantizeLinear and DequantizeLinear compute it; codes -128..127.

    Layers whose inputs share a scale share an instance, so that a learned scale stays shared.
    """

    def __init__(self, scale: float, learned: bool) -> None:
        super().__init__()
        self.register_buffer("start", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(0, dtype=torch.int32))
        self.register_parameter("growth", nn.Parameter(torch.zeros(())) if learned else None)

    @property
    def scale(self) -> torch.Tensor:
        """The INT8 scale, float32 []."""
        return _grown(self.start, self.growth)

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        activation = activation.float()  # the kernels do not support bfloat16
        if self.growth is None:
            return torch.fake_quantize_per_tensor_affine(activation, self.start, self.zero, -128, 127)
        scale = self.scale.reshape(1)
        return torch._fake_quantize_learnable_per_tensor_affine(
            activation, scale, torch.zeros_like(scale), -128, 127, 1.0
        )


class FakeQuantConv2d(nn.Module):  # type: ignore[misc]
    """A convolution whose weights, and with `entry` also its input, are rounded as in the engine.

    like: the float convolution, for geometry and bias; latent float32 [O, I, kh, kw]: weights in codes, trained as
    `weight` in units of CODES_PER_UNIT; scales float32 [O]; form: `int8`, `coded` or `fp4x`; entry: quantizer of the
    input, None for a float input; learned: whether the scales are trained, too; steps float32 [I, 1, 1]: steps of the
    inputs in `coded`, None in other forms.
    """

    def __init__(
        self,
        like: nn.Conv2d,
        latent: torch.Tensor,
        scales: torch.Tensor,
        form: str,
        entry: ActivationRange | None,
        learned: bool,
        steps: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("steps", steps)
        self.entry = entry
        self.weight = nn.Parameter(latent / CODES_PER_UNIT)
        self.register_parameter("bias", like.bias)
        self.register_buffer("start", scales)
        self.register_parameter("growth", nn.Parameter(torch.zeros_like(scales)) if learned else None)
        self._geometry = (like.stride, like.padding, like.dilation, like.groups)

    @property
    def scales(self) -> torch.Tensor:
        """The INT8 scale of each output channel, float32 [O]."""
        return _grown(self.start, self.growth)

    def codes(self) -> torch.Tensor:
        """The INT8 codes that ship, as float32 [O, I, kh, kw]."""
        codes: torch.Tensor = _StraightThrough.apply(self.weight * CODES_PER_UNIT, self.form, self.steps)
        return codes

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        if self.entry is not None:
            activation = self.entry(activation)
        weights = self.codes() * self.scales[:, None, None, None]
        return functional.conv2d(activation, weights, self.bias, *self._geometry)


def latent_weights(
    weights: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, form: str, steps: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the initial latent weights: float weights in units of codes if they round to the given codes, else codes.

    weights, codes float32 [O, ...], scales float32 [O], steps as for `codes_of`. The codes of a graph need not be the
    nearest ones: they may compensate each other's errors. Training starts with these codes. Float weights are preferred
    because a latent weight at the centre of its rounding cell is half a step away from every other code.
    """
    exact = weights / scales.reshape(-1, *[1] * (weights.ndim - 1))
    latent = torch.where(codes_of(exact, form, steps) == codes, exact, codes)
    if form == "fp4x":
        # A block of both kinds may round with another multiplier; a block of codes only never does.
        whole = _blocks_where(fp4x_codes(latent) == codes)
        latent = torch.where(whole, latent, codes)
    return latent


def _blocks_where(same: torch.Tensor) -> torch.Tensor:
    """Return for each element whether all of its fp4x block is true: bool [O, ...]."""
    rows = same.reshape(len(same), -1)
    padded = functional.pad(rows, (0, -rows.shape[1] % fp4x.BLOCK), value=True)
    whole = padded.reshape(len(rows), -1, fp4x.BLOCK).all(dim=2).repeat_interleave(fp4x.BLOCK, dim=1)
    return whole[:, : rows.shape[1]].reshape(same.shape)


def _grown(start: torch.Tensor, growth: torch.Tensor | None) -> torch.Tensor:
    """Return a fixed scale, or start * exp(growth): positive, and trained by relative changes."""
    return start if growth is None else start * growth.exp()

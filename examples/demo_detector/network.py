"""The demo's detector: a small one-stage, anchor-free convolutional network.

A CSP backbone (Wang et al. 2020, arXiv:1911.11929) with SiLU, a path aggregation neck (Liu et al. 2018,
arXiv:1803.01534) and decoupled heads on strides 8, 16 and 32. Each side of a box is the mean of a learnt distribution
over distances from the cell (Li et al. 2020, arXiv:2006.04388).
"""

# The type checker follows no import of torch, so its classes and decorators have no type here.
# mypy: disable-error-code="misc"

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)
BINS = 16
"""Distances 0 to 15 strides from a cell's middle to a side of the box."""


class Unit(nn.Sequential):
    """Convolution, batch normalization, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03), nn.SiLU(inplace=True))


class Residual(nn.Module):
    """Two 3x3 units and a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Unit(channels, channels, 3), Unit(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Stage(nn.Module):
    """Cross-stage partial block: half of the channels bypasses the residual units, the other goes through them."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        half = outputs // 2
        self.aside, self.enter = Unit(inputs, half), Unit(inputs, half)
        self.body = nn.ModuleList(Residual(half) for _ in range(depth))
        self.leave = Unit(half * (2 + depth), outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.aside(x), self.enter(x)]
        for block in self.body:
            parts.append(block(parts[-1]))
        return cast(Tensor, self.leave(torch.cat(parts, 1)))


class Pyramid(nn.Module):
    """Pooling over growing windows, so that the deepest level's receptive field covers most of the frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = Unit(channels, channels // 2), Unit(channels * 2, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return cast(Tensor, self.leave(torch.cat(parts, 1)))


class Head(nn.Module):
    """Separate branches for the four sides and for the classes, at one stride."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.box = nn.Sequential(Unit(channels, width, 3), Unit(width, width, 3), nn.Conv2d(width, 4 * BINS, 1))
        self.label = nn.Sequential(
            Unit(channels, channels, 3, groups=channels), Unit(channels, width),
            Unit(width, width, 3, groups=width), Unit(width, width), nn.Conv2d(width, classes, 1),
        )  # fmt: skip
        nn.init.constant_(cast(Tensor, self.box[-1].bias), 1.0)
        nn.init.constant_(cast(Tensor, self.label[-1].bias), -5.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.box(x).flatten(2), self.label(x).flatten(2)


class Detector(nn.Module):
    """float32 [b, 3, h, w] RGB in 0..1, sides divisible by 32 -> see `forward` and `Exported`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(Unit(3, 16, 3, 2), Unit(16, 32, 3, 2), Stage(32, 32, 1), Unit(32, 64, 3, 2))
        self.level8 = Stage(64, 64, 2)
        self.level16 = nn.Sequential(Unit(64, 96, 3, 2), Stage(96, 96, 1))
        self.level32 = nn.Sequential(Unit(96, 128, 3, 2), Stage(128, 128, 1), Pyramid(128))
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")
        self.up16, self.up8 = Stage(128 + 96, 80, 1), Stage(80 + 64, 64, 1)
        self.shrink16, self.shrink32 = Unit(64, 64, 3, 2), Unit(80, 80, 3, 2)
        self.down16, self.down32 = Stage(64 + 80, 80, 1), Stage(80 + 128, 96, 1)
        self.heads = nn.ModuleList(Head(channels, 40, classes) for channels in (64, 80, 96))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of sides [b, 4 * BINS, cells] and of classes [b, classes, cells]; the cells of stride 8 come first."""
        c8 = self.level8(self.stem(x))
        c16 = self.level16(c8)
        c32 = self.level32(c16)
        u16 = self.up16(torch.cat([self.grow(c32), c16], 1))
        p8 = self.up8(torch.cat([self.grow(u16), c8], 1))
        p16 = self.down16(torch.cat([self.shrink16(p8), u16], 1))
        p32 = self.down32(torch.cat([self.shrink32(p16), c32], 1))
        outputs = [head(level) for head, level in zip(self.heads, (p8, p16, p32), strict=True)]
        return torch.cat([box for box, _ in outputs], 2), torch.cat([label for _, label in outputs], 2)


def cells(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Middles [2, cells] (x, y in pixels) and strides [cells] of all cells, in the order of `Detector.forward`."""
    middles, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        middles.append(torch.stack([x.flatten(), y.flatten()]).float().add(0.5) * stride)
        strides.append(torch.full((x.numel(),), float(stride)))
    return torch.cat(middles, 1), torch.cat(strides)


def distances(sides: Tensor) -> Tensor:
    """Logits [b, 4 * BINS, cells] -> mean distance to left, top, right and bottom [b, 4, cells], in strides."""
    batch, _, count = sides.shape
    share = sides.view(batch, 4, BINS, count).softmax(2)
    steps = torch.arange(BINS, device=sides.device, dtype=share.dtype).view(1, 1, BINS, 1)
    return (share * steps).sum(2)


class Exported(nn.Module):
    """The detector with its boxes decoded: float32 [1, 4 + classes, cells]: cx, cy, w, h in pixels, probabilities."""

    middles: Tensor
    strides: Tensor

    def __init__(self, detector: Detector, height: int, width: int) -> None:
        super().__init__()
        self.detector = detector
        middles, strides = cells(height, width)
        self.register_buffer("middles", middles[None])
        self.register_buffer("strides", strides[None, None])

    def forward(self, images: Tensor) -> Tensor:
        sides, labels = self.detector(images)
        reach = distances(sides) * self.strides
        before, after = reach[:, :2], reach[:, 2:]
        centre = self.middles + (after - before) / 2
        return torch.cat([centre, before + after, labels.sigmoid()], 1)

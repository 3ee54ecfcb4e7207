"""A small vision transformer exported by PyTorch, with trained-like weights, and pictures that it distinguishes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

SIDE, WIDTH, CLASSES = 32, 64, 10
LAYERS = 10
"""Number of layers with weights: the patch embedding, four products in each of two blocks, and the head."""


def write_transformer(path: Path, norm_first: bool = True) -> Path:
    """Write the network: images [1, 3, 32, 32] -> scores [1, 10]. norm_first: pre-norm blocks; False: post-norm."""
    import torch
    from torch import nn

    class Transformer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, WIDTH, 8, 8)
            self.place = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2, WIDTH) / 3)
            block = nn.TransformerEncoderLayer(
                WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=norm_first
            )
            self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, images: Any) -> Any:
            tokens = self.embed(images).flatten(2).transpose(1, 2) + self.place
            return self.head(self.norm(self.blocks(tokens)).mean(1))

    torch.manual_seed(0)
    network = Transformer().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:  # channels of different importance, and low effective rank
                outputs, inputs = parameter.shape
                core = torch.randn(outputs, 12) @ torch.randn(12, inputs) / 12**0.5 + torch.randn(outputs, inputs)
                sizes = torch.randn(inputs).mul(0.4).exp() * torch.randn(outputs, 1).mul(0.4).exp()
                parameter.copy_(core * sizes / inputs**0.5)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own warnings
        example = torch.zeros(1, 3, SIDE, SIDE)
        names = {"input_names": ["images"], "output_names": ["scores"]}
        torch.onnx.export(network, (example,), str(path), opset_version=17, dynamo=False, **names)
    return path


def pictures(count: int, seed: int = 1) -> list[np.ndarray]:
    """Return pictures float32 [1, 3, 32, 32] from 0 to 1: four by four coloured fields and noise."""
    rng = np.random.default_rng(seed)
    fields = rng.uniform(0, 1, (count, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    noisy = fields + rng.normal(0, 0.1, (count, 3, SIDE, SIDE))
    return list(noisy.clip(0, 1).astype(np.float32)[:, None])

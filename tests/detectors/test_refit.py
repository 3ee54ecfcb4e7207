"""Networks refitted by least squares: what earlier layers lost is made good where the layers after can."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

from torch import nn  # noqa: E402

from edgekd.core.errors import CompressError  # noqa: E402
from edgekd.detectors import refit as module  # noqa: E402
from edgekd.detectors.refit import refit  # noqa: E402

FRAMES, CHANNELS, SIDE = 12, 6, 16


def anywhere(frames: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(frames), 1, 4, 4)


@pytest.fixture(autouse=True)
def _no_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "RIDGE", 1e-9)


class Scaled(nn.Module):  # type: ignore[misc]
    """An earlier part of a network, with a change that no refit of its own can undo."""

    def __init__(self, factors: torch.Tensor, then: nn.Module) -> None:
        super().__init__()
        self.factors, self.then = factors, then

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.then(maps * self.factors)  # type: ignore[no-any-return]


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    layer.weight.data.uniform_(0.5, 2)
    layer.bias.data.normal_()
    return layer


class Tokens(nn.Module):  # type: ignore[misc]
    """Linear layer on the positions of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(CHANNELS, 5)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.layer(maps.flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


class Shared(nn.Module):  # type: ignore[misc]
    """A head that runs on several maps, with a layer before and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.head = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.last, self.pool = nn.Conv2d(4, 2, 1), nn.AvgPool2d(2)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        first = self.before(maps)
        found = [self.head(each) for each in (first, self.pool(first) * 3)]
        return self.last(found[0][:, :, ::2, ::2] + found[1])  # type: ignore[no-any-return]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(CHANNELS, 5, 3, stride=2, padding=1),
    "grouped": lambda: nn.Conv2d(CHANNELS, 4, 3, padding=1, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=2, dilation=2, groups=CHANNELS),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, 4, 3, stride=2, padding=1, groups=2),
    "linear": Tokens,
    "with batch norm": lambda: nn.Sequential(nn.Conv2d(CHANNELS, 5, 1, bias=False), norm(5), nn.SiLU()),
    "with both": lambda: nn.Sequential(nn.Conv2d(CHANNELS, 5, 1), norm(5), nn.Conv2d(5, 3, 3)),
    "shared": Shared,
}


def output(network: Any, frames: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(frames)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_every_kind_make_up_for_what_was_changed_before_them(kind: str) -> None:
    part, factors = LAYERS[kind](), torch.rand(CHANNELS, 1, 1) + 0.5
    original = Scaled(torch.ones(CHANNELS, 1, 1), part).eval()
    changed = Scaled(factors, deepcopy(part)).eval()
    frames = torch.randn(FRAMES, CHANNELS, SIDE, SIDE) + 1
    wanted = output(original, frames)
    before = (output(changed, frames) - wanted).abs().max()
    refit(changed, original, {}, frames, anywhere)
    assert (output(changed, frames) - wanted).abs().max() < 1e-4 * wanted.abs().max() < before
    other = torch.randn(2, CHANNELS, SIDE, SIDE)
    assert torch.allclose(output(changed, other), output(original, other), atol=1e-3)


@pytest.mark.parametrize("samples", [24_576, 500])
def test_without_a_channel_that_others_give_the_outputs_are_the_same(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third channel is a linear combination of two others; the second layer loses an output that nobody reads."""
    monkeypatch.setattr(module, "SAMPLES", samples)
    first, second, third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, bias=False), nn.Conv2d(5, 2, 1)
    for values in (first.weight.data, first.bias.data):
        values[2] = 0.5 * values[0] - 2 * values[3]
    third.weight.data[:, 1] = 0
    original = nn.Sequential(first, second, norm(5), nn.SiLU(), third).eval()
    pruned = deepcopy(original)
    _keep(pruned[0], outputs=[0, 1, 3])
    _keep(pruned[1], outputs=[0, 2, 3, 4], inputs=[0, 1, 3])
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(pruned[2], name).data = getattr(pruned[2], name).data[[0, 2, 3, 4]]
    _keep(pruned[4], inputs=[0, 2, 3, 4])
    frames = torch.rand(FRAMES, 3, SIDE, SIDE)
    wanted = output(original, frames)
    assert (output(pruned, frames) - wanted).abs().max() > 0.01
    refit(pruned, original, {"0": [0, 1, 3], "1": [0, 2, 3, 4]}, frames, anywhere)
    assert (output(pruned, frames) - wanted).abs().max() < 1e-4


def _keep(layer: Any, outputs: list[int] | None = None, inputs: list[int] | None = None) -> None:
    if outputs:
        layer.weight.data = layer.weight.data[outputs]
        if layer.bias is not None:
            layer.bias.data = layer.bias.data[outputs]
    if inputs:
        layer.weight.data = layer.weight.data[:, inputs]


def test_statistics_other_than_means_stay_and_nothing_needs_a_gradient() -> None:
    part = LAYERS["with batch norm"]()
    original, changed = Scaled(torch.tensor(1.0), part).eval(), Scaled(torch.tensor(2.0), deepcopy(part)).eval()
    refit(changed, original, {}, torch.randn(FRAMES, CHANNELS, SIDE, SIDE), anywhere)
    assert torch.equal(changed.then[1].running_var, part[1].running_var)
    assert torch.allclose(changed.then[1].running_mean, part[1].running_mean, atol=1e-4)
    assert all(each.requires_grad and each.grad is None for each in changed.parameters())
    assert not changed.then[0]._forward_hooks
    assert not changed.then[0]._forward_pre_hooks


def test_most_places_are_where_objects_are() -> None:
    """The last two rows of the first frame, and the left half of the second one."""
    objects = torch.zeros(2, 1, 8, 8)
    objects[0, :, -2:], objects[1, :, :, :4] = 0.9, 0.3
    places = module._draw_places(objects, 32, 64, 400, torch.Generator().manual_seed(0))
    rows, columns = places // 64, places % 64
    assert places.shape == (2, 400)
    assert 0.8 < float((rows[0] >= 24).float().mean()) < 0.9, "and a quarter of the others"
    assert 0.85 < float((columns[1] < 32).float().mean()) < 0.95, "and half of the others"
    few = module._draw_places(objects, 4, 4, 16, torch.Generator())
    assert few.tolist() == [list(range(16))] * 2


def test_as_many_frames_are_used_as_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 5 * SIDE * SIDE + 1)
    network, seen = nn.Conv2d(3, 2, 1), []
    original = deepcopy(network)
    original.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    refit(network, original, {}, torch.randn(FRAMES, 3, SIDE, SIDE), anywhere)
    assert sum(seen) == 5


def test_weights_that_are_no_numbers_are_an_error_that_names_the_layer() -> None:
    original = nn.Sequential(nn.Conv2d(3, 2, 1))
    with pytest.raises(CompressError, match="layer 0 cannot be refitted"):
        refit(deepcopy(original), original, {}, torch.full((FRAMES, 3, SIDE, SIDE), torch.nan), anywhere)


def test_layers_that_pad_otherwise_keep_their_weights() -> None:
    layers = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same"), nn.Conv2d(CHANNELS, 2, 3, padding_mode="reflect")]
    original = Scaled(torch.tensor(1.0), nn.Sequential(*layers))
    changed = Scaled(torch.tensor(2.0), deepcopy(original.then))
    refit(changed, original, {}, torch.randn(FRAMES, CHANNELS, SIDE, SIDE), anywhere)
    assert all(torch.equal(one.weight, other.weight) for one, other in zip(layers, changed.then, strict=True))

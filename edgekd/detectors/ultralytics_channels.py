"""Which channels of an Ultralytics network hang together, and taking some away.

torch-pruning follows them through the network, but not through blocks that compute one convolution and split what it
writes in halves (C2f and its kin). For the time of pruning these have a convolution for each half; both lose as many
channels, and are one again afterwards. So what is left is a network of Ultralytics' own layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.compress.channels import Convolution, Unit, least_important
from edgekd.errors import SpecError

try:
    import torch
    import torch_pruning
    from torch import nn
    from ultralytics.nn.modules.block import C2PSA, AAttn, Attention, C2f, PSABlock
except ImportError as error:
    raise SpecError(
        "pruning needs Ultralytics, PyTorch and torch-pruning",
        found=str(error),
        fix='pip install "edgekd[train]"; `edgekd doctor` says what is missing',
    ) from error

TRACED = 256
"""Pixels of the frame by which layers are followed; what hangs together does not depend on it."""


class _Halves(nn.Module):  # type: ignore[misc]
    """A C2f block, or one derived from it, with a convolution for each half of what its first one writes."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = [block]  # in a list, so that its layers are not this one's
        middle = block.cv1.conv.out_channels // 2
        self.halves = nn.ModuleList(_rows(block.cv1, part) for part in (slice(middle), slice(middle, None)))
        self.m, self.cv2 = block.m, block.cv2
        for name in ("i", "f", "type"):  # by which Ultralytics finds what to feed it
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        seen = [half(maps) for half in self.halves]
        seen.extend(part(seen[-1]) for part in self.m)
        return self.cv2(torch.cat(seen, 1))

    def whole(self) -> Any:
        """The block, with what has become of its layers."""
        (block,) = self.block
        block.cv1, block.c = _stacked(self.halves), self.halves[0].conv.out_channels
        return block


def _rows(layer: Any, part: slice) -> Any:
    """Some output channels of Ultralytics' convolution with batch norm."""
    return _with_channels(layer, {name: value[part] for name, value in _of_channels(layer).items()})


def _stacked(layers: Sequence[Any]) -> Any:
    """One convolution with batch norm that writes what several write."""
    values = [_of_channels(layer) for layer in layers]
    return _with_channels(layers[0], {name: torch.cat([each[name] for each in values]) for name in values[0]})


def _of_channels(layer: Any) -> dict[str, torch.Tensor]:
    """What a convolution with batch norm holds for each of its output channels."""
    return {name: value for name, value in layer.state_dict().items() if value.ndim}


def _with_channels(layer: Any, values: Mapping[str, torch.Tensor]) -> Any:
    new = deepcopy(layer)
    new.act = layer.act  # which all layers share
    for name, value in values.items():
        part, _, attribute = name.rpartition(".")
        holder, own = new.get_submodule(part), value.clone()
        setattr(holder, attribute, nn.Parameter(own) if isinstance(getattr(holder, attribute), nn.Parameter) else own)
    new.conv.out_channels = new.bn.num_features = len(values["conv.weight"])
    return new


@contextmanager
def in_halves(network: Any) -> Iterator[None]:
    """The network with `_Halves` in place of blocks that split; whole again afterwards."""
    for name, block in [found for found in network.named_modules() if isinstance(found[1], C2f)]:
        network.set_submodule(name, _Halves(block))
    yield
    for name, halves in [found for found in network.named_modules() if isinstance(found[1], _Halves)]:
        network.set_submodule(name, halves.whole())


class Traced:
    """A network in halves, and what can be taken from it. convolutions: all that run; units: as of these."""

    def __init__(self, network: Any, size: tuple[int, int], importance: str) -> None:
        names = {module: name for name, module in network.named_modules()}
        found = convolutions_of(network, size)
        self.convolutions = tuple(found.values())
        with _branches_alone(network):
            frame = torch.zeros(1, 3, TRACED, TRACED)
            graph = torch_pruning.DependencyGraph().build_dependency(network, frame, verbose=False)
        free = list(graph.get_all_groups(ignored_layers=_untouched(network)))
        groups = [_Group(group, graph, names, importance) for group in free]
        index = {name: at for at, name in enumerate(found)}
        self._groups = {united[0].name: united for united in _united(groups, names.values())}
        self.units = [_unit(united, index) for united in self._groups.values()]

    def remove(self, gone: Mapping[str, int]) -> None:
        """Take so many channels away from each group of the units named."""
        for name, count in gone.items():
            for group in self._groups[name] if count else ():
                group.remove(count)


class _Group:
    """Channels that can only go together. name: of a layer that writes them; parts: of each layer that has them, its
    name, whether it writes them, which of its channels, and which of the group's these are.
    """

    def __init__(self, group: Any, graph: Any, names: Mapping[Any, str], importance: str) -> None:
        self.name, self.channels = names[group[0].dep.target.module], len(group[0].idxs)
        self.parts: list[tuple[str, bool, list[int], list[int]]] = []
        self._group = group
        scores = []
        for at in range(len(group)):
            layer, handler = group[at].dep.target.module, group[at].dep.handler
            if not isinstance(layer, nn.Conv2d):
                continue
            writes = graph.is_out_channel_pruning_fn(handler)
            own, roots = list(group[at].idxs), list(group[at].root_idxs)
            self.parts.append((names[layer], writes, own, roots))
            scores.append(_scores(layer, importance, writes, own, roots, self.channels))
        self.importance: NDArray[np.float64] = np.mean(scores, axis=0)

    def remove(self, count: int) -> None:
        """Take the least important ones away."""
        self._group.prune(least_important(self.importance, count))


def _scores(
    layer: Any, importance: str, writes: bool, own: list[int], roots: list[int], channels: int
) -> NDArray[np.float64]:
    """What the channels of a group matter to one layer that writes or reads them, float64 [channels]."""
    weight = layer.weight.detach()
    if importance == "magnitude":
        each = weight.square()
    else:
        each = layer.weight.grad.abs() if importance == "gradient" else (weight * layer.weight.grad).abs()
    each = (each if writes else each.transpose(0, 1)).flatten(1).double()
    by_channel = each.mean(1) if importance == "gradient" else each.sum(1)
    found = np.zeros(channels)
    np.add.at(found, roots, by_channel.numpy()[own])
    return found


def _united(groups: Sequence[_Group], layers: Iterable[str]) -> list[list[_Group]]:
    """The groups, those that write the halves of one block together; without those that only one half is free of."""
    writer = {name: group for group in groups for name, writes, *_ in group.parts if writes}
    united = {group.name: [group] for group in groups}
    stuck: set[str] = set()
    for first in (name for name in layers if name.endswith(".halves.0.conv")):
        second = first.replace(".halves.0.conv", ".halves.1.conv")
        pair = [writer[name] for name in (first, second) if name in writer]
        if len(pair) < 2:
            stuck |= {group.name for group in pair}
            continue
        ours, theirs = (united[group.name] for group in pair)
        if ours is not theirs:
            ours.extend(theirs)
            united.update((group.name, ours) for group in theirs)
    whole = {id(each): each for each in united.values()}.values()
    return [each for each in whole if not any(group.name in stuck for group in each)]


def _unit(groups: Sequence[_Group], index: Mapping[str, int]) -> Unit:
    """Groups that lose as many channels each, as numbers."""
    writes: Counter[int] = Counter()
    reads: Counter[int] = Counter()
    for group in groups:
        for name, written, own, _ in group.parts:
            (writes if written else reads)[index[name]] += len(own) // group.channels
    return Unit(groups[0].name, np.stack([group.importance for group in groups]), writes, reads)


def _untouched(network: Any) -> list[Any]:
    """Convolutions that keep their outputs: the last of each branch, and what attention splits into heads."""
    found = [branch[level][-1] for branch in _branches(network) for level in range(len(branch))]
    for module in network.modules():
        if isinstance(module, (Attention, AAttn, PSABlock)):
            found += [each for each in module.modules() if isinstance(each, nn.Conv2d)]
        elif isinstance(module, C2PSA):
            found.append(module.cv1.conv)
    return found


def _branches(network: Any) -> list[Any]:
    """The head's branches: of boxes and of classes, once or twice."""
    names = ("cv2", "cv3", "one2one_cv2", "one2one_cv3")
    return [branch for name in names if (branch := getattr(network.model[-1], name, None)) is not None]


@contextmanager
def _branches_alone(network: Any) -> Iterator[None]:
    """The network with a head that runs its branches and decodes nothing; a second one reads what the first one does,
    which in training it does not hand gradients to.
    """
    network.model[-1].forward = lambda maps: [
        branch[level](each) for branch in _branches(network) for level, each in enumerate(maps)
    ]
    yield
    del network.model[-1].forward


def convolutions_of(network: Any, size: tuple[int, int]) -> dict[str, Convolution]:
    """The convolutions of a network by name, for frames of `size`; those that a camera leaves out have no positions."""
    ships = ("one2one_cv2", "one2one_cv3") if network.model[-1].end2end else ("cv2", "cv3")
    shipped = {id(getattr(network.model[-1], name)) for name in ships}
    spared = {id(each) for part in _branches(network) if id(part) not in shipped for each in part.modules()}
    found: dict[str, Convolution] = {}

    def note(name: str, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        positions = 0 if id(layer) in spared else output.shape[2] * output.shape[3]
        positions = positions * size[0] * size[1] // TRACED**2  # whole: sizes and TRACED are multiples of the strides
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        found[name] = Convolution(layer.in_channels, layer.out_channels, positions, kernel, layer.groups > 1)

    layers = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d)}
    hooks = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    with torch.no_grad(), _branches_alone(network):
        network.eval()(torch.zeros(1, 3, TRACED, TRACED))
    for hook in hooks:
        hook.remove()
    return found

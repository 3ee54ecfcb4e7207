"""Which channels of a PyTorch network hang together, and taking some away: what torch-pruning is used for.

Families of detectors say how their networks are run, and which layers keep what they write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekd.compress.pruning import Convolution, Cost, Goal, Unit, choose, isomorphic, least_important, multiply_adds
from edgekd.core.errors import CompressError, SpecError, did_you_mean

try:
    import torch
    import torch_pruning
    from torch import nn
except ImportError as error:
    raise SpecError(
        "pruning needs PyTorch and torch-pruning",
        found=str(error),
        fix='pip install "edgekd[train]"; `edgekd doctor` says what is missing',
    ) from error

if TYPE_CHECKING:
    from edgekd.builds.recipe import Prune
    from edgekd.core.progress import Progress

S = TypeVar("S")
Pair = tuple[str, str]
"""Names of two layers that must lose as many channels each."""


@dataclass(frozen=True)
class Pruned:
    """What pruning did. parameters, multiply_adds: before and after, of one frame in the detector's size.

    widths: of each unit of channels that hang together, before and after, by the name of a layer that writes them;
    importance: the share of each unit's importance that stays.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    widths: Mapping[str, tuple[int, int]]
    importance: Mapping[str, float]
    seconds: float

    @classmethod
    def of(
        cls,
        channels: Channels,
        gone: Mapping[str, int],
        after: Iterable[Convolution],
        parameters: tuple[int, int],
        seconds: float,
    ) -> Pruned:
        """What has become of channels of which these are gone; after: the convolutions that are left."""
        return cls(
            parameters=parameters,
            multiply_adds=(multiply_adds(channels.convolutions), multiply_adds(tuple(after))),
            widths={unit.name: (unit.channels, unit.channels - gone[unit.name]) for unit in channels.units},
            importance={unit.name: _kept(unit, gone[unit.name]) for unit in channels.units},
            seconds=seconds,
        )


class Channels:
    """What can be taken from a network. convolutions: all that run; units: as of these."""

    def __init__(
        self,
        network: Any,
        frame: torch.Tensor,
        convolutions: Mapping[str, Convolution],
        untouched: Sequence[Any],
        importance: str,
        pairs: Iterable[Pair] = (),
    ) -> None:
        """frame: by which layers are followed through the network's `forward`; convolutions: by name, in the order of
        the units' indices; untouched: layers that keep what they write; importance: as of `Prune`.
        """
        names = {module: name for name, module in network.named_modules()}
        self.convolutions = tuple(convolutions.values())
        self._network = network
        self._frame = torch.rand(frame.shape, generator=torch.Generator().manual_seed(0))
        graph = torch_pruning.DependencyGraph().build_dependency(network, frame, verbose=False)
        free = list(graph.get_all_groups(ignored_layers=list(untouched)))
        groups = [_Group(group, graph, names, importance) for group in free]
        index = {name: at for at, name in enumerate(convolutions)}
        self._groups = {united[0].name: united for united in _united(groups, pairs)}
        self.units = [_unit(united, index) for united in self._groups.values()]

    def thin(self, step: Prune, cost: Cost | None, weights: float = inf) -> dict[str, int]:
        """Take away what the step says, by `compress.channels.choose`: channels that are gone, by unit.

        weights: what convolutions may have left. Raises CompressError, also where the network then says something else
        than if only nothing read them; SpecError for a cap of nothing.
        """
        _require_capped(self.units, step)
        units = isomorphic(self.units) if step.ranking == "isomorphic" else self.units
        goal = Goal(multiply_adds(self.convolutions) * (1 - step.share) if step.share else inf, weights)
        gone = choose(units, self.convolutions, goal, step, cost)
        with torch.no_grad():
            for name, count in gone.items():
                for group in self._groups[name]:
                    group.silence(count)
            wanted = self._network(self._frame)
            self.remove(gone)
            _require_same(self._network, self._frame, wanted)
        return gone

    def remove(self, gone: Mapping[str, int]) -> None:
        """Take so many channels away from each group of the units named."""
        for name, count in gone.items():
            for group in self._groups[name] if count else ():
                group.remove(count)

    @contextmanager
    def unread(self, name: str, count: int) -> Iterator[None]:
        """The network as if so many channels of each group of a unit had gone: nothing reads them."""
        kept = [
            (layer.weight, layer.weight.detach().clone()) for group in self._groups[name] for layer in group.readers
        ]
        with torch.no_grad():
            for group in self._groups[name]:
                group.silence(count)
            yield
            for weight, before in kept:
                weight.copy_(before)


SAME = 0.01
"""How far outputs may be off, of the largest, that are sums in another order."""
SHARES = (0.25, 0.5, 0.75)
"""What a scan takes away of one unit at a time."""


@dataclass(frozen=True)
class Sensitivity:
    """How much a loss grows when only one unit loses channels.

    loss: the mean of a batch with all channels; units: by name, the loss without each of SHARES of its channels.
    """

    loss: float
    units: Mapping[str, tuple[float, ...]]


def scan(channels: Channels, measure: Callable[[], float], progress: Progress) -> Sensitivity:
    """Ask for the loss with each unit narrowed in turn, the least important channels first; nothing stays changed."""
    units: dict[str, tuple[float, ...]] = {}
    with torch.no_grad():
        whole = measure()
        for unit in progress.items(channels.units, "scan", len(channels.units)):
            found = []
            for share in SHARES:
                with channels.unread(unit.name, round(unit.channels * share)):
                    found.append(measure())
            units[unit.name] = tuple(found)
    return Sensitivity(whole, units)


def on_the_way(weights: int, least: float, rounds: int) -> float:
    """What to have left after the first of several rounds that take the same share each. Nothing below 0."""
    return float(weights * (max(least, 0.0) / weights) ** (1 / rounds))


def _require_capped(units: Sequence[Unit], step: Prune) -> None:
    """Raise SpecError for a cap whose pattern matches the name of no unit."""
    names = [unit.name for unit in units]
    for pattern in step.caps:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpecError(
                f"prune: caps: {pattern} matches no unit of channels",
                expected=f"a pattern of such names as {', '.join(names[:3])}",
                fix=did_you_mean(pattern, names) or "`widths` in prune.json has the names",
            )


def _require_same(network: Any, frame: torch.Tensor, wanted: Sequence[torch.Tensor]) -> None:
    """Raise CompressError where a network says something else of a frame."""
    try:
        found = network(frame)
    except RuntimeError as error:
        raise _not_followed(" ".join(str(error).split())[:200]) from error
    for one, other in zip(found, wanted, strict=True):
        off = float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        if not off <= SAME:
            raise _not_followed(f"outputs that are off by {off:.1%} once channels are gone that nothing reads")


def _not_followed(found: str) -> CompressError:
    return CompressError(
        "pruning: which channels hang together in this network cannot be followed",
        expected="blocks such as YOLOv8, YOLO11, YOLO26 and torchvision's detectors have",
        found=found,
        fix="leave pruning out, and take a smaller model or fewer bits",
    )


def _kept(unit: Unit, gone: int) -> float:
    """The share of a unit's importance that stays when its least important channels have gone."""
    whole = float(unit.importance.sum())
    return 1 - float(unit.losses()[gone]) / whole if whole else 1.0


@contextmanager
def deterministic() -> Iterator[None]:
    """Sums in the same order each time, where PyTorch knows how."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def in_batches(samples: Sequence[S], size: int) -> list[Sequence[S]]:
    """Samples, so many at a time, and in the end what is left."""
    return [samples[at : at + size] for at in range(0, len(samples), size)]


def renew_statistics(network: Any, samples: Sequence[S], size: int, frames: Callable[[Sequence[S]], Any]) -> None:
    """Let batch norms have the statistics of what they read now: means over batches of `size`, at least 2, samples.

    Of a network that has lost channels the old ones are far off: Li and others, EagleEye, arXiv 2007.02491.
    frames: what the network reads of some samples. Without two samples it stays as it is.
    """
    batches = [some for some in in_batches(samples, max(size, 2)) if len(some) > 1]  # one alone has no variance
    if not batches:
        return
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches count alike
        norm.train()
    with torch.no_grad(), deterministic():
        for some in batches:
            network(frames(some))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def convolutions_run(
    network: Any, run: Callable[[], Any], scale: tuple[int, int] = (1, 1), spared: Collection[int] = ()
) -> dict[str, Convolution]:
    """The convolutions of a network by name, as `run` has them run.

    scale: by which the number of places is multiplied and divided; spared: ids of those that a camera leaves out, which
    have no places.
    """
    found: dict[str, Convolution] = {}

    def note(name: str, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        places = 0 if id(layer) in spared else output.shape[2] * output.shape[3] * scale[0] // scale[1]
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        depthwise = layer.groups > 1
        before = found[name].positions if name in found else 0  # one that reads several maps runs several times
        found[name] = Convolution(
            layer.in_channels, layer.out_channels, before + places, kernel, depthwise, layer.stride[0]
        )

    layers = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d)}
    hooks = [layer.register_forward_hook(partial(note, name)) for name, layer in layers.items()]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


class _Group:
    """Channels that can only go together. name: of a layer that writes them; parts: of each layer that has them, its
    name, whether it writes them, which of its channels, and which of the group's these are; readers: those layers that
    read them.
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
            if max(own) >= (layer.out_channels if writes else layer.in_channels):
                raise _not_followed(f"layer {names[layer]} has no channel {max(own)}")
            self.parts.append((names[layer], writes, own, roots))
            scores.append(_scores(layer, importance, writes, own, roots, self.channels))
        self.importance: NDArray[np.float64] = np.mean(scores, axis=0)
        self._read = [part for part in self.parts if not part[1]]
        layers = {name: layer for layer, name in names.items()}
        self.readers = [layers[name] for name, *_ in self._read]

    def remove(self, count: int) -> None:
        """Take the least important ones away."""
        self._group.prune(least_important(self.importance, count))

    def silence(self, count: int) -> None:
        """Give the least important ones weights of zero where they are read."""
        away = set(least_important(self.importance, count))
        for layer, (_, _, own, roots) in zip(self.readers, self._read, strict=True):
            places = [place for place, root in zip(own, roots, strict=True) if root in away]
            (layer.weight.transpose(0, 1) if layer.groups == 1 else layer.weight)[places] = 0


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


def _united(groups: Sequence[_Group], pairs: Iterable[Pair]) -> list[list[_Group]]:
    """The groups, those that write the layers of a pair together; without those of which only one layer is free."""
    writer = {name: group for group in groups for name, writes, *_ in group.parts if writes}
    united = {group.name: [group] for group in groups}
    stuck: set[str] = set()
    for names in pairs:
        pair = [writer[name] for name in names if name in writer]
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

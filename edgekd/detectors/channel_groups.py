"""Groups of coupled channels of a PyTorch network, and their removal, with torch-pruning.

Families of detectors define how their networks run, and which layers keep their outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekd.compress.pruning import (
    Convolution,
    CostFunction,
    Goal,
    Unit,
    choose,
    isomorphic,
    least_important,
    multiply_adds,
)
from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.core.errors import CompressError, SpecError, did_you_mean
from edgekd.data.dataset import load_dataset
from edgekd.data.images import Image, draw_images
from edgekd.data.types import Sample
from edgekd.detectors.results import SCANNED_SHARES, PruningRecord, Sensitivity
from edgekd.detectors.torch_support import requiring

with requiring("pruning needs PyTorch and torch-pruning"):
    import torch
    import torch_pruning
    from torch import nn

    from edgekd.compress.channel_elimination import Reader, elimination_losses

if TYPE_CHECKING:
    from edgekd.compress.steps import Prune
    from edgekd.core.progress import Progress

S = TypeVar("S")
Pair = tuple[str, str]
"""Names of two layers that must lose equally many channels."""
LabelledImage = tuple[Sample, Image]
"""A sample, and its image uint8 [h, w, 3] BGR."""
OUTPUT_TOLERANCE = 0.01
"""Largest change of an output by another order of summation, relative to the largest value."""
PREDICTIONS_ONLY = Distill(
    stages=(DistillStage("predictions", 1.0, Weights(classes=1.0, boxes=1.0)),), alpha="off", balance_every=0
)
"""Settings for a teacher's classes and boxes in the loss whose gradients pruning uses."""


class Channels:
    """The channels that can be removed from a network.

    convolutions: all convolutions that run; units: their channels, with indices of convolutions.
    """

    def __init__(
        self,
        network: Any,
        frame: torch.Tensor,
        convolutions: Mapping[str, Convolution],
        fixed_outputs: Sequence[Any],
        importance: str,
        pairs: Iterable[Pair] = (),
        readers: Mapping[str, Reader] = MappingProxyType({}),
    ) -> None:
        """Trace the network.

        frame: input for tracing the network's `forward`; convolutions: by name, in the order of the units' indices;
        fixed_outputs: layers that keep their outputs; importance: as in `Prune`; pairs: layers that must lose equally
        many channels; readers: layers by name, for the importance `surgeon`. Raises CompressError for a network whose
        coupling torch-pruning gets wrong.
        """
        names = {module: name for name, module in network.named_modules()}
        self.convolutions = tuple(convolutions.values())
        self._outputs = {name: each.outputs for name, each in convolutions.items()}
        self._network = network
        self._frame = torch.rand(frame.shape, generator=torch.Generator().manual_seed(0))
        graph = torch_pruning.DependencyGraph().build_dependency(network, frame, verbose=False)
        free = list(graph.get_all_groups(ignored_layers=list(fixed_outputs)))
        groups = [_ChannelGroup(group, graph, names, importance, readers) for group in free]
        index = {name: position for position, name in enumerate(convolutions)}
        self._groups = {joined[0].name: joined for joined in _joined(groups, pairs)}
        self.units = [_unit(joined, index) for joined in self._groups.values()]

    def prune(self, step: Prune, cost: CostFunction | None, weights: float = inf) -> dict[str, int]:
        """Remove the channels that `compress.pruning.choose` selects; return the number of removed channels by unit.

        cost: as for `choose`; weights: largest number of weights that the convolutions may keep. Raises CompressError
        if the goal cannot be met, or the outputs of the pruned network differ from those with masked channels;
        SpecError for a cap that matches no unit.
        """
        _require_known_caps(self.units, step)
        units = isomorphic(self.units) if step.ranking == "isomorphic" else self.units
        goal = Goal(multiply_adds(self.convolutions) * (1 - step.share) if step.share else inf, weights)
        removed = choose(units, self.convolutions, goal, step, cost)
        with torch.no_grad():
            for name, count in removed.items():
                for group in self._groups[name]:
                    group.mask(count)
            expected = self._network(self._frame)
            self.remove(removed)
            _require_same_outputs(self._network, self._frame, expected)
        return removed

    def remove(self, removed: Mapping[str, int]) -> None:
        """Remove this number of channels from each group of a unit, by unit name."""
        for name, count in removed.items():
            for group in self._groups[name] if count else ():
                group.remove(count)

    def kept_outputs(self, removed: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the indices of kept output channels for each layer that loses some, by name."""
        gone: dict[str, set[int]] = {}
        for name, count in removed.items():
            for group in self._groups[name] if count else ():
                away = set(least_important(group.importance, count))
                for layer, writes, own, roots in group.parts:
                    if writes:
                        gone.setdefault(layer, set()).update(
                            place for place, root in zip(own, roots, strict=True) if root in away
                        )
        return {name: [each for each in range(self._outputs[name]) if each not in gone[name]] for name in gone}

    @contextmanager
    def masked(self, name: str, count: int) -> Iterator[None]:
        """Simulate the removal of `count` channels of each group of a unit: the weights that read them are zero."""
        kept = [
            (layer.weight, layer.weight.detach().clone()) for group in self._groups[name] for layer in group.readers
        ]
        with torch.no_grad():
            for group in self._groups[name]:
                group.mask(count)
            try:
                yield
            finally:
                for weight, before in kept:
                    weight.copy_(before)

    def pruned(
        self, removed: Mapping[str, int], after: Iterable[Convolution], parameters: tuple[int, int], seconds: float
    ) -> PruningRecord:
        """Return the record of a removal.

        removed: number of channels by unit; after: the pruned convolutions; parameters: before and after; seconds:
        duration.
        """
        return PruningRecord(
            parameters=parameters,
            multiply_adds=(multiply_adds(self.convolutions), multiply_adds(tuple(after))),
            widths={unit.name: (unit.channels, unit.channels - removed[unit.name]) for unit in self.units},
            importance={unit.name: _share_kept(unit, removed[unit.name]) for unit in self.units},
            seconds=seconds,
        )


def pruning_images(data: Path, step: Prune, progress: Progress) -> tuple[tuple[str, ...], list[LabelledImage]]:
    """Return the classes of a data set, and the training images that a step draws. Raises DataError."""
    dataset = load_dataset(data)
    return dataset.classes, draw_images(dataset.split("train").samples, step.images, step.seed, progress)


def accumulate_gradients(
    network: Any, samples: Sequence[S], loss: Callable[[S], torch.Tensor], progress: Progress
) -> None:
    """Set the gradient of each parameter to the sum over samples of |gradient of the sample's loss|.

    In a trained network the sum of the gradients themselves is near zero, and mostly noise from the choice of samples.
    """
    sums: dict[Any, torch.Tensor] = {}
    with deterministic():
        for sample in progress.items(samples, "gradients", len(samples)):
            loss(sample).backward()
            for parameter in network.parameters():
                if parameter.grad is not None:
                    sums[parameter] = sums.get(parameter, 0) + parameter.grad.abs()
                    parameter.grad = None
    for parameter, total in sums.items():
        parameter.grad = total


def weights_to_keep(network: Any, excess_bytes: float, bytes_per_weight: int, rounds: int) -> float:
    """Return the number of weights that convolutions may keep after this of `rounds`, which remove `excess_bytes`."""
    weights = sum(each.weight.numel() for each in network.modules() if isinstance(each, nn.Conv2d))
    goal = max(weights - excess_bytes / bytes_per_weight, 0.0)
    return float(weights * (goal / weights) ** (1 / rounds))  # each round removes the same share


def scan(channels: Channels, measure: Callable[[], float], progress: Progress) -> Sensitivity:
    """Measure the loss with each unit pruned alone, least important channels first; weights are restored afterwards."""
    units: dict[str, tuple[float, ...]] = {}
    with torch.no_grad():
        whole = measure()
        for unit in progress.items(channels.units, "scan", len(channels.units)):
            losses = []
            for share in SCANNED_SHARES:
                with channels.masked(unit.name, round(unit.channels * share)):
                    losses.append(measure())
            units[unit.name] = tuple(losses)
    return Sensitivity(whole, units)


def _require_known_caps(units: Sequence[Unit], step: Prune) -> None:
    """Raise SpecError for a cap whose pattern matches the name of no unit."""
    names = [unit.name for unit in units]
    for pattern in step.caps:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SpecError(
                f"prune: caps: {pattern} matches no unit of channels",
                expected=f"a pattern of such names as {', '.join(names[:3])}",
                fix=did_you_mean(pattern, names) or "`widths` in prune.json has the names",
            )


def _require_same_outputs(network: Any, frame: torch.Tensor, expected: Sequence[torch.Tensor]) -> None:
    """Raise CompressError if a network's outputs for a frame differ from `expected` by more than OUTPUT_TOLERANCE."""
    try:
        outputs = network(frame)
    except RuntimeError as error:
        raise _unsupported(" ".join(str(error).split())[:200]) from error
    for one, other in zip(outputs, expected, strict=True):
        off = float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        if not off <= OUTPUT_TOLERANCE:
            raise _unsupported(f"outputs that are off by {off:.1%} after the removal of channels that nothing reads")


def _unsupported(found: str) -> CompressError:
    return CompressError(
        "pruning: the coupling of channels in this network cannot be followed",
        expected="blocks such as YOLOv8, YOLO11, YOLO26, RT-DETR and torchvision's detectors have",
        found=found,
        fix="leave pruning out, and take a smaller model or fewer bits",
    )


def _share_kept(unit: Unit, removed: int) -> float:
    """Return the share of a unit's importance that is kept without its `removed` least important channels."""
    whole = float(unit.importance.sum())
    return 1 - float(unit.losses()[removed]) / whole if whole else 1.0


@contextmanager
def deterministic() -> Iterator[None]:
    """Make PyTorch use deterministic algorithms where they exist."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def in_batches(samples: Sequence[S], size: int) -> list[Sequence[S]]:
    """Split samples into batches of `size`, the last one with the rest."""
    return [samples[index : index + size] for index in range(0, len(samples), size)]


def renew_statistics(network: Any, samples: Sequence[S], size: int, frames: Callable[[Sequence[S]], Any]) -> None:
    """Replace the statistics of batch norms by means over batches of `size` samples, at least 2.

    In a pruned network the old statistics are far off: Li and others, EagleEye, arXiv 2007.02491. frames: returns the
    network's input for a batch of samples. With fewer than two samples the network does not change.
    """
    batches = [batch for batch in in_batches(samples, max(size, 2)) if len(batch) > 1]  # one sample has no variance
    if not batches:
        return
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # equal weights of all batches
        norm.train()
    with torch.no_grad(), deterministic():
        for batch in batches:
            network(frames(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def convolutions_run(
    network: Any, run: Callable[[], Any], scale: tuple[int, int] = (1, 1), skipped: Collection[int] = ()
) -> dict[str, Convolution]:
    """Return the convolutions of a network by name, with the positions that they compute in `run`.

    scale: factor and divisor of the number of positions; skipped: `id` of convolutions that do not run on a camera,
    which get 0 positions.
    """
    convolutions: dict[str, Convolution] = {}

    def record(name: str, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        positions = 0 if id(layer) in skipped else output.shape[2] * output.shape[3] * scale[0] // scale[1]
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        depthwise = layer.groups > 1
        before = (
            convolutions[name].positions if name in convolutions else 0
        )  # a convolution that is applied to several maps runs several times
        convolutions[name] = Convolution(
            layer.in_channels, layer.out_channels, before + positions, kernel, depthwise, layer.stride[0]
        )

    layers = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d)}
    hooks = [layer.register_forward_hook(partial(record, name)) for name, layer in layers.items()]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return convolutions


class _ChannelGroup:
    """Channels that can only be removed together.

    name: name of a layer that writes them; parts: for each layer with these channels its name, whether it writes them,
    their indices among its channels, and among the group's; readers: the layers that read them.
    """

    def __init__(
        self, group: Any, graph: Any, names: Mapping[Any, str], importance: str, readers: Mapping[str, Reader]
    ) -> None:
        self.name, self.channels = names[group[0].dep.target.module], len(group[0].idxs)
        self.parts: list[tuple[str, bool, list[int], list[int]]] = []
        self._group = group
        scores = []
        for index in range(len(group)):
            layer, handler = group[index].dep.target.module, group[index].dep.handler
            if not isinstance(layer, nn.Conv2d):
                continue
            writes = graph.is_out_channel_pruning_fn(handler)
            own, roots = list(group[index].idxs), list(group[index].root_idxs)
            if max(own) >= (layer.out_channels if writes else layer.in_channels):
                raise _unsupported(f"layer {names[layer]} has no channel {max(own)}")
            self.parts.append((names[layer], writes, own, roots))
            if importance != "surgeon":
                scores.append(_scores(layer, importance, writes, own, roots, self.channels))
        self._read = [part for part in self.parts if not part[1]]
        self.importance: NDArray[np.float64] = (
            self._elimination_losses(readers) if importance == "surgeon" else np.mean(scores, axis=0)
        )
        layers = {name: layer for layer, name in names.items()}
        self.readers = [layers[name] for name, *_ in self._read]

    def _elimination_losses(self, readers: Mapping[str, Reader]) -> NDArray[np.float64]:
        """Return the importance `surgeon` of the channels, over all layers that read them, float64 [channels]."""
        reading = []
        for layer, _, own, roots in self._read:
            if layer in readers:
                order = np.argsort(roots, kind="stable")
                index = torch.from_numpy(np.asarray(own)[order].reshape(self.channels, -1))
                reading.append((readers[layer], index))
        return elimination_losses(reading, self.channels)

    def remove(self, count: int) -> None:
        """Remove the `count` least important channels."""
        self._group.prune(least_important(self.importance, count))

    def mask(self, count: int) -> None:
        """Set the weights that read the `count` least important channels to zero."""
        away = set(least_important(self.importance, count))
        for layer, (_, _, own, roots) in zip(self.readers, self._read, strict=True):
            places = [place for place, root in zip(own, roots, strict=True) if root in away]
            (layer.weight.transpose(0, 1) if layer.groups == 1 else layer.weight)[places] = 0


def _scores(
    layer: Any, importance: str, writes: bool, own: list[int], roots: list[int], channels: int
) -> NDArray[np.float64]:
    """Return the importance of a group's channels to one layer that writes or reads them, float64 [channels]."""
    weight = layer.weight.detach()
    if importance == "magnitude":
        each = weight.square()
    else:
        each = layer.weight.grad.abs() if importance == "gradient" else (weight * layer.weight.grad).abs()
    each = (each if writes else each.transpose(0, 1)).flatten(1).double()
    by_channel = each.mean(1) if importance == "gradient" else each.sum(1)
    scores = np.zeros(channels)
    np.add.at(scores, roots, by_channel.numpy()[own])
    return scores


def _joined(groups: Sequence[_ChannelGroup], pairs: Iterable[Pair]) -> list[list[_ChannelGroup]]:
    """Join the groups that write the two layers of a pair; drop those of pairs with only one free layer."""
    writer = {name: group for group in groups for name, writes, *_ in group.parts if writes}
    joined = {group.name: [group] for group in groups}
    fixed: set[str] = set()
    for names in pairs:
        pair = [writer[name] for name in names if name in writer]
        if len(pair) < 2:
            fixed |= {group.name for group in pair}
            continue
        ours, theirs = (joined[group.name] for group in pair)
        if ours is not theirs:
            ours.extend(theirs)
            joined.update((group.name, ours) for group in theirs)
    whole = {id(each): each for each in joined.values()}.values()
    return [each for each in whole if not any(group.name in fixed for group in each)]


def _unit(groups: Sequence[_ChannelGroup], index: Mapping[str, int]) -> Unit:
    """Return groups that must lose equally many channels as a unit."""
    writes: Counter[int] = Counter()
    reads: Counter[int] = Counter()
    for group in groups:
        for name, written, own, _ in group.parts:
            (writes if written else reads)[index[name]] += len(own) // group.channels
    return Unit(groups[0].name, np.stack([group.importance for group in groups]), writes, reads)

"""Least-squares refit of a changed network: each layer, in order of execution, to its original outputs.

Hooks record the layers of networks of any family; the arithmetic is in `compress.least_squares`. No labels and no
gradients are needed, and batch norms keep their statistics except for a shift of the mean, so that the network can be
trained afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgekd.compress.distillation.anchors import Grid, inside
from edgekd.compress.distillation.loss_terms import DetectorFeatures
from edgekd.compress.distillation.teacher_objects import predicted_boxes
from edgekd.compress.least_squares import LeastSquares, Window, patches
from edgekd.core.errors import CompressError
from edgekd.core.progress import SILENT, Progress
from edgekd.detectors.teacher import Teacher

SAMPLES = 24_576
"""Sampled output positions per layer, over all frames: several times the unknowns of an output."""
MAX_PIXELS = 2**24
"""Pixels of all frames, which pass through a network as one batch: 163 frames of 320 x 320, 40 of 640 x 640."""
OBJECT_SHARE = 0.8
"""Share of the positions that are sampled by the certainty of an object there: most of a frame is background."""
MIN_CERTAINTY = 1e-6
"""Smallest certainty of a position, so that frames without objects can be sampled."""
RIDGE = 0.01
"""Ridge towards the old weights, as a share of the mean variance of a layer's inputs."""
BATCH = 8
"""Frames per batch of the original network."""
MAX_PATCH_NUMBERS = 2**24
"""Largest number of patch values in memory: 64 MB."""

_Linear = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


@dataclass
class _Layer:
    """A layer to refit. calls: per pass; norm: the batch norm that reads its output, or None; samples: by call."""

    name: str
    calls: int = 0
    norm: Any = None
    samples: list[_Samples] = field(default_factory=list)


@dataclass(frozen=True)
class _Samples:
    """Target outputs of a layer at sampled positions. rows, columns: int64 [frames, n]; wanted [frames, n, outputs]."""

    rows: torch.Tensor
    columns: torch.Tensor
    wanted: torch.Tensor


class _PassDoneError(Exception):
    """Raised to end a forward pass when all of its layers are refitted."""


def refit(
    network: Any,
    original: Any,
    kept: Mapping[str, Sequence[int]],
    frames: torch.Tensor,
    certainty: Callable[[torch.Tensor], torch.Tensor],
    seed: int = 0,
    progress: Progress = SILENT,
) -> None:
    """Refit the weights of all layers of `network` that run on frames float32 [b, 3, h, w], to `original`'s outputs.

    Layers are matched by name; a layer that only one network has keeps its weights. kept: for layers with removed
    outputs, by name, the kept output channels of the original; certainty: returns the certainty of an object at each
    position of frames, [b, 1, h, w] of any size, by which positions are sampled. A layer that runs several times is
    refitted to all of its outputs together. Raises CompressError if weights or maps are not finite.
    Memory: the first frames, up to MAX_PIXELS, pass through the network as one batch; beside its maps, SAMPLES outputs
    of every layer are stored.
    """
    frames = frames[: max(MAX_PIXELS // frames[0, 0].numel(), 1)]
    with torch.no_grad():
        layers = _layers_run(network, frames[:1])
        _sample(original, layers, kept, frames, certainty, torch.Generator().manual_seed(seed))
        waiting = list(layers.values())
        ticks = progress.items(range(len(waiting)), "least squares", len(waiting))
        while waiting:
            waiting = _refit_first(network, waiting, frames, lambda: next(ticks, None))
        next(ticks, None)


def object_certainty(teacher: Teacher, frames: torch.Tensor) -> torch.Tensor:
    """Return the largest class probability around each cell of a detector's finest grid, [b, 1, h, w].

    The maximum over 3 x 3 cells of every level, to include the surroundings of objects; for a head without anchors the
    maximum over the boxes that contain the cell.
    """
    features = teacher(frames)
    if features.objects is not None:
        return _certainty_in_boxes(features)
    scores = list(features.branches.values())[-1].scores.amax(1, keepdim=True).sigmoid()
    sizes = features.grid.sizes
    levels = scores.split([height * width for height, width in sizes], 2)
    maps = [
        functional.interpolate(functional.max_pool2d(level.unflatten(2, size), 3, 1, 1), sizes[0])
        for level, size in zip(levels, sizes, strict=True)
    ]
    return torch.stack(maps).amax(0)


def _certainty_in_boxes(features: DetectorFeatures) -> torch.Tensor:
    """Return the largest class probability of the boxes that contain each cell of the finest grid, [b, 1, h, w]."""
    grid, found = features.grid, predicted_boxes(features)
    points, _ = Grid(grid.sizes[:1], grid.strides[:1]).points(found.boxes.device)
    maps = [
        (inside(points, boxes.T) * scores.amax(0).sigmoid()[:, None]).amax(0).view(1, *grid.sizes[0])
        for boxes, scores in zip(found.boxes, found.scores, strict=True)
    ]
    return torch.stack(maps)


def _layers_run(network: Any, frame: torch.Tensor) -> dict[str, _Layer]:
    """Return the linear layers that run, by name, in the order of their first calls."""
    layers: dict[str, _Layer] = {}
    outputs: dict[str, torch.Tensor] = {}

    def called(name: str, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        layers.setdefault(name, _Layer(name)).calls += 1
        outputs[name] = output

    def normalized(norm: Any, inputs: Any) -> None:
        for name, output in outputs.items():
            if output is inputs[0]:
                layers[name].norm = norm

    hooks = [layer.register_forward_hook(partial(called, name)) for name, layer in _linear_layers(network)]
    norms = [each for each in network.modules() if getattr(each, "running_mean", None) is not None]
    hooks += [norm.register_forward_pre_hook(normalized) for norm in norms]
    with _removed(hooks):
        network(frame)
    return layers


def _linear_layers(network: Any) -> list[tuple[str, Any]]:
    """Return the linear layers with their names, except those with other padding than zeros, which are not refitted."""
    return [
        (name, each)
        for name, each in network.named_modules()
        if isinstance(each, nn.Linear)
        or (isinstance(each, _Linear) and each.padding_mode == "zeros" and isinstance(each.padding, tuple))
    ]


@contextmanager
def _removed(hooks: Sequence[Any]) -> Iterator[None]:
    """Remove hooks at the end of the context."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sample(
    original: Any,
    layers: dict[str, _Layer],
    kept: Mapping[str, Sequence[int]],
    frames: torch.Tensor,
    certainty: Callable[[torch.Tensor], torch.Tensor],
    generator: torch.Generator,
) -> None:
    """Store sampled outputs of the original network in `layers`; remove layers that it does not have."""
    objects, count = torch.zeros(0), -(-SAMPLES // len(frames))
    found: dict[str, list[list[_Samples]]] = {name: [] for name in layers}
    counts: Counter[str] = Counter()

    def record(name: str, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        maps = _as_maps(layer, output)
        width = maps.shape[3]
        chosen = slice(None) if name not in kept else list(kept[name])
        places = _draw_places(objects, maps.shape[2], width, count, generator)
        flat = maps.flatten(2)[:, chosen]
        wanted = flat.gather(2, places[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2).contiguous()
        call = counts[name]
        counts[name] += 1
        if call == len(found[name]):
            found[name].append([])
        found[name][call].append(_Samples(places // width, places % width, wanted))

    hooks = [
        layer.register_forward_hook(partial(record, name)) for name, layer in _linear_layers(original) if name in layers
    ]
    with _removed(hooks):
        for batch in frames.split(BATCH):
            counts.clear()
            objects = certainty(batch)
            original(batch)
    for name, calls in found.items():
        for parts in calls:
            columns = zip(*((each.rows, each.columns, each.wanted) for each in parts), strict=True)
            layers[name].samples.append(_Samples(*(torch.cat(each) for each in columns)))
        if not calls:  # the original has no such layer
            del layers[name]


def _draw_places(
    objects: torch.Tensor, height: int, width: int, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Return `count` sampled positions in each map of this size, int64 [b, count]; all if there are no more."""
    if height * width <= count:
        return torch.arange(height * width).expand(len(objects), -1)
    near_objects = round(count * OBJECT_SHARE)
    anywhere = torch.randint(height * width, (len(objects), count - near_objects), generator=generator)
    weights = functional.interpolate(objects, (height, width)).flatten(1) + MIN_CERTAINTY
    return torch.cat([anywhere, torch.multinomial(weights, near_objects, replacement=True, generator=generator)], 1)


def _refit_first(network: Any, waiting: list[_Layer], frames: torch.Tensor, done: Callable[[], Any]) -> list[_Layer]:
    """Refit layers in one pass, up to the first one that runs several times; return the remaining ones.

    Later layers read the outputs of that layer, which are known only after all of its inputs were seen.
    """
    last = next((index for index, layer in enumerate(waiting) if layer.calls > 1), len(waiting) - 1)
    now = {layer.name: layer for layer in waiting[: last + 1]}
    equations: dict[str, LeastSquares] = {}
    counts: Counter[str] = Counter()

    def read(name: str, layer: Any, inputs: Any) -> None:
        entry = now[name]
        if name not in equations:
            equations[name] = _equations(layer, entry)
        _accumulate(equations[name], layer, inputs[0], entry.samples[counts[name]])
        counts[name] += 1
        if counts[name] == entry.calls:
            _replace_weights(layer, entry, equations.pop(name))
            entry.samples.clear()
            done()
            if entry is waiting[last]:
                raise _PassDoneError

    hooks = [
        layer.register_forward_pre_hook(partial(read, name)) for name, layer in _linear_layers(network) if name in now
    ]
    with _removed(hooks), suppress(_PassDoneError):
        network(frames)
    return waiting[last + 1 :]


def _equations(layer: Any, entry: _Layer) -> LeastSquares:
    weight = _as_matrices(layer)
    return LeastSquares(
        len(weight), weight.shape[2], weight.shape[1], centred=entry.norm is not None or layer.bias is not None
    )


def _accumulate(equations: LeastSquares, layer: Any, maps: torch.Tensor, samples: _Samples) -> None:
    maps, window, groups = _as_maps(layer, maps), window_of(layer), getattr(layer, "groups", 1)
    numbers = samples.rows.shape[1] * maps.shape[1] * window.kernel[0] * window.kernel[1]
    size = max(MAX_PATCH_NUMBERS // numbers, 1)
    for part in range(0, len(maps), size):
        at = slice(part, part + size)
        read = patches(maps[at], samples.rows[at], samples.columns[at], window).flatten(0, 1)
        grouped = read.unflatten(1, (groups, -1)).flatten(2).transpose(0, 1)
        wanted = samples.wanted[at].flatten(0, 1).unflatten(1, (groups, -1)).transpose(0, 1)
        equations.add(grouped, wanted)


def _replace_weights(layer: Any, entry: _Layer, equations: LeastSquares) -> None:
    """Set a layer's weights to the solution; the offset changes the mean of its batch norm, or its bias."""
    weights, offsets = equations.solve(_as_matrices(layer), RIDGE)
    if not (weights.isfinite().all() and offsets.isfinite().all()):
        raise CompressError(f"refit: layer {entry.name} cannot be refitted", expected="finite weights and maps")
    if isinstance(layer, nn.ConvTranspose2d):
        inputs, outputs, *kernel = layer.weight.shape
        shape = (layer.groups, outputs, inputs // layer.groups, *kernel)
        layer.weight.copy_(weights.reshape(shape).transpose(1, 2).reshape(layer.weight.shape))
    else:
        layer.weight.copy_(weights.reshape(layer.weight.shape))
    if entry.norm is not None:
        entry.norm.running_mean += (0 if layer.bias is None else layer.bias) - offsets.flatten()
    elif layer.bias is not None:
        layer.bias.copy_(offsets.flatten())


def _as_matrices(layer: Any) -> torch.Tensor:
    """Return the weights of a layer as [groups, outputs, inputs * kh * kw], with numbers per group."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(2)
    return weight.unflatten(0, (getattr(layer, "groups", 1), -1)).flatten(2)


def _as_maps(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """Return inputs or outputs of a layer as [b, channels, h, w]."""
    if isinstance(layer, nn.Linear):
        return values.reshape(len(values), -1, values.shape[-1]).transpose(1, 2)[..., None]
    return values


def window_of(layer: Any) -> Window:
    """Return the window of inputs that an output of a linear layer reads."""
    if isinstance(layer, nn.Linear):
        return Window()
    transposed = isinstance(layer, nn.ConvTranspose2d)
    return Window(layer.kernel_size, layer.stride, layer.padding, layer.dilation, transposed)

"""Structured pruning of Ultralytics detectors: narrower layers, and nothing else changed.

What comes out is a checkpoint of Ultralytics' own layers, which its tools read, and everything here that takes one. But
its trainer builds a network anew from a description, which knows nothing of the new widths: `Loop` does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.compress.channels import Unit, choose, isomorphic, multiply_adds
from edgekd.data.dataset import Sample, load_dataset
from edgekd.data.images import ReadableImages
from edgekd.detectors.checkpoint import write_checkpoint
from edgekd.detectors.preprocess import letterbox, to_input
from edgekd.detectors.teacher import parameters_in
from edgekd.detectors.types import Preprocess
from edgekd.detectors.ultralytics import UltralyticsDetector, input_size
from edgekd.errors import SpecError
from edgekd.progress import SILENT, Progress
from edgekd.spec import Prune

# First: it says what is missing where PyTorch or Ultralytics are.
from edgekd.detectors.ultralytics_loop import quiet, ultralytics_label  # isort: skip

import torch
from ultralytics.utils import DEFAULT_CFG

from edgekd.detectors.ultralytics_channels import Traced, convolutions_of, in_halves

Read = tuple[Sample, NDArray[np.uint8]]
"""A sample, and its image as it was read: uint8 [h, w, 3] BGR."""


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


def prune_detector(
    checkpoint: Path, out: Path, data: Path, step: Prune, trust: bool = False, progress: Progress = SILENT
) -> Pruned:
    """Write `out`, the detector in `checkpoint` with fewer channels in its layers: again an Ultralytics checkpoint.

    data: a data set, of whose split `train` `step.images` are read, for gradients. Nothing is trained: a detector that
    has lost more than a little has to be (`ultralytics_distill`). The same arguments give the same detector.
    Raises SpecError for a checkpoint that is no detector, DataError for unusable data, CompressError where so much
    cannot be removed.
    """
    began = time.monotonic()
    network, train_args = UltralyticsDetector(checkpoint, trust).network()
    if network.is_fused():
        raise SpecError(f"{checkpoint}: batch norms are folded in", fix="pass the checkpoint that was trained")
    size = input_size(train_args, int(max(network.stride)))
    before = parameters_in(network)
    with quiet(), in_halves(network):
        if step.importance != "magnitude":
            samples = _chosen(load_dataset(data).split("train").samples, step, progress)
            shown = (step.image_size, step.image_size) if step.image_size else size
            _accumulate_gradients(network, samples, shown, step, progress)
        traced = Traced(network, size, step.importance)
        units = isomorphic(traced.units) if step.ranking == "isomorphic" else traced.units
        gone = choose(units, traced.convolutions, step)
        traced.remove(gone)
    network.zero_grad(set_to_none=True)
    after = tuple(convolutions_of(network, size).values())
    write_checkpoint(network, {"task": "detect", **train_args, "imgsz": list(size)}, out)
    return Pruned(
        parameters=(before, parameters_in(network)),
        multiply_adds=(multiply_adds(traced.convolutions), multiply_adds(after)),
        widths={unit.name: (unit.channels, unit.channels - gone[unit.name]) for unit in traced.units},
        importance={unit.name: _kept(unit, gone[unit.name]) for unit in traced.units},
        seconds=time.monotonic() - began,
    )


def _kept(unit: Unit, gone: int) -> float:
    whole = float(unit.importance.sum())
    return 1 - float(unit.losses()[gone]) / whole if whole else 1.0


def _chosen(samples: Sequence[Sample], step: Prune, progress: Progress) -> list[Read]:
    """As many readable images as the step asks for, drawn by its seed."""
    order = np.random.default_rng(step.seed).permutation(len(samples))[: step.images]
    return list(ReadableImages([samples[at] for at in sorted(order)], progress, label="read images"))


def _accumulate_gradients(
    network: Any,
    samples: Sequence[Read],
    size: tuple[int, int],
    step: Prune,
    progress: Progress,
) -> None:
    """Leave in each weight the gradient of the loss on the labels, summed over images; the network stays as it is."""
    network.requires_grad_(True).eval()
    head = network.model[-1]
    head.training = True  # the head alone: raw predictions, and no statistics change
    own = vars(network).get("args")
    network.args = DEFAULT_CFG  # how much each part of the loss counts
    loss = network.init_criterion()
    network.args = own
    starts = range(0, len(samples), step.batch)
    with _deterministic():
        for start in progress.items(starts, "gradients", len(starts)):
            batch = _batch(samples[start : start + step.batch], size)
            loss(network(batch["img"]), batch)[0].sum().backward()
    head.training = False


@contextmanager
def _deterministic() -> Iterator[None]:
    """Sums in the same order each time, where PyTorch knows how."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _batch(samples: Sequence[Read], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Letterboxed images with their labels, as Ultralytics' losses take them."""
    frames, classes, boxes, owners = [], [], [], []
    for at, (sample, image) in enumerate(samples):
        frame, place = letterbox(image, Preprocess(*size))
        shares = (to_input(sample.truth.boxes, place) / (size[::-1] * 2)).astype(np.float32)
        label = ultralytics_label(replace(sample, truth=replace(sample.truth, boxes=shares)))
        frames.append(frame[0])
        classes.append(label["cls"])
        boxes.append(label["bboxes"])
        owners.append(np.full(len(label["cls"]), at, np.float32))
    values = {"img": np.stack(frames), "cls": np.concatenate(classes), "bboxes": np.concatenate(boxes)}
    values["batch_idx"] = np.concatenate(owners)
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}

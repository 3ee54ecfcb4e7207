"""Recovery of torchvision's detectors: a pruned one is trained to predict as the original does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from edgekd.compress.distillation.loss_terms import Predictions
from edgekd.compress.distillation.recovery import train
from edgekd.compress.steps import Recover
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Listener, Progress
from edgekd.data.dataset import load_dataset
from edgekd.detectors.cached_teacher import cached_predictions, evenly_chosen
from edgekd.detectors.family import load_teacher
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.teacher import Teacher
from edgekd.detectors.torch_support import fitting_batches, in_bfloat16, one_device, require_finite
from edgekd.detectors.torchvision.detector import TorchvisionDetector
from edgekd.detectors.torchvision.network import TorchvisionNetwork, save_network


def recover_detector(
    checkpoint: Path,
    teacher: Path,
    out: Path,
    data: Path,
    step: Recover,
    cache: Path,
    trust: bool = False,
    device: str | None = None,
    progress: Progress = SILENT,
) -> TrainingRun:
    """Write `out`, the detector in `checkpoint` trained to predict as `teacher` does: again a `.tv.pt` file.

    Arguments: `Family.recover`. Of several anchors at a place the most certain one is trained, as in distillation.
    Raises SpecError for a teacher whose classes or strides are not the detector's.
    """
    began = time.monotonic()
    place = one_device(device)
    network = TorchvisionDetector(checkpoint).network()
    network.require_own_size(step)
    original = load_teacher(teacher, trust).to(place)
    _require_comparable(network, original)
    samples = evenly_chosen(load_dataset(data).split("train").samples, step.images)
    with fitting_batches():
        records = cached_predictions(original, samples, network.image_size, cache, step.max_cache_bytes, progress)
        network.requires_grad_(True).eval().to(place)  # batch norms keep their statistics
        torch.manual_seed(step.seed)

        def predict(frames: torch.Tensor) -> Mapping[str, Predictions]:
            with in_bfloat16(place):
                return network.features(frames).branches

        def finish(epoch: int, losses: Mapping[str, float], last: float) -> None:
            require_finite(epoch, losses, last, "lower learning_rate")
            if isinstance(progress, Listener):
                progress.epoch("recover", epoch, losses)

        losses = train(network, predict, records, step, finish, progress)
    save_network(network.cpu(), out)
    updates = step.epochs * -(-len(records) // step.batch)
    return TrainingRun(step.epochs, updates, losses, time.monotonic() - began)


def _require_comparable(network: TorchvisionNetwork, teacher: Teacher) -> None:
    """Raise SpecError for a teacher with other classes or strides than the network."""
    for what, ours, theirs in (
        ("classes", network.classes, teacher.classes),
        ("strides", network.strides, tuple(teacher.strides)),
    ):
        if ours != theirs:
            fix = "train it by a step distill"
            raise SpecError(f"recover: {what} of the teacher", expected=str(ours), found=str(theirs), fix=fix)

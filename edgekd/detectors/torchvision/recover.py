"""Recovery of torchvision's detectors: a pruned one is trained to predict as the original does."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from edgekd.compress.distillation.loss_terms import DetectorFeatures
from edgekd.compress.distillation.recovery import Recovery
from edgekd.compress.steps import Recover
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.detectors.cached_teacher import cached_predictions, evenly_chosen
from edgekd.detectors.family import load_teacher
from edgekd.detectors.recovery import require_comparable, run_recovery
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.torch_support import fitting_batches, in_bfloat16, one_device
from edgekd.detectors.torchvision.detector import TorchvisionDetector
from edgekd.detectors.torchvision.network import save_network


def recover_detector(
    checkpoint: Path,
    teacher: Path,
    out: Path,
    data: Path,
    step: Recover,
    cache: Path,
    state: Path,
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
    require_comparable(network.classes, network.strides, original)
    samples = evenly_chosen(load_dataset(data).split("train").samples, step.images)
    with fitting_batches():
        records = cached_predictions(original, samples, network.image_size, cache, step.max_cache_bytes, progress)
        network.requires_grad_(True).eval().to(place)  # batch norms keep their statistics

        def predict(frames: torch.Tensor) -> DetectorFeatures:
            with in_bfloat16(place):
                return network.features(frames)

        training = Recovery(network, predict, records, step)
        run_recovery(training, state, place, progress)
    save_network(network.cpu(), out)
    return TrainingRun(step.epochs, training.updates, tuple(training.losses), time.monotonic() - began)

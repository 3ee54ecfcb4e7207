"""Recovery of Ultralytics detectors: a pruned or factorized one is trained to predict as the original does."""

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
from edgekd.detectors.torch_support import (
    fitting_batches,
    in_bfloat16,
    one_device,
)
from edgekd.detectors.ultralytics.checkpoint import write_checkpoint
from edgekd.detectors.ultralytics.detector import class_names, input_size, strides_of, unfused_network
from edgekd.detectors.ultralytics.features import FeatureRecorder, drop_hooks
from edgekd.detectors.ultralytics.loop import quiet


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
    """Write `out`, the detector in `checkpoint` trained to predict as `teacher` does: again an Ultralytics checkpoint.

    Arguments: `Family.recover`. Both branches of a head with two are trained. Raises SpecError for a teacher whose
    classes or anchors are not the detector's.
    """
    began = time.monotonic()
    place = one_device(device)
    network, train_args = unfused_network(checkpoint, trust)
    size = input_size({"imgsz": step.image_size or train_args.get("imgsz")}, max(strides_of(network)))
    original = load_teacher(teacher, trust).to(place)
    require_comparable(class_names(network), strides_of(network), original)
    samples = evenly_chosen(load_dataset(data).split("train").samples, step.images)
    with quiet(), fitting_batches():
        records = cached_predictions(original, samples, size, cache, step.max_cache_bytes, progress)
        network.requires_grad_(True).to(place).to(memory_format=torch.channels_last)
        network.model[-1].training = True  # the head alone: raw predictions, and no statistics change
        recorder = FeatureRecorder(network)

        def predict(frames: torch.Tensor) -> DetectorFeatures:
            with in_bfloat16(place):
                return recorder.features(network(frames))

        training = Recovery(network, predict, records, step)
        run_recovery(training, state, place, progress)
    drop_hooks(network.eval().cpu())
    write_checkpoint(network, {"task": "detect", **train_args}, out)
    return TrainingRun(step.epochs, training.updates, tuple(training.losses), time.monotonic() - began)

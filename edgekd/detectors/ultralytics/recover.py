"""Recovery of Ultralytics detectors: a pruned or factorized one is trained to predict as the original does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from edgekd.compress.distillation.loss_terms import DetectorFeatures
from edgekd.compress.distillation.recovery import Recovery
from edgekd.compress.steps import Recover
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Listener, Progress
from edgekd.data.dataset import load_dataset
from edgekd.detectors.cached_teacher import cached_predictions, evenly_chosen
from edgekd.detectors.family import load_teacher
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.teacher import Teacher
from edgekd.detectors.torch_support import (
    fitting_batches,
    in_bfloat16,
    one_device,
    read_state,
    require_finite,
    write_content,
)
from edgekd.detectors.ultralytics.checkpoint import write_checkpoint
from edgekd.detectors.ultralytics.detector import class_names, input_size, strides_of, unfused_network
from edgekd.detectors.ultralytics.features import FeatureRecorder, drop_hooks
from edgekd.detectors.ultralytics.loop import quiet

REMEDY = "lower learning_rate"


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
    _require_comparable(network, original)
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
        if (kept := read_state(state, place)) is not None:
            training.restore(kept)

        def finish() -> None:
            epoch, losses = len(training.losses) - 1, training.losses[-1]
            require_finite(epoch, losses, training.last_loss, REMEDY)
            write_content(training.state(), state)
            if isinstance(progress, Listener):
                progress.epoch("recover", epoch, losses)

        training.run(finish, progress)
    drop_hooks(network.eval().cpu())
    write_checkpoint(network, {"task": "detect", **train_args}, out)
    return TrainingRun(step.epochs, training.updates, tuple(training.losses), time.monotonic() - began)


def _require_comparable(network: Any, teacher: Teacher) -> None:
    """Raise SpecError for a teacher with other classes or anchors than the network."""
    for what, ours, theirs in (
        ("classes", class_names(network), teacher.classes),
        ("strides", tuple(map(float, strides_of(network))), tuple(map(float, teacher.strides))),
    ):
        if ours != theirs:
            fix = "train it by a step distill"
            raise SpecError(f"recover: {what} of the teacher", expected=str(ours), found=str(theirs), fix=fix)

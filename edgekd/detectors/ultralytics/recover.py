"""Recovery of Ultralytics detectors: training of a pruned or factorized one to reproduce the original's predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgekd.compress.distillation.loss_terms import DetectorFeatures
from edgekd.compress.steps import QuantAwareDistill, Recover
from edgekd.core.progress import SILENT, Progress
from edgekd.detectors.recovery import CompressedDetector, recover
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.torch_support import one_device
from edgekd.detectors.ultralytics.checkpoint import write_checkpoint
from edgekd.detectors.ultralytics.detector import STUDENTS, class_names, input_size, strides_of, unfused_network
from edgekd.detectors.ultralytics.features import (
    FeatureRecorder,
    drop_anchors,
    drop_hooks,
    full_precision,
    predict_raw,
)
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
    """Write `out`, the detector in `checkpoint` trained to reproduce the predictions of `teacher`, as a checkpoint.

    Arguments: `Family.recover`. Both branches of a head with two, and all layers of an RT-DETR, are trained. Raises
    SpecError for a teacher whose classes, strides or layers differ from the detector's.
    """
    network, train_args = unfused_network(checkpoint, trust, STUDENTS)
    student = compressed(network.requires_grad_(True), step, train_args.get("imgsz"), device)
    with quiet():
        run = recover(student, teacher, data, step, cache, state, progress, trust=trust)
    drop_hooks(network.eval().cpu())
    drop_anchors(network.model[-1])
    write_checkpoint(network, {"task": "detect", **train_args}, out)
    return run


def compressed(
    network: Any, step: Recover | QuantAwareDistill, size: Any, device: str | None, branch: str | None = None
) -> CompressedDetector:
    """Return a network as a detector to recover, moved to a device.

    size: input size, `imgsz` of a checkpoint; branch: name of the teacher's branch that corresponds to the network's
    only branch; None if both have the same branches.
    """
    network.to(one_device(device)).to(memory_format=torch.channels_last)
    predict_raw(network)
    recorder = FeatureRecorder(network)

    def outputs(frames: torch.Tensor) -> DetectorFeatures:
        with full_precision(network, frames):
            features = recorder.features(network(frames))
        return features if branch is None else replace(features, branches={branch: features.branches["one2many"]})

    side = input_size({"imgsz": step.image_size or size}, max(strides_of(network)))
    return CompressedDetector(network, outputs, class_names(network), recorder.taps.strides, side)

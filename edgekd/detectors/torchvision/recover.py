"""Recovery of torchvision's detectors: training of a pruned one to reproduce the original's predictions."""

from __future__ import annotations

from pathlib import Path

import torch

from edgekd.compress.distillation.loss_terms import DetectorFeatures
from edgekd.compress.steps import QuantAwareDistill, Recover
from edgekd.core.progress import SILENT, Progress
from edgekd.detectors.recovery import CompressedDetector, recover
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.torch_support import one_device
from edgekd.detectors.torchvision.detector import TorchvisionDetector
from edgekd.detectors.torchvision.network import TorchvisionNetwork, save_network


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
    """Write `out`, the detector in `checkpoint` trained to reproduce predictions of `teacher`: again a `.tv.pt` file.

    Arguments: `Family.recover`. Of several anchors at a position the most certain one is trained, as in distillation.
    Raises SpecError for a teacher whose classes or strides differ from the detector's.
    """
    network = TorchvisionDetector(checkpoint).network().requires_grad_(True)
    student = compressed(network, step, device)
    run = recover(student, teacher, data, step, cache, state, progress, trust=trust)
    save_network(network.cpu(), out)
    return run


def compressed(
    network: TorchvisionNetwork, step: Recover | QuantAwareDistill, device: str | None
) -> CompressedDetector:
    """Return a network as a detector to recover, moved to a device.

    Raises SpecError for a step with images of another size.
    """
    network.require_own_size(step)
    network.eval().to(one_device(device))  # batch norms keep their statistics
    strides = tuple(map(float, network.strides))

    def outputs(frames: torch.Tensor) -> DetectorFeatures:
        # On CPUs, bfloat16 gradients of depthwise layers on 1 x 1 maps (SSDlite) are mostly noise.
        with torch.autocast("cpu", enabled=False):
            return network.features(frames)

    return CompressedDetector(network, outputs, network.classes, strides, network.image_size)

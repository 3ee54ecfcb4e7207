"""Teachers of either family: all a student needs of one is its classes, its maps, and what it sees in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.detectors.torchvision import TorchvisionDetector
from edgekd.detectors.torchvision_names import is_torchvision

if TYPE_CHECKING:
    import torch

    from edgekd.builds.recipe import Distill
    from edgekd.compress.distillation.loss_terms import Aids, Seen
    from edgekd.core.detection.decode import Thresholds
    from edgekd.detectors.ultralytics_seen import Transformer


class Teacher(Protocol):
    """A network that never changes.

    image_size: height and width of its own frames; widths, strides: of the maps that its head reads, in channels and
    pixels.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    widths: tuple[int, ...]
    strides: tuple[float, ...]

    def __call__(self, frames: torch.Tensor) -> Seen:
        """What it sees in frames, float32 [b, 3, h, w], RGB, 0 to 1."""
        ...

    def parameters(self) -> Iterator[torch.Tensor]:
        """Its weights."""
        ...

    def to(self, *where: Any, **how: Any) -> Any:
        """The same on another device, or in another layout of memory."""
        ...


def load_teacher(path: Path, trust: bool = False) -> Teacher:
    """The teacher in a file: `.tv.pt`, or a checkpoint by Ultralytics. Raises SpecError."""
    if is_torchvision(path.name):
        network: Teacher = TorchvisionDetector(path).network().requires_grad_(False)
        return network
    from edgekd.detectors.ultralytics_seen import UltralyticsTeacher

    return UltralyticsTeacher(path, trust)


def as_transformer(path: Path, thresholds: Thresholds, trust: bool = False) -> Transformer | None:
    """The RT-DETR in a file, which finds objects without a graph; None where it holds another detector."""
    if is_torchvision(path.name):
        return None
    from edgekd.detectors.ultralytics_seen import transformer

    return transformer(path, thresholds, trust)


def paired_aids(
    widths: Sequence[int],
    strides: Sequence[float],
    teacher: Teacher,
    step: Distill,
    texts: torch.Tensor | None = None,
) -> Aids:
    """What is trained beside a student with maps of these widths and strides, the same for the same seed."""
    import torch

    from edgekd.compress.distillation.anchors import nearest_levels
    from edgekd.compress.distillation.loss_terms import Aids

    levels = nearest_levels(strides, teacher.strides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        return Aids(widths, [teacher.widths[at] for at in levels], step.learn_temperature, texts)


def parameters_in(network: Any) -> int:
    """How many numbers a network has learned."""
    return sum(each.numel() for each in network.parameters())

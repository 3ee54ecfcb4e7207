"""Teachers of any family: the interface of a student to its teacher's classes, maps and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.core.errors import SpecError

if TYPE_CHECKING:
    import torch

    from edgekd.compress.distillation.loss_terms import Aids, DetectorFeatures
    from edgekd.compress.steps import Distill
    from edgekd.core.detection.types import Preprocess


class Teacher(Protocol):
    """A network whose weights do not change.

    preprocess: preparation of its frames, float32 in RGB from 0 to 1, with the size and placement of its training; it
    normalises them itself. widths, strides: channels, and pixels between neighbours, of the maps that its head reads;
    empty for a teacher that only predicts objects, in frames of its own size.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    widths: tuple[int, ...]
    strides: tuple[float, ...]

    def __call__(self, frames: torch.Tensor) -> DetectorFeatures:
        """Return the features and predictions for frames float32 [b, 3, h, w], RGB, 0 to 1."""
        ...

    def parameters(self) -> Iterator[torch.Tensor]:
        """Return the network's weights."""
        ...

    def to(self, *arguments: Any, **named: Any) -> Any:
        """Move the network to a device or memory layout, and return it, like `torch.nn.Module.to`."""
        ...


def paired_aids(
    widths: Sequence[int],
    strides: Sequence[float],
    teacher: Teacher,
    step: Distill,
    texts: torch.Tensor | None = None,
    *,
    live: bool = True,
) -> Aids:
    """Return the modules trained together with a student; equal for equal seeds.

    widths, strides: of the student's maps; texts: as for `Aids`; live: whether the teacher runs on every batch. Raises
    SpecError if a live teacher has no feature maps.
    """
    import torch

    from edgekd.compress.distillation.anchors import nearest_levels
    from edgekd.compress.distillation.loss_terms import Aids

    if live and not teacher.widths:
        raise SpecError(
            "distill: a teacher of this family has no feature maps, and teaches from a cache",
            expected="a student by Ultralytics, and weights of classes and boxes alone",
            fix='leave out the other weights, and teacher = "live"',
        )
    levels = nearest_levels(strides, teacher.strides) if teacher.strides else ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        return Aids(widths, [teacher.widths[index] for index in levels], texts)

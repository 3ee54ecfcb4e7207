"""Teachers of any family: all that a student needs of one is its classes, its maps, and its features of a batch."""

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
    """A network that never changes.

    preprocess: preparation of its own frames, float32 in RGB from 0 to 1, at the size and in the place in which it was
    trained; it normalises them itself. widths, strides: channels, and pixels between neighbours, of the maps that its
    head reads; empty for a teacher of objects alone, in frames of its own.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    widths: tuple[int, ...]
    strides: tuple[float, ...]

    def __call__(self, frames: torch.Tensor) -> DetectorFeatures:
        """Return the features and predictions for frames float32 [b, 3, h, w], RGB, 0 to 1."""
        ...

    def parameters(self) -> Iterator[torch.Tensor]:
        """Return its weights."""
        ...

    def to(self, *arguments: Any, **named: Any) -> Any:
        """Return it on another device, or in another memory layout."""
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
    """Return the modules trained beside a student with maps of these widths and strides; equal for equal seeds.

    live: the teacher runs on the batches of the training. Raises SpecError where such a teacher has no maps.
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

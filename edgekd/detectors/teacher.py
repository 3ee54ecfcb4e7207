"""Teachers of any family: all that a student needs of one is its classes, its maps, and its features of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from edgekd.compress.distillation.loss_terms import Aids, DetectorFeatures
    from edgekd.compress.steps import Distill


class Teacher(Protocol):
    """A network that never changes.

    image_size: height and width of its own frames; widths, strides: channels, and pixels between neighbours, of the
    maps that its head reads.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
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
) -> Aids:
    """Return the modules trained beside a student with maps of these widths and strides; equal for equal seeds."""
    import torch

    from edgekd.compress.distillation.anchors import nearest_levels
    from edgekd.compress.distillation.loss_terms import Aids

    levels = nearest_levels(strides, teacher.strides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        return Aids(widths, [teacher.widths[index] for index in levels], texts)

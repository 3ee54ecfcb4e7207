"""Stage `resize`: the detector at another size of its input, with the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import StageContext
from edgekd.compress.steps import Resize
from edgekd.detectors.family import require_family


def resized_file(checkpoint: Path) -> str:
    """Return the name of the file of a resized detector."""
    return f"resized{require_family(checkpoint).suffix}"


@dataclass(frozen=True)
class ResizeResult(StageResult):
    """A checkpoint, in the file `resized_file(detector)`.

    bytes: its length; size: height and width of the input, before and after.
    """

    bytes: int
    size: tuple[tuple[int, int], tuple[int, int]]


RESIZE = StageKind("resize", 1, ResizeResult, ("torch", "ultralytics"))


def run(context: StageContext, step: Resize, checkpoint: Path, *, trust: bool = False) -> Stage[ResizeResult]:
    """Write the checkpoint with another input size."""

    family = require_family(checkpoint)

    def work(folder: Path) -> ResizeResult:
        resize_detector = family.capability("resize")
        out = folder / resized_file(checkpoint)
        before, after = resize_detector(checkpoint, step.image_size, out, trust)
        return ResizeResult(out.stat().st_size, (before, after))

    inputs = {"model": context.sha256(checkpoint), "image_size": step.image_size}
    return context.run(RESIZE, inputs, work, libraries=family.libraries)
